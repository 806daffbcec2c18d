"""Turn a checkpoint into the model artefact: a card and two ONNX files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from carcodec import atomic
from carcodec.errors import TrainingError
from carcodec.networks import families
from carcodec.networks.plain import BicubicDownscaler
from carcodec.training.graph import written
from carcodec.training.loop import build_networks, load_checkpoint
from carcodec.training.recipe import NetworkRecipe, Recipe, Schedule
from carcodec.zoo import halves
from carcodec.zoo.card import as_toml

__all__ = ["checkpoint_networks", "export"]


def checkpoint_networks(path: Path) -> tuple[Recipe, nn.Module, nn.Module, dict[str, Any]]:
    """A checkpoint's recipe, its averaged networks, and the raw state.

    Raises:
        TrainingError: missing, damaged, or not of this version's networks.
    """
    state = load_checkpoint(path)
    try:
        saved = dict(state["recipe"])
        recipe = Recipe(
            **saved
            | {
                "downscaler": NetworkRecipe(**saved["downscaler"]),
                "upscaler": NetworkRecipe(**saved["upscaler"]),
                "training": Schedule(**saved["training"]),
            }
        )
        downscaler, upscaler = build_networks(recipe)
        for side, network in (("downscaler", downscaler), ("upscaler", upscaler)):
            own = {
                k.removeprefix(f"{side}."): v
                for k, v in state["average"].items()
                if k.startswith(f"{side}.")
            }
            network.load_state_dict(own)
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(f"the checkpoint {path} cannot be used: {error}") from error
    return recipe, downscaler.eval(), upscaler.eval(), state


def export(
    checkpoint: Path,
    out: Path,
    *,
    data: str = "",
    command: str = "",
    measured: dict[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write ``out/NAME-vVERSION/`` with ``card.toml``, ``downscaler.onnx`` and ``upscaler.onnx``.

    ``data`` describes the training photos, ``command`` how it was trained. ``measured`` holds
    figures by system, as benchmarks/quality.py writes them; those of the model's name go onto the
    card, and those of ``bicubic-xSCALE`` beside them as ``baseline``. ``half`` stores the
    upscaler's weights in float16 (:mod:`carcodec.zoo.halves`), in half of the file.

    Returns:
        The card's path.

    Raises:
        TrainingError: a baseline without a learned downscaler, outputs that differ from PyTorch's,
            or a model of that name and version with other weights is in the way.
    """
    recipe, downscaler, upscaler, state = checkpoint_networks(checkpoint)
    if isinstance(downscaler, BicubicDownscaler):
        raise TrainingError(f"{recipe.name} has no learned downscaler: baselines are not exported")
    sides: dict[str, Any] = {"downscaler": downscaler, "upscaler": upscaler}
    steps = {side: getattr(network, "steps", 1) for side, network in sides.items()}
    for side, network in sides.items():  # one that recurs is written once
        if steps[side] > 1:
            described = getattr(recipe, side)
            sides[side] = families.build(side, described.family, 2, described.options).eval()
            sides[side].load_state_dict(network.state_dict())
    rounded = steps["downscaler"] == 1
    if half:
        with torch.no_grad():
            for p in sides["upscaler"].parameters():
                if p.ndim > 1:
                    p.copy_(p.half())
    models = {s: written(network, s, rounded) for s, network in sides.items()}
    if half:
        halves.narrowed(models["upscaler"])
    files = {s: model.SerializeToString() for s, model in models.items()}
    _compare(sides["downscaler"], sides["upscaler"], files, rounded)
    lines = [
        f"name = {as_toml(recipe.name)}",
        f"version = {recipe.version}",
        f"scale = {recipe.scale}",
        f"description = {as_toml(recipe.description)}",
    ]
    for side, payload in files.items():
        network = sides[side]
        described = getattr(recipe, side)
        options = families.complete(side, described.family, described.options)
        if hasattr(network, "kernel"):
            options["kernel"] = network.kernel  # where the default follows from the scale
        lines += [
            "",
            f"[{side}]",
            f"parameters = {sum(p.numel() for p in network.parameters())}",
            f"family = {as_toml(described.family)}",
            f'file = "{side}.onnx"',
            f'sha256 = "{hashlib.sha256(payload).hexdigest()}"',
            f"halo = {network.halo}  # LR pixels",
            f"options = {as_toml(options)}",
        ]
        if steps[side] > 1:
            lines.append(f"steps = {steps[side]}  # the network is applied to its own result")
    training = {
        "data": data,
        "command": command,
        "minutes": round(state["minutes"], 1),
        "steps": state["step"],
        "recipe": state["recipe"]["training"],
    }
    figures = dict((measured or {}).get(recipe.name, {}))
    if baseline := (measured or {}).get(f"bicubic-x{recipe.scale}"):
        figures["baseline"] = baseline
    for title, table in (("training", training), ("measured", figures)):
        lines += ["", f"[{title}]", *(f"{as_toml(k)} = {as_toml(v)}" for k, v in table.items())]
    folder = out / f"{recipe.name}-v{recipe.version}"
    card = folder / "card.toml"
    folder.mkdir(parents=True, exist_ok=True)
    for side, payload in files.items():
        target = folder / f"{side}.onnx"
        if target.exists() and target.read_bytes() != payload:
            raise TrainingError(
                f"{folder} holds other weights under the same name and version: "
                "give the recipe a new version"
            )
        atomic.write(target, payload)
    atomic.write(card, ("\n".join(lines) + "\n").encode())
    return card


def _compare(downscaler: Any, upscaler: Any, files: dict[str, bytes], rounded: bool) -> None:
    generator = np.random.default_rng(7)
    side = 48 * downscaler.scale
    smooth = torch.from_numpy(generator.random((1, 3, side // 8, side // 8), np.float32))
    image = nn.functional.interpolate(smooth, [side, side], mode="bicubic").clamp(0, 1)
    with torch.inference_mode():
        small = downscaler(image)
        if rounded:
            small = small.clamp(0, 1).mul(255).round().div(255)
        restored = upscaler(small, torch.tensor([0.4]))
    for name, source, expected, tolerance in (
        ("downscaler", image, small, 1.01 / 255 if rounded else 1e-3),
        ("upscaler", small, restored, 1e-3),
    ):
        session = onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
        given = (source.numpy(), np.array([0.4], np.float32))
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, dict(zip(names, given, strict=False)))[0]
        difference = np.abs(found - expected.numpy())
        if difference.max() > tolerance or (difference > 1e-3).mean() > 1e-3:
            raise TrainingError(
                f"the exported {name} differs from PyTorch by up to {difference.max():.4f}"
            )

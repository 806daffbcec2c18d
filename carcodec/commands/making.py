"""Making models: train, export, quantise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from carcodec import files, zoo
from carcodec.commands.terminal import Quiet, Threads, progress_bar, screen
from carcodec.errors import MissingDependencyError

__all__ = ["export", "quantise", "train"]


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    data: Annotated[Path, typer.Option(help="Folder of photos, or with train/ and val/ inside.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Run folder.", show_default="runs/NAME"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Time budget.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of this checkpoint or model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Threads = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events beside log.csv.")
    ] = False,
) -> None:
    """Train a downscaler and an upscaler together; needs the torch extra.

    On several GPUs: torchrun --nproc-per-node 4 -m carcodec train …
    """
    training = _training("loop")
    recipes = _training("recipe")
    path = recipe
    if not path.exists() and path.suffix == "" and len(path.parts) == 1:
        path = Path(__file__).parents[1] / "training" / "recipes" / f"{recipe.name}.toml"
    loaded = recipes.load_recipe(path)
    if threads:
        import torch

        torch.set_num_threads(threads)
    out = output or Path("runs") / loaded.name
    budget = minutes or loaded.training.minutes
    quiet = os.environ.get("RANK", "0") != "0"  # under torchrun the first process speaks
    with progress_bar("min", disable=quiet) as bar:
        task = bar.add_task(f"{loaded.name}: reading photos", total=budget)

        def report(now: Any) -> None:
            bar.update(
                task,
                completed=now.minutes,
                description=f"{loaded.name}: step {now.step}, loss {now.loss:.5f}, "
                f"rate {now.learning_rate:.1e}",
            )
            if now.validation_psnr is not None:
                bar.console.print(
                    f"{now.minutes:7.1f} min  step {now.step}  loss {now.loss:.5f}  "
                    f"validation {now.validation_psnr:.2f} dB"
                )

        psnr = training.train(
            loaded,
            data,
            out,
            minutes=minutes,
            resume=resume,
            init=init,
            device=device,
            report=report,
            tensorboard=tensorboard,
        )
    if not quiet:
        screen.print(f"{out / 'checkpoint.pt'}: validation {psnr:.2f} dB (RGB)")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.pt of a training run.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of models, e.g. one in $CARCODEC_MODELS.")
    ],
    data: Annotated[str, typer.Option(help="What it was trained on, for the card.")] = "",
    command: Annotated[str, typer.Option(help="How it was trained, for the card.")] = "",
    measured: Annotated[
        Path | None, typer.Option(help="JSON of benchmarks/quality.py, for the card.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store the upscaler's weights in float16: half the file.")
    ] = False,
) -> None:
    """Write a checkpoint as a model that can be encoded with: card and ONNX files."""
    figures = json.loads(files.read_bytes(str(measured))) if measured else None
    card = _training("export").export(
        checkpoint, output, data=data, command=command, measured=figures, half=half
    )
    screen.print(f"{card}")


def quantise(
    model: Annotated[str, typer.Argument(help="A model that is installed.")],
    photos: Annotated[Path, typer.Option(help="Folder of photos to calibrate and measure on.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of models, e.g. one in $CARCODEC_MODELS.")
    ],
    side: Annotated[
        str, typer.Option(help="upscaler or downscaler alone.", show_default="what there is")
    ] = "",
    most: Annotated[
        float, typer.Option(min=0, help="dB of RGB PSNR that no quality may lose.")
    ] = 0.05,
    quiet: Quiet = False,
) -> None:
    """Write a model with its networks in 8 bits too, which takes CPUs a fraction of the time."""
    from carcodec import quantise as quantising

    if side not in ("", "upscaler", "downscaler"):
        raise typer.BadParameter("--side is upscaler or downscaler")
    card = zoo.find(model)
    found = files.within(photos, files.PICTURES)
    command = f"carcodec quantise {card.name} --photos {photos.resolve().name}/"
    command += f" --side {side}" if side else ""
    with progress_bar(card.name, disable=quiet) as bar:
        task = bar.add_task("quantising", total=1.0)
        path = quantising.quantise(
            card,
            found,
            output,
            only=side,
            command=command,
            most=most,
            progress=lambda share: bar.update(task, completed=share),
        )
    made = zoo.load_card(path)
    for side in ("upscaler", "downscaler"):
        if eight := getattr(made, side).int8:
            least, worst = min(eight.loss.values()), max(eight.loss.values())
            screen.print(f"{path}: the {side} loses {least:.3f} to {worst:.3f} dB")


def _training(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"carcodec.training.{module}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: pip install "carcodec[torch]"'
        ) from error

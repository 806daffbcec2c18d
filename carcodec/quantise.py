"""A model's networks in 8-bit integers: calibrated on photos, held against float32 on others.

The upscaler of any model; the downscaler where LR is stored with a loss, beside which what 8 bits
change in LR does not count. How a network is turned is said in :mod:`carcodec.eight_bits`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from carcodec import atomic, coarseness, codec, eight_bits, files, metrics, storage, zoo
from carcodec.errors import DataError, EngineError, ImageError, MissingDependencyError
from carcodec.zoo import halves
from carcodec.zoo.card import as_toml

__all__ = ["CONTRAST", "MOST", "QUALITIES", "quantise"]

MOST = 0.05  # dB
# Lights at night, drawings and text go further than most photos, and would be clipped.
CONTRAST = 3
QUALITIES = (10, 20, 35, 50, 65, 80)  # of the stored LR, where the model is trained for a loss
_SIDE = 512  # of the part of a photo that is looked at
_EXACT, _ROUNDED = "onnxruntime:fp32", "onnxruntime"
Photo = NDArray[np.uint8]
Losses = dict[str, list[float]]


class Stored(NamedTuple):
    """LR as it is stored at the codec's ``quality``, and what the upscaler is told of it."""

    small: storage.Pixels
    quality: int | None
    told: int | None
    size: int


def quantise(
    card: zoo.ModelCard,
    photos: Sequence[Path],
    out: Path,
    *,
    only: str = "",
    command: str = "",
    most: float = MOST,
    progress: Callable[[float], None] = lambda share: None,
) -> Path:
    """Write ``out/NAME-vVERSION/`` with ``upscaler.int8.onnx`` beside all that the model has.

    And with ``downscaler.int8.onnx``, where that is a CAR for LR that is stored with a loss. Every
    other photo calibrates: it sets the range of each activation, at all of :data:`QUALITIES`, as it
    is and with :data:`CONTRAST` times its contrast. The rest measures the losses, which go onto the
    card.

    Args:
        photos: two or more; of each, up to 512×512 pixels from the middle.
        only: ``upscaler`` or ``downscaler`` alone; what the other has in 8 bits stays.
        command: for the card.
        most: dB of RGB PSNR, mean over the photos, that no quality may lose.

    Returns:
        The card's path.

    Raises:
        EngineError: there is no network to quantise, or it loses more.
        DataError: fewer than two photos.
        ImageError: a photo cannot be read.
        MissingDependencyError: onnx is not installed.
    """
    sides = [only] if only else ["upscaler"]
    if "upscaler" in sides and (card.upscaler.family == "bicubic" or card.upscaler.steps > 1):
        why = "is no network" if card.upscaler.family == "bicubic" else "recurs"
        raise EngineError(f"the upscaler of {card.name} {why}: there is nothing to quantise")
    eligible = card.downscaler.family == "car" and bool(card.storage)
    if only == "downscaler" and not eligible:
        raise EngineError(
            f"the downscaler of {card.name} stays as it is: in 8 bits are those of CAR alone, for "
            "LR that is stored with a loss"
        )
    if not only and eligible:
        sides.append("downscaler")
    if len(photos) < 2:
        raise DataError(
            f"two photos are needed, one to calibrate on and one to measure on, not {len(photos)}"
        )
    networks = {side: _network(card, side) for side in sides}  # first: the photos take minutes
    taken = [_middle(path) for path in photos]
    seen, held_out = taken[::2], taken[1::2]
    strong = [((p.astype(np.int32) - 128) * CONTRAST + 128).clip(0, 255) for p in seen]
    seen += [p.astype(np.uint8) for p in strong]
    made = {}
    for at, (side, (network, layers)) in enumerate(networks.items()):
        feeds = [feed for photo in seen for feed in _feeds(card, side, network, photo)]
        made[side] = eight_bits.quantised(network, layers, feeds)
        progress(0.6 * (at + 1) / len(networks))
    names = sorted(path.name for path in card.folder.glob("*.onnx"))
    parts = {name: (card.folder / name).read_bytes() for name in names}
    parts |= {_file(side): data for side, data in made.items()}
    text = (card.folder / "card.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, data in parts.items():
            (folder / name).write_bytes(data)
        exact = [_stored(card, codec.downscale(photo, card, _EXACT)) for photo in held_out]
        for side in sides:
            (folder / "card.toml").write_text(_with(text, side, made[side], {}, command), "utf-8")
            found = _losses(zoo.load_card(folder / "card.toml"), side, held_out, exact)
            loss = {k: round(max(0.0, float(np.mean(v))), 3) for k, v in found.items()}
            worst = max(loss, key=lambda name: loss[name])
            if loss[worst] > most:
                raise EngineError(
                    f"in 8 bits the {side} of {card.name} loses {loss[worst]:.3f} dB at {worst}, "
                    f"more than {most:g}: it stays as it is"
                )
            text = _with(text, side, made[side], loss, command)
    progress(1.0)
    target = out / f"{card.name}-v{card.version}"
    target.mkdir(parents=True, exist_ok=True)
    for name, data in parts.items():
        atomic.write(target / name, data)
    atomic.write(target / "card.toml", text.encode())
    return target / "card.toml"


def _file(side: str) -> str:
    return f"{side}.int8.onnx"


def _middle(path: Path) -> Photo:
    colour = files.read_photo(str(path)).colour
    top, left = (max(0, side - _SIDE) // 2 for side in colour.shape[:2])
    colour = colour[top : top + _SIDE, left : left + _SIDE]
    if colour.ndim != 3 or colour.dtype != np.uint8:
        raise ImageError(f"{path} is not a photo in colour of 8 bits a sample")
    return colour.astype(np.uint8, copy=False)


def _network(card: zoo.ModelCard, side: str) -> tuple[Any, list[str]]:
    """One side's graph, and which of its layers are to be in 8 bits."""
    if importlib.util.find_spec("onnx") is None:
        raise MissingDependencyError("quantising needs onnx: pip install onnx")

    network = halves.network(card, getattr(card, side))
    layers = eight_bits.layers(network)
    if not layers:
        raise EngineError(f"the {side} of {card.name} has no layer that is worth quantising")
    return network, layers


def _feeds(card: zoo.ModelCard, side: str, network: Any, photo: Photo) -> list[eight_bits.Feed]:
    """What a side is given of a photo."""
    names = [source.name for source in network.graph.input]
    if side == "downscaler":
        height, width = (length // (2 * card.scale) * 2 * card.scale for length in photo.shape[:2])
        return [{names[0]: codec.network_input(photo[:height, :width], np.float32(255))}]
    found = []
    for one in _stored(card, codec.downscale(photo, card, _EXACT)):
        image = codec.network_input(one.small, np.float32(255))
        share = np.array([1.0 if one.told is None else one.told / 100], np.float32)
        found.append(dict(zip(names, (image, share), strict=False)))
    return found


def _stored(card: zoo.ModelCard, exact: storage.Pixels) -> list[Stored]:
    """LR at each quality."""
    size, channels = exact.shape[1::-1], exact.size // (exact.shape[0] * exact.shape[1])
    stored = storage.by_name(card.storage or "png")
    found: list[Stored] = []
    for quality in QUALITIES if card.storage else [None]:
        data = stored.encode(exact, quality)
        told = None
        if quality is not None:
            told = coarseness.told(card.told, stored, exact, quality, data)
        small = stored.decode(data, size, channels)
        found.append(Stored(small, quality, told, len(data)))
    return found


def _losses(
    card: zoo.ModelCard, side: str, photos: list[Photo], stored: list[list[Stored]]
) -> Losses:
    """Quality to the dB that each photo loses by one side in 8 bits, the other in float32.

    ``stored`` is each photo's LR by float32. Another LR takes other bits: then it is dB at the bits
    of that one.
    """
    found: Losses = {}
    for photo, exact in zip(photos, stored, strict=True):
        before = np.array([_psnr(card, photo, one, _EXACT) for one in exact])
        if side == "upscaler":
            lost = before - [_psnr(card, photo, one, _ROUNDED) for one in exact]
        else:
            other = _stored(card, codec.downscale(photo, card, _ROUNDED))
            lost = before - [_psnr(card, photo, one, _EXACT) for one in other]
            bits, more = (np.log([one.size for one in part]) for part in (exact, other))
            rising = bits + 1e-6 * np.arange(len(bits))  # two qualities may be one file
            lost += np.gradient(before, rising) * (more - bits)
        for one, value in zip(exact, lost, strict=True):
            name = "lossless" if one.quality is None else f"q{one.quality}"
            found.setdefault(name, []).append(float(value))
    return found


def _psnr(card: zoo.ModelCard, photo: Photo, one: Stored, engine: str) -> float:
    size = (photo.shape[1], photo.shape[0])
    restored = codec.upscale(one.small, size, 8, card, engine, quality=one.told, channels=3)
    return metrics.psnr(photo, restored)


def _with(card: str, side: str, payload: bytes, loss: dict[str, float], command: str) -> str:
    """A card's text with the table ``[SIDE.int8]`` of this."""
    without = re.sub(rf"\n\[{side}\.int8\]\n(?:[^\[\n].*\n)*", "", card)
    lines = [
        "",
        f"[{side}.int8]",
        f'file = "{_file(side)}"',
        f'sha256 = "{hashlib.sha256(payload).hexdigest()}"',
        f"loss = {as_toml(loss)}  # dB of RGB PSNR",
        f"command = {as_toml(command)}",
        "",
    ]
    head, separator, tail = without.partition("\n[training]\n")
    text = head + "\n".join(lines) + separator + tail
    tomllib.loads(text)
    return text

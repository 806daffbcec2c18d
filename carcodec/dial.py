"""The quality dial, and what "auto" means: from what was asked for to a model and its storage.

The dial walks the rate-distortion hull of the models that were trained for one storage codec:
``zoo/dial.toml`` says which of them serves which part of it, at which qualities of the codec.
It was measured once, on photos that no evaluation uses (benchmarks/dial.py).
"""

from __future__ import annotations

import functools
import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from carcodec import storage, zoo
from carcodec.detail import needs_full_size
from carcodec.errors import StorageError
from carcodec.pixels import Plane

__all__ = [
    "AUTO",
    "USUAL_QUALITY",
    "Quality",
    "Setting",
    "branches",
    "default_quality",
    "settle",
    "suited",
]

log = logging.getLogger("carcodec")

AUTO: Final = "auto"
USUAL_QUALITY = 50  # of a storage codec, where the model or scale is given
Quality = float | Literal["auto"] | None

_LOSSLESS = "jpegxl"  # the smallest of the lossless codecs


@dataclass(frozen=True)
class Setting:
    """A model, the codec that stores its LR, and that codec's quality (``None`` is lossless)."""

    model: str
    storage: str
    quality: float | None


@dataclass(frozen=True)
class _Part:
    """A part of the dial, ends included: ``model`` stored at ``quality[0]`` … ``quality[1]``."""

    model: str
    dial: tuple[float, float]
    quality: tuple[float, float]


def settle(
    model: str = AUTO,
    storage_codec: str = AUTO,
    scale: int = 0,
    quality: Quality = AUTO,
    full_size: bool = False,
) -> Setting:
    """What to encode with, where the user leaves something open.

    Args:
        model: a model's name, which then needs no scale, or ``auto``.
        storage_codec: a storage codec's name, or ``auto``: the one the model was trained for.
        scale: 0 is open.
        quality: ``None`` stores LR losslessly. A number turns the dial where model and scale are
            open and models for the storage codec are installed; otherwise it is the storage
            codec's own quality. ``auto`` is :func:`default_quality` of the dial, or
            :data:`USUAL_QUALITY`, for models trained for the storage codec; lossless for others.
        full_size: the picture needs it (:mod:`carcodec.detail`): the dial has scale 1 alone, all
            the way down.

    Raises:
        ModelNotFoundError, StorageError: no such model, scale or storage codec.
    """
    open_quality = isinstance(quality, str)
    given = None if isinstance(quality, str) else quality
    if given is not None and not 0 <= given <= 100:
        raise StorageError(f"quality must be from 0 to 100, not {quality}")
    if storage_codec != AUTO:
        storage_codec = storage.by_name(storage_codec).name
    if model != AUTO:
        made_for = zoo.find(model).storage
        stored = made_for or _LOSSLESS if storage_codec == AUTO else storage_codec
        if open_quality and made_for and stored == made_for:
            given = USUAL_QUALITY
        return Setting(model, stored, given)
    wanted = _table().auto if storage_codec == AUTO else storage_codec
    trained = branches(wanted, scale)
    if not trained or (given is None and not open_quality):
        stored = _LOSSLESS if storage_codec == AUTO else storage_codec
        return Setting(_plain(scale, given is None), stored, given)
    parts = _table().dials.get(wanted, ())
    if scale or not parts:
        return Setting(trained[-1], wanted, USUAL_QUALITY if given is None else given)
    turned = default_quality(wanted) if given is None else given
    for part in _full_size(parts) if full_size else parts:
        if turned <= part.dial[1]:
            break
    (first, last), (low, high) = part.dial, part.quality
    share = min(max((turned - first) / (last - first), 0.0), 1.0) if last > first else 0.0
    found = low + share * (high - low)
    whole = storage.by_name(wanted).whole
    return Setting(part.model, wanted, float(round(found)) if whole else round(found, 2))


def suited(
    colour: Plane,
    model: str = AUTO,
    storage_codec: str = AUTO,
    scale: int = 0,
    quality: Quality = AUTO,
) -> Setting:
    """:func:`settle` for one picture: at full size if it needs that and the choice is open.

    ``colour`` is looked at only where that makes a difference.
    """
    usual = settle(model, storage_codec, scale, quality)
    full = settle(model, storage_codec, scale, quality, full_size=True)
    if full == usual or not needs_full_size(colour):
        return usual
    log.info("half the size would lose this picture: %s stores it", full.model)
    return full


def _full_size(parts: tuple[_Part, ...]) -> tuple[_Part, ...]:
    """A dial without its smaller images, down to the same quality; itself if it has no others."""
    whole = [part for part in parts if zoo.find(part.model).scale == 1]
    if not whole:
        return parts
    lowest, first = parts[0], whole[0]
    ends = (lowest.dial[0], first.dial[0]), (lowest.quality[0], first.quality[0])
    return _Part(first.model, *ends), *whole


def branches(storage_codec: str, scale: int = 0) -> list[str]:
    """Names of the installed models trained for a storage codec, from the largest scale down."""
    fitting = {(-c.scale, c.name) for c in _choosable(scale) if c.storage == storage_codec}
    return [name for _, name in sorted(fitting)]


def _choosable(scale: int) -> list[zoo.ModelCard]:
    """Installed models of a scale, or of all, but the large forms, which are slow: asked for."""
    return [c for c in zoo.installed() if scale in (0, c.scale) and c.name == c.usual]


def _plain(scale: int, lossless: bool) -> str:
    """The model for LR of a scale, ×2 where it is open, that no codec's loss was trained for.

    What packs most into LR suffers most when that is not exact: lossy LR is left to CAR.
    """
    usual = f"car-x{scale or 2}"
    if lossless:
        usual = _table().lossless.get(scale or 2, usual)
    fitting = [card for card in _choosable(scale) if not card.grey]
    names = [card.name for card in sorted(fitting, key=lambda c: (bool(c.storage), c.fixed))]
    return usual if usual in names or not names else names[0]


def default_quality(storage_codec: str = AUTO) -> float:
    """Where the dial stands unless it is turned: the best of scale 2.

    That is the highest quality at which the half-size image, which opens at once, costs nothing:
    above it, storing the photo at full size takes fewer bytes.
    """
    table = _table()
    parts = table.dials[table.auto if storage_codec == AUTO else storage_codec]
    return max((p.dial[1] for p in parts if zoo.find(p.model).scale == 2), default=USUAL_QUALITY)


@dataclass(frozen=True)
class _Table:
    """The file.

    Attributes:
        auto: the storage codec that it means.
        dials: each one's parts from low to high.
        lossless: scale to the model for lossless LR.
    """

    auto: str
    dials: dict[str, tuple[_Part, ...]]
    lossless: dict[int, str]


@functools.cache
def _table() -> _Table:
    data = tomllib.loads((Path(zoo.__file__).parent / "dial.toml").read_text("utf-8"))
    dials = {
        name: tuple(_Part(p["model"], tuple(p["dial"]), tuple(p["quality"])) for p in listed)
        for name, listed in data["dials"].items()
    }
    return _Table(data["auto"], dials, {int(k): v for k, v in data["lossless"].items()})

"""Find the setting that meets a target: a file size, or a quality of the restored photo.

The storage codec's quality is searched over real encodes of one LR image, each quality at most
once; the downscaler runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec import codec, metrics, pixels, storage
from carcodec.errors import CarcodecError, StorageError

__all__ = ["Target", "TargetError", "Trial", "meet"]

Report = Callable[[float], None]

SLACK = 0.03  # a file may be this much smaller than its byte target
_STEPS = {"bytes": SLACK, "psnr": 0.05, "ssim": 0.001}
_MOST_TRIALS = 14


class TargetError(CarcodecError):
    """No setting meets the target."""


@dataclass(frozen=True)
class Target:
    """What to meet: at most ``value`` bytes, or at least ``value`` PSNR (dB, RGB) or SSIM (RGB)."""

    kind: Literal["bytes", "psnr", "ssim"]
    value: float


@dataclass(frozen=True)
class Trial:
    """One real encode: its quality (``None`` is lossless), the file, and PSNR or SSIM if asked."""

    quality: float | None
    encoded: codec.Encoded
    score: float


def meet(
    photo: Image.Image | NDArray[Any] | pixels.Photo,
    target: Target,
    *,
    model: str = codec.DEFAULT_MODEL,
    storage_codec: str = codec.DEFAULT_STORAGE,
    alpha_quality: int | None = None,
    engine: str = "auto",
    threads: int = 0,
    progress: Report = lambda share: None,
) -> Trial:
    """Encode ``photo`` so that it just meets ``target``; other arguments as codec.encode's.

    A byte target is never exceeded, and met within 3 % where the codec's steps allow (AVIF and
    WebP have whole qualities only, and JPEG 2000's sizes jump on images of a few kilobytes). Of
    the files that reach a PSNR or SSIM the search keeps the smallest it met. Lossless storage
    counts as the highest quality.

    Raises:
        TargetError: out of reach; says what the nearest is.
        StorageError: the storage codec is lossless only.
    """
    chosen = storage.by_name(storage_codec)
    if not chosen.lossy:
        raise StorageError(f"{chosen.title} is lossless only: it has no quality to search")
    prepared = codec.prepare(
        photo,
        model=model,
        alpha_quality=alpha_quality,
        engine=engine,
        threads=threads,
        progress=lambda share: progress(0.5 * share),
    )
    trials: dict[float | None, Trial] = {}

    def attempt(quality: float | None) -> Trial:
        if quality not in trials:
            encoded = codec.store(prepared, storage_codec, quality, threads)
            score = float(len(encoded.data))
            if target.kind != "bytes":
                restored = codec.restore(encoded.data, engine, threads)
                measure = metrics.psnr if target.kind == "psnr" else metrics.ssim
                score = measure(prepared.photo.colour, restored.colour)
            trials[quality] = Trial(quality, encoded, score)
            progress(0.5 + 0.5 * min(1.0, len(trials) / _MOST_TRIALS))
        return trials[quality]

    found = _search(attempt, target, 1.0 if chosen.whole else 0.05)
    progress(1.0)
    return found


def _search(attempt: Callable[[float | None], Trial], target: Target, finest: float) -> Trial:
    """Bisect quality down to steps of ``finest``; scores grow with it but for small unevenness."""
    by_size = target.kind == "bytes"

    def above(trial: Trial) -> bool:
        return trial.score > target.value if by_size else trial.score >= target.value

    low, high = attempt(0.0), attempt(100.0)
    if by_size:
        if above(low):
            raise TargetError(_nearest(target, low, "smallest"))
        if not above(high):
            # lossless may be smaller than the highest lossy quality, and is better
            exact = attempt(None)
            return high if above(exact) else exact
    else:
        if above(low):
            return low
        if not above(high):
            exact = attempt(None)
            if above(exact):
                return exact
            raise TargetError(_nearest(target, max(high, exact, key=lambda t: t.score), "best"))
    step = _STEPS[target.kind]
    for _ in range(_MOST_TRIALS - 2):
        gap = target.value * step if by_size else step
        kept = low if by_size else high
        assert low.quality is not None and high.quality is not None
        if abs(kept.score - target.value) <= gap or high.quality - low.quality < 1.5 * finest:
            break
        middle = attempt(_between(low, high, target, finest))
        if above(middle):
            high = middle
        else:
            low = middle
    return low if by_size else high


def _between(low: Trial, high: Trial, target: Target, finest: float) -> float:
    """Where the target should lie on the line between two trials, held off their ends."""
    assert low.quality is not None and high.quality is not None
    scores = np.array([low.score, high.score])
    wanted = target.value * (1 - SLACK / 2) if target.kind == "bytes" else target.value
    if target.kind == "bytes":  # sizes grow exponentially with quality
        scores, wanted = np.log(scores), float(np.log(wanted))
    span = scores[1] - scores[0]
    share = float((wanted - scores[0]) / span) if span > 0 and np.isfinite(span) else 0.5
    width = high.quality - low.quality
    found = low.quality + min(max(share, 0.1), 0.9) * width
    first, last = round(low.quality / finest) + 1, round(high.quality / finest) - 1
    step = min(max(round(found / finest), first), last)
    return round(step * finest, 2)


def _nearest(target: Target, trial: Trial, word: str) -> str:
    if target.kind == "bytes":
        size, bpp = len(trial.encoded.data), trial.encoded.bpp
        return (
            f"no setting reaches {target.value:,.0f} bytes: the {word} is {size:,} bytes "
            f"({bpp:.3f} bpp); choose a larger target or a model of larger scale"
        )
    unit = " dB PSNR" if target.kind == "psnr" else " SSIM"
    return (
        f"no setting reaches {target.value:g}{unit}: the {word} is {trial.score:.4g}{unit}; "
        "choose a lower target or a model of smaller scale"
    )

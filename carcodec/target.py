"""A target, and the search for the quality of a storage codec that just meets it.

Nothing here encodes: what is searched is given as a function from a quality to a :class:`Trial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from carcodec import codec
from carcodec.errors import CarcodecError

__all__ = [
    "FURTHEST", "MOST_TRIALS", "SLACK", "Target", "TargetError", "Trial", "bisect", "fill", "gap",
    "once",
]  # fmt: skip

SLACK = 0.03  # a file may be this much smaller than its byte target
MOST_TRIALS = 14
FURTHEST = 0.2  # how far LR is moved between two neighbouring qualities
_NEAR = {"bytes": SLACK, "psnr": 0.05, "ssim": 0.001}
_RISE = {"bytes": 0.035, "psnr": 0.15, "ssim": 0.03}  # of _level, for each step of quality
_MOST_BETWEEN = 5  # trials between two neighbouring qualities


class TargetError(CarcodecError):
    """No setting meets the target."""


@dataclass(frozen=True)
class Target:
    """What to meet: at most ``value`` bytes, or at least ``value`` PSNR (dB, RGB) or SSIM (RGB)."""

    kind: Literal["bytes", "psnr", "ssim"]
    value: float


@dataclass(frozen=True)
class Trial:
    """One real encode.

    Attributes:
        quality: the storage codec's; ``None`` is lossless.
        encoded: the file.
        score: its bytes, PSNR or SSIM, whichever the target is about.
    """

    quality: float | None
    encoded: codec.Encoded
    score: float


def once(attempt: Callable[[float | None], Trial]) -> Callable[[float | None], Trial]:
    known: dict[float | None, Trial] = {}

    def run(quality: float | None) -> Trial:
        if quality not in known:
            known[quality] = attempt(quality)
        return known[quality]

    return run


def bisect(
    attempt: Callable[[float | None], Trial],
    target: Target,
    finest: float,
    start: float | None = None,
) -> tuple[Trial, Trial | None]:
    """Bisect quality down to steps of ``finest``; scores grow with it but for small unevenness.

    The trial that meets the target, and its neighbour beyond, if they are a step apart.
    """
    by_size = target.kind == "bytes"

    low, high = _bracket(attempt, target, start)
    if by_size:
        if low is None:
            assert high is not None
            raise TargetError(_nearest(target, high, "smallest"))
        if high is None:
            # lossless may be smaller than the highest lossy quality, and is better
            exact = attempt(None)
            return (low if _above(exact, target) else exact), None
    else:
        if low is None:
            assert high is not None
            return high, None
        if high is None:
            exact = attempt(None)
            if _above(exact, target):
                return exact, None
            raise TargetError(_nearest(target, max(low, exact, key=lambda t: t.score), "best"))
    for _ in range(MOST_TRIALS - 2):
        kept = low if by_size else high
        if abs(kept.score - target.value) <= gap(target) or _apart(low, high) < 1.5 * finest:
            break
        middle = attempt(_between(low, high, target, finest))
        if _above(middle, target):
            high = middle
        else:
            low = middle
    neighbours = _apart(low, high) < 1.5 * finest
    found, other = (low, high) if by_size else (high, low)
    return found, other if neighbours else None


def _bracket(
    attempt: Callable[[float | None], Trial], target: Target, start: float | None = None
) -> tuple[Trial | None, Trial | None]:
    """The last trial below the target and the first above it, from ``start`` or the middle on.

    ``None`` where there is none up to quality 0 or 100. High qualities take the most time to
    encode, so they are tried only where they are needed.
    """
    low: Trial | None = None
    high: Trial | None = None
    quality, least = (50.0, 4.0) if start is None else (float(round(start)), 2.0)
    while True:
        trial = attempt(quality)
        wanted = _level(target.kind, target.value) - _level(target.kind, trial.score)
        move = max(1.2 * abs(wanted) / _RISE[target.kind], least)
        if _above(trial, target):
            high = trial
            if low is not None or quality <= 0:
                return low, high
            quality = round(max(0.0, quality - move))
        else:
            low = trial
            if high is not None or quality >= 100:
                return low, high
            quality = round(min(100.0, quality + move))
        least *= 3


def _above(trial: Trial, target: Target) -> bool:
    """Larger than a byte target, or at least as good as a quality."""
    return trial.score > target.value if target.kind == "bytes" else trial.score >= target.value


def _level(kind: str, score: float) -> float:
    """A score on a scale on which it grows about evenly with quality."""
    if kind == "bytes":
        return math.log(max(score, 1))
    return score if kind == "psnr" else -math.log(max(1 - score, 1e-6))


def gap(target: Target) -> float:
    near = _NEAR[target.kind]
    return target.value * near if target.kind == "bytes" else near


def _apart(low: Trial, high: Trial) -> float:
    assert low.quality is not None and high.quality is not None
    return high.quality - low.quality


def fill(
    attempt: Callable[[float], Trial], low: Trial, high: Trial, target: Target
) -> Trial | None:
    """The nearest to the target that still meets it between two neighbouring qualities.

    ``attempt`` takes a share that is 0 at ``high`` and near ``FURTHEST`` at ``low``.
    """
    by_size = target.kind == "bytes"
    best: Trial | None = None
    near, far = (0.0, high.score), (FURTHEST, low.score)
    for _ in range(_MOST_BETWEEN):
        share = (near[1] - target.value) / max(near[1] - far[1], 1e-9)
        # the target itself is met on one side only
        share = min(max(share + (0.1 if by_size else -0.1), 0.1), 0.9)
        where = near[0] + share * (far[0] - near[0])
        trial = attempt(where)
        above = _above(trial, target)
        if above:
            near = (where, trial.score)
        else:
            far = (where, trial.score)
        if above != by_size:
            score, size = trial.score, len(trial.encoded.data)
            if best is None or (score > best.score if by_size else size < len(best.encoded.data)):
                best = trial
            if abs(score - target.value) <= gap(target):
                break
    return best


def _between(low: Trial, high: Trial, target: Target, finest: float) -> float:
    """Where the target should lie on the line between two trials, held off their ends."""
    assert low.quality is not None and high.quality is not None
    aim = target.value * (1 - SLACK / 2) if target.kind == "bytes" else target.value
    start, end, wanted = (_level(target.kind, s) for s in (low.score, high.score, aim))
    span = end - start
    share = (wanted - start) / span if 0 < span < math.inf else 0.5
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

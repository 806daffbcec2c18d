"""Curves, lists of (bpp, quality) with quality rising: hulls, BD figures, crossings."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carcodec.errors import MissingDependencyError

__all__ = ["Curve", "bd_quality", "bd_rate", "crossings", "hull", "monotone", "within"]

Curve = list[tuple[float, float]]


def hull(points: Curve) -> Curve:
    """The upper convex hull, from the lowest rate to the highest quality."""
    best: Curve = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if best and point[1] <= best[-1][1]:
            continue
        while len(best) > 1 and _turn(best[-2], best[-1], point) >= 0:
            best.pop()
        best.append(point)
    return best


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def monotone(points: Curve) -> Curve:
    """Points in order of rate, without those that a smaller file matches in quality."""
    kept: Curve = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or (point[1] > kept[-1][1] + 1e-9 and point[0] > kept[-1][0]):
            kept.append(point)
    return kept


def within(points: Curve, low: float, high: float) -> Curve:
    """A curve's part between two rates; ends interpolated in log rate, as the curve is drawn."""
    return list(_within(tuple(points), low, high))


@functools.lru_cache(maxsize=1 << 15)  # each curve meets every other one
def _within(
    points: tuple[tuple[float, float], ...], low: float, high: float
) -> tuple[tuple[float, float], ...]:
    kept = monotone(list(points))
    if len(kept) < 2:
        return ()
    ends = max(low, kept[0][0]), min(high, kept[-1][0])
    if ends[0] >= ends[1]:
        return ()
    line = _line(kept)
    middle = [p for p in kept if ends[0] < p[0] < ends[1]]
    return ((ends[0], line(ends[0])), *middle, (ends[1], line(ends[1])))


def _line(points: Curve) -> Any:
    pchip = _scipy().PchipInterpolator([math.log(p[0]) for p in points], [p[1] for p in points])
    return lambda rate: float(pchip(math.log(rate)))


def bd_rate(anchor: Curve, test: Curve, low: float = 0.0, high: float = math.inf) -> float:
    """Bjøntegaard's BD-rate in per cent: negative where ``test`` takes fewer bits.

    Of the parts of both curves between two rates, over the qualities both reach there; piecewise
    cubic (PCHIP) in the logarithm of rate, by the ``bjontegaard`` package. NaN where the two have
    no quality in common.

    Source: G. Bjøntegaard, VCEG-M33 (2001); piecewise cubic as in VCEG-AE07 (2007).
    """
    return _delta("bd_rate", anchor, test, low, high)


def bd_quality(anchor: Curve, test: Curve, low: float = 0.0, high: float = math.inf) -> float:
    """BD-PSNR, or that of another metric: ``test``'s mean gain at equal rate; else as bd_rate."""
    return _delta("bd_psnr", anchor, test, low, high)


def _delta(kind: str, anchor: Curve, test: Curve, low: float, high: float) -> float:
    a, t = within(anchor, low, high), within(test, low, high)
    if len(a) < 2 or len(t) < 2:
        return math.nan
    axis = 1 if kind == "bd_rate" else 0
    if max(a[0][axis], t[0][axis]) >= min(a[-1][axis], t[-1][axis]):
        return math.nan  # no quality, or no rate, in common
    try:
        import bjontegaard
    except ModuleNotFoundError as error:
        raise _missing("bjontegaard") from error
    (rate_a, level_a), (rate_t, level_t) = (np.array(curve).T for curve in (a, t))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of short overlaps: the range was asked for
        return float(
            getattr(bjontegaard, kind)(
                rate_a, level_a, rate_t, level_t,
                method="pchip", require_matching_points=False, min_overlap=0,
            )
        )  # fmt: skip


def crossings(anchor: Curve, test: Curve) -> list[tuple[float, float, bool]]:
    """Where ``test`` and ``anchor`` change places: (bpp, quality, test is better above)."""
    a, t = monotone(anchor), monotone(test)
    if len(a) < 2 or len(t) < 2:
        return []
    low, high = max(a[0][0], t[0][0]), min(a[-1][0], t[-1][0])
    if low >= high:
        return []
    line_a, line_t = _line(a), _line(t)
    rates = np.geomspace(low, high, 512)
    ahead: NDArray[Any] = np.array([line_t(r) - line_a(r) for r in rates])
    found = []
    for i in np.flatnonzero(np.sign(ahead[:-1]) * np.sign(ahead[1:]) < 0):
        share = ahead[i] / (ahead[i] - ahead[i + 1])
        rate = float(rates[i] * (rates[i + 1] / rates[i]) ** share)
        found.append((rate, line_t(rate), bool(ahead[i + 1] > 0)))
    return found


def _scipy() -> Any:
    try:
        from scipy import interpolate
    except ModuleNotFoundError as error:
        raise _missing("scipy") from error
    return interpolate


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f'comparing needs {package}: pip install "carcodec[compare]"')

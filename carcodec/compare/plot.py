"""Rate-distortion figures for papers, through matplotlib."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carcodec.compare import curves
from carcodec.errors import MissingDependencyError

if TYPE_CHECKING:
    from carcodec.compare.comparison import Comparison

__all__ = ["COLOURS", "colour", "figure", "rendered", "require", "usual"]

# Okabe and Ito's palette and grey, told apart by colour-blind readers; carcodec's hull is black.
COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9",
    "#d55e00", "#8c8c00", "#7a5195", "#6b6b6b",
)  # fmt: skip


def require() -> None:
    """Look that plots can be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError('plots need matplotlib: pip install "carcodec[compare]"')


def usual(comparison: Comparison) -> list[str]:
    """Curves shown unless others are asked for: carcodec's, and what it is held against."""
    return [*comparison.ours, *comparison.anchors]


def colour(comparison: Comparison, name: str) -> str:
    """A curve's colour, the same in every figure of a comparison."""
    if name == "carcodec":
        return "#000000"
    others = [n for n in (*usual(comparison), *comparison.names) if n != "carcodec"]
    return COLOURS[list(dict.fromkeys(others)).index(name) % len(COLOURS)]


def figure(
    comparison: Comparison, metric: str, picture: str = "", names: Sequence[str] = ()
) -> Any:
    """A matplotlib Figure: rate in bits per pixel on a logarithmic axis, quality by ``metric``.

    Args:
        metric: one that was measured.
        picture: that picture's curves; the mean over all of them where it is left out.
        names: codecs and families to draw; :func:`usual` ones where they are left out.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = comparison.rates
    drawn = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    axes = drawn.add_subplot()
    levels: list[float] = []
    for name in names or usual(comparison):
        points = curves.monotone(comparison.curve(name, metric, picture))
        if not points:
            continue
        ours = name.startswith("carcodec")
        inside = [p for p in points if low <= p[0] <= high]
        levels += [p[1] for p in inside]
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            color=colour(comparison, name),
            linewidth=2 if ours else 1.4,
            linestyle="-" if name == "carcodec" or not ours else "--",
            marker="" if ours else "o",
            markersize=3,
            label=comparison.title(name),
        )
    axes.set_xscale("log")
    axes.set_xlim(max(low, 0.01), high)
    if levels:
        margin = 0.04 * (max(levels) - min(levels)) or 1
        axes.set_ylim(min(levels) - margin, max(levels) + margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bits per pixel, whole file")
    axes.set_ylabel(comparison.measure(metric).axis)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    count = len(comparison.pictures)
    axes.set_title(picture or f"mean of {count} picture{'s' * (count != 1)}", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return drawn


def rendered(drawn: Any, kind: str) -> bytes:
    """The figure as ``png`` or ``svg``, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "carcodec", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def finite(value: float, digits: int) -> float | None:
    """Rounded for JSON, which has no NaN."""
    return round(value, digits) if math.isfinite(value) else None

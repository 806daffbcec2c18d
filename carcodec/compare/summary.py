"""What the terminal says of a comparison."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from carcodec.compare.comparison import Comparison, Delta

__all__ = ["lines"]


def lines(comparison: Comparison, branches: bool = False) -> list[Any]:
    """For Rich to print: a BD-rate table for each metric, and where the curves cross."""
    anchors = comparison.anchors
    every = [n for n in comparison.names if n not in anchors]
    shown = every if branches else comparison.ours
    if not shown or not anchors:  # nothing of carcodec's, or nothing else: everything with all
        shown = anchors = comparison.names
    count = len(comparison.pictures)
    low, high = comparison.rates
    found: list[Any] = []
    for metric in comparison.metrics:
        title = comparison.measure(metric).title
        deltas = {anchor: comparison.bd_rate(anchor, metric) for anchor in anchors}
        # few columns and many rows, as a terminal of 80 columns has them
        turned = len(shown) < len(anchors)
        across, down = (shown, anchors) if turned else (anchors, shown)
        found.append(
            f"BD-rate, %, at equal {title}, {low:g}–{high:g} bpp, "
            f"{count} picture{'s' * (count != 1)}; negative is fewer bits"
        )
        titles = (comparison.title(name) for name in across)
        table = Table("against" if turned else "of / against", *titles)
        table.columns[0].no_wrap = True
        for name in down:
            pairs = [(name, other) if turned else (other, name) for other in across]
            cells = [_cell(deltas[anchor].get(ours), count) for anchor, ours in pairs]
            table.add_row(comparison.title(name), *cells)
        found.append(table)
        if "carcodec" in comparison.families:
            for anchor in anchors:
                for crossing in comparison.crossovers(anchor, metric):
                    if crossing.codec == "carcodec":
                        better = "carcodec" if crossing.better_above else comparison.title(anchor)
                        found.append(
                            f"{title}: above {crossing.bpp:.2g} bpp "
                            f"{better} is better, of carcodec and {comparison.title(anchor)}"
                        )
    return found


def _cell(delta: Delta | None, count: int) -> str:
    if delta is None:
        return ""
    if math.isnan(delta.mean):
        return "no overlap"
    few = "" if delta.overlapping == count else f" ({delta.overlapping})"
    return f"{delta.mean:+.1f}{few}"

"""What the terminal says of a comparison."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from carcodec.compare.comparison import Comparison

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
        table = Table(
            "bits, %",
            *(comparison.title(anchor) for anchor in anchors),
            title=f"BD-rate at equal {title}, {low:g}–{high:g} bpp, "
            f"{count} picture{'s' * (count != 1)}; negative is fewer",
            title_justify="left",
        )
        deltas = {anchor: comparison.bd_rate(anchor, metric) for anchor in anchors}
        for name in shown:
            row = [comparison.title(name)]
            for anchor in anchors:
                delta = deltas[anchor].get(name)
                if delta is None:
                    row.append("")
                elif math.isnan(delta.mean):
                    row.append("no overlap")
                else:
                    few = "" if delta.overlapping == count else f" ({delta.overlapping})"
                    row.append(f"{delta.mean:+.1f}{few}")
            table.add_row(*row)
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

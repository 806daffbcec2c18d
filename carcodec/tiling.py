"""Run a network over tiles of any image, in bounded memory; the tile size never shows.

Windows overlap by the network's receptive field, so every kept pixel is computed from the
same neighbourhood as in one pass. All windows have one shape, which engines compile once, and
those at the border touch it, so that the network pads there as it would in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Span", "run", "spans"]

Block = NDArray[np.float32]
Span = tuple[int, int, int, int]


def spans(length: int, window: int, halo: int) -> list[Span]:
    """Cover ``range(length)`` with windows of equal size.

    Returns:
        ``(start, stop, keep_start, keep_stop)`` each: read start…stop, keep keep_start…keep_stop.
        The kept parts follow each other without gap or overlap; each is at least ``halo`` away
        from its window's ends except at 0 and ``length``.
    """
    if window <= 2 * halo:
        raise ValueError(f"a window of {window} is too small for a halo of {halo}")
    if length <= window:
        return [(0, length, 0, length)]
    found: list[Span] = []
    kept = 0
    while kept < length:
        start = min(max(kept - halo, 0), length - window)
        stop = start + window
        end = length if stop == length else stop - halo
        found.append((start, stop, kept, end))
        kept = end
    return found


def run(
    network: Callable[[Block], Block],
    size: tuple[int, int],
    halo: int,
    window: int,
    read: Callable[[slice, slice], Block],
    write: Callable[[slice, slice, NDArray[Any]], None],
    *,
    read_scale: int = 1,
    write_scale: int = 1,
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Run ``network`` over an image of ``size`` (width, height).

    ``size``, ``halo`` and ``window`` count LR pixels. ``read(rows, columns)`` gives the network's
    input ``(1, 3, h, w)`` and ``write(rows, columns, block)`` takes its output, ``(3, h, w)``;
    slices count LR pixels times ``read_scale`` or ``write_scale``. ``progress`` hears the finished
    share after each tile.
    """
    across, down = spans(size[0], window, halo), spans(size[1], window, halo)
    done = 0
    for top, bottom, first_row, last_row in down:
        for left, right, first_column, last_column in across:
            rows = slice(top * read_scale, bottom * read_scale)
            columns = slice(left * read_scale, right * read_scale)
            result = network(read(rows, columns))[0]
            s = write_scale
            kept = result[
                :,
                (first_row - top) * s : (last_row - top) * s,
                (first_column - left) * s : (last_column - left) * s,
            ]
            write(
                slice(first_row * s, last_row * s), slice(first_column * s, last_column * s), kept
            )
            done += 1
            progress(done / (len(across) * len(down)))

"""Run a network over tiles of any image, in bounded memory; the tile size never shows.

Windows overlap by the network's receptive field, so every kept pixel is computed from the
same neighbourhood as in one pass. All windows have one shape, which engines compile once, and
those at the border touch it, so that the network pads there as it would in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Span", "run", "spans"]

Block = NDArray[np.float32]
Span = tuple[int, int, int, int]
Network = Callable[[Iterator[Block]], Iterator[Block]]
Read = Callable[[slice, slice], Block]
Write = Callable[[slice, slice, NDArray[Any]], None]


_GRAIN = 16  # windows are multiples of it, so that photos of like sizes share their shape


def spans(length: int, window: int, halo: int) -> list[Span]:
    """Cover ``range(length)`` with the fewest windows of equal size, at most ``window``.

    They are as small as their number allows: what they repeat beyond the halo is wasted.

    Returns:
        ``(start, stop, keep_start, keep_stop)`` each: read start…stop, keep keep_start…keep_stop.
        The kept parts follow each other without gap or overlap; each is at least ``halo`` away
        from its window's ends except at 0 and ``length``.
    """
    if window <= 2 * halo:
        raise ValueError(f"a window of {window} is too small for a halo of {halo}")
    if length <= window:
        return [(0, length, 0, length)]
    count = -(-(length - 2 * halo) // (window - 2 * halo))
    least = -(-(length + 2 * halo * (count - 1)) // count)
    window = min(window, -(-least // _GRAIN) * _GRAIN)
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
    network: Network,
    size: tuple[int, int],
    halo: int,
    window: int,
    read: Read,
    write: Write,
    *,
    steps: int = 1,
    read_scale: int = 1,
    write_scale: int = 1,
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Run ``network`` over an image of ``size`` (width, height).

    ``network`` takes the tiles as it needs them, several ahead if it likes, and gives results in
    their order. ``size``, ``halo`` and ``window`` count LR pixels. ``read(rows, columns)`` gives
    the network's input ``(1, 3, h, w)`` and ``write(rows, columns, block)`` takes its output,
    ``(3, h, w)``; slices count LR pixels times ``read_scale`` or ``write_scale``. ``progress``
    hears the finished share after each tile.

    With several ``steps`` the network is run over its own result. The scales are then one step's,
    ``halo`` and ``window`` count pixels of a step's smaller side, and ``size`` those of the
    smallest image. What is between is held whole, in float32: next to the large image, that is a
    quarter of its pixels or less.
    """
    factors = [(read_scale * write_scale) ** step for step in range(steps)]
    if read_scale > 1:
        factors.reverse()
    sizes = [(size[0] * factor, size[1] * factor) for factor in factors]
    grids = [
        [
            (row, column)
            for row in spans(down, window, halo)
            for column in spans(across, window, halo)
        ]
        for across, down in sizes
    ]

    def part(span: Span, scale: int) -> slice:
        return slice(span[0] * scale, span[1] * scale)

    s, done, count = write_scale, 0, sum(map(len, grids))
    for more, (across, down), tiles in zip(reversed(range(steps)), sizes, grids, strict=True):
        between = np.empty((3, down * s, across * s) if more else 0, np.float32)
        target = partial(_put, between) if more else write
        taken = (read(part(row, read_scale), part(column, read_scale)) for row, column in tiles)
        for (row, column), result in zip(tiles, network(taken), strict=True):
            (top, _, first_row, last_row), (left, _, first_column, last_column) = row, column
            kept = result[
                0,
                :,
                (first_row - top) * s : (last_row - top) * s,
                (first_column - left) * s : (last_column - left) * s,
            ]
            rows = slice(first_row * s, last_row * s)
            target(rows, slice(first_column * s, last_column * s), kept)
            done += 1
            progress(done / count)
        read = partial(_part, between)


def _put(planes: Block, rows: slice, columns: slice, block: Block) -> None:
    planes[:, rows, columns] = block


def _part(planes: Block, rows: slice, columns: slice) -> Block:
    return np.ascontiguousarray(planes[None, :, rows, columns])

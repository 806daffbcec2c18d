"""The picture sheet of a run: for some held-out photos HR, LR, what is restored, and the error."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["sheet"]

_SIDE = 192  # pixels of a photo that are shown, at most
_GAP, _TITLE = 4, 16
_GAIN = 8  # of the error, around middle grey
Picture = NDArray[np.float32]


def sheet(rows: Sequence[tuple[Picture, Picture, Picture]], scale: int) -> bytes:
    """A PNG of one row a photo: ``(hr, lr, restored)``, each ``(H, W, 3)`` in [0, 1].

    The middle is shown at one screen pixel a pixel, LR enlarged by repeating pixels, and the error
    eight times as strong as it is, grey where there is none.
    """
    tiles = [_tiles(row, scale) for row in rows]
    width = sum(tile.shape[1] + _GAP for tile in tiles[0]) - _GAP
    height = _TITLE + sum(line[0].shape[0] + _GAP for line in tiles) - _GAP
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    titles = ("photo", "LR", "restored", f"error ×{_GAIN}")
    top = _TITLE
    for number, line in enumerate(tiles):
        left = 0
        for title, tile in zip(titles, line, strict=True):
            page.paste(Image.fromarray(tile), (left, top))
            if number == 0:
                pen.text((left + 2, 2), title, fill="black")
            left += tile.shape[1] + _GAP
        top += line[0].shape[0] + _GAP
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _tiles(row: tuple[Picture, Picture, Picture], scale: int) -> list[NDArray[np.uint8]]:
    photo, small, restored = row
    side = max(1, min(_SIDE // scale, *small.shape[:2]))
    top, left = ((length - side) // 2 for length in small.shape[:2])
    large = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
    lr = small[top : top + side, left : left + side].repeat(scale, 0).repeat(scale, 1)
    error = 0.5 + _GAIN * (restored - photo)
    shown = (photo[large], lr, restored[large], error[large])
    return [np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8) for part in shown]

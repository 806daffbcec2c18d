"""Which pictures a half-size image would lose: screenshots, drawings, small text, fine patterns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from carcodec.pixels import Plane

__all__ = ["needs_full_size"]

_LEAST = 16  # pixels a side: fewer say nothing
_ROWS = 64  # in a strip
_ENOUGH = 2**21  # pixels to look at, strips of them


def needs_full_size(colour: Plane) -> bool:
    """Whether half the size loses so much of a picture that full size takes fewer bits.

    What bicubic interpolation makes of a half-size image is compared with the picture, over those
    pixels alone that are not just as their neighbours are: a PSNR of less than 21 dB says yes. Of
    screenshots and drawings most pixels are as their neighbours, and edges as steep as can be;
    since JPEG spreads noise around these, it is up to 26 dB the more of the picture is flat.
    docs/SETTINGS.md has what that finds, and what it is worth.

    Args:
        colour: ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16.
    """
    if min(colour.shape[:2]) < _LEAST:
        return False
    flat, pixels, lost, samples = np.sum([_looked_at(part) for part in _strips(colour)], 0)
    share = flat / pixels
    if share == 1:  # of one colour
        return False
    return bool(lost / (samples * (1 - share)) > 255**2 / 10 ** ((21 + 5 * share) / 10))


def _strips(colour: Plane) -> Iterator[Plane]:
    height, width = colour.shape[:2]
    apart = _ROWS * -(-height * width // _ENOUGH)
    for top in range(0, height - 1, apart):
        yield colour[top : top + _ROWS]


def _looked_at(part: Plane) -> tuple[int, int, float, int]:
    """Pixels as those to the right and below, of how many; squared error in levels of 8 bits, over
    how many samples.
    """
    same = (part[:-1, :-1] == part[:-1, 1:]) & (part[:-1, :-1] == part[1:, :-1])
    same = same.all(2) if same.ndim == 3 else same
    levels = (part >> 8).astype(np.uint8) if part.dtype == np.uint16 else part
    height, width = levels.shape[:2]
    whole = Image.fromarray(levels)
    half = whole.resize(((width + 1) // 2, (height + 1) // 2), Image.Resampling.BICUBIC)
    back = np.asarray(half.resize((width, height), Image.Resampling.BICUBIC))
    error = np.square(back.astype(np.float32) - levels).sum(dtype=np.float64)
    return int(np.count_nonzero(same)), same.size, float(error), levels.size

"""Geometric self-ensemble: the mean of what a network restores of eight views of one small image.

The views are the image mirrored and turned, and each result is turned back: Timofte et al., Seven
ways to improve example-based single image super resolution (CVPR 2016), section 3.7; EDSR+ of Lim
et al. (CVPRW 2017). It takes eight times as long.

It is for models whose small image does not know left from right. A downscaler that has learned
writes detail into its small image that its upscaler reads there and not in the mirrored one:
car-x2 loses 0.8 dB of kodim05 by it, tad-x2 nine. A storage codec does not know either, but has a
lattice: blocks of even size begin at even pixels, and a wavelet transform keeps what is smooth in
the even pixels and what is not in the odd ones. A network that takes several pixels at once has
learned which are which, so mirroring keeps them in their places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carcodec import storage, zoo
from carcodec.errors import ImageError

__all__ = ["averaged", "check"]

Plane = NDArray[np.uint8] | NDArray[np.uint16]
Restore = Callable[[storage.Pixels, tuple[int, int], Callable[[float], None]], Plane]
_VIEWS = [(turn, rows, columns) for turn in (0, 1) for rows in (0, 1) for columns in (0, 1)]


def check(card: zoo.ModelCard) -> None:
    """That views of a small image of this model are as good as the image.

    Raises:
        ImageError: they are not, or no network restores it.
    """
    if card.upscaler.family == "bicubic":
        raise ImageError(f"{card.name} restores without a network: there is nothing to average")
    if not card.mirrors:
        raise ImageError(
            f"the small image of {card.name} is worth less when mirrored, for its downscaler has "
            "learned: a self-ensemble is for models that store the photo's own pixels, such as "
            "car-x1-avif"
        )


def averaged(
    restore: Restore,
    small: storage.Pixels,
    size: tuple[int, int],
    card: zoo.ModelCard,
    codec: storage.StorageCodec,
    progress: Callable[[float], None],
) -> Plane:
    """The mean over eight views of ``small``, restored to ``size`` (width, height).

    Args:
        restore: what restores one view to a size, and reports the finished share.
        small: LR ``(h, w)`` or ``(h, w, 3)`` uint8; a part begins at a multiple of the network's
            stride.
        codec: what stored it; its lattice decides where a mirrored image begins.
    """
    width, height = size
    stride, first = card.upscaler.stride, int(codec.wavelet)
    total: Any = 0
    for done, (turn, rows, columns) in enumerate(_VIEWS):
        view, (across, down) = small, size
        for axis, mirrored in enumerate((rows, columns)):
            if mirrored:
                view = _mirrored(view, axis, stride, first)
        if rows:
            down = view.shape[0] * card.scale
        if columns:
            across = view.shape[1] * card.scale
        if turn:
            view, (across, down) = view.swapaxes(0, 1), (down, across)

        def report(share: float, done: int = done) -> None:
            progress((done + share) / len(_VIEWS))

        found = restore(np.ascontiguousarray(view), (across, down), report)
        if turn:
            found = found.swapaxes(0, 1)
        found = found[:: -1 if rows else 1, :: -1 if columns else 1][:height, :width]
        total = total + found.astype(np.uint32 if found.dtype == np.uint16 else np.uint16)
    total += len(_VIEWS) // 2
    total //= len(_VIEWS)
    mean: Plane = total.astype(found.dtype)
    return mean


def _mirrored(image: storage.Pixels, axis: int, stride: int, first: int) -> storage.Pixels:
    """Mirrored along an axis, longer where the first pixel would be another of the stride's."""
    missing = [(0, 0)] * image.ndim
    missing[axis] = (0, (first - image.shape[axis]) % stride)
    return np.flip(np.pad(image, missing, "edge"), axis)

"""The adaptive resampler as a CUDA kernel: its source, its entry points, and how to launch them.

A leaf: it imports nothing else of carcodec, and nothing but the standard library.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["ARCHITECTURE", "SOURCE", "Entry", "backward_entry", "entry", "geometry"]

SOURCE = Path(__file__).with_name("resampler.cu")  # needs no headers
ARCHITECTURE = "compute_75"  # the oldest that CUDA 13 knows; drivers translate it for later ones
_BLOCK = (32, 4)
# of the fast kernels, by scale; their part of the photo fills up to 48 KiB of shared memory
_TILES = {2: (32, 8), 3: (32, 8), 4: (32, 4)}
_Triple = tuple[int, int, int]


class Entry(NamedTuple):
    """A kernel in the source, and the threads across and down of its blocks, an LR pixel each."""

    name: str
    block: tuple[int, int]


def entry(dtype: str, scale: int, kernel: int) -> Entry:
    """The kernel to launch: a fast one for kernels of 3 LR pixels at scales 2, 3 and 4.

    Args:
        dtype: of photo, heads and LR: ``float32`` or ``float16``.
        scale: HR pixels per LR pixel.
        kernel: taps a side.

    Raises:
        ValueError: another dtype.
    """
    kinds = {"float32": "f32", "float16": "f16"}
    if dtype not in kinds:
        raise ValueError(f"the resampler works on float32 and float16, not {dtype}")
    kind = kinds[dtype]
    if kernel == 3 * scale and scale in _TILES:
        return Entry(f"carcodec_resample_{kind}_x{scale}", _TILES[scale])
    return Entry(f"carcodec_resample_{kind}", _BLOCK)


def backward_entry() -> Entry:
    """The kernel of the gradients, float32 only."""
    return Entry("carcodec_resample_backward_f32", _BLOCK)


def geometry(
    count: int, height: int, width: int, block: tuple[int, int] = _BLOCK
) -> tuple[_Triple, _Triple]:
    """Grid and block for ``count`` LR images of ``height``×``width``.

    A warp is one row of a block, or two, so that its loads of weights and offsets are consecutive.
    """
    across, down = block
    return (-(-width // across), -(-height // down), count), (across, down, 1)

"""The adaptive resampler as a CUDA kernel: its source, its entry points, and how to launch them.

A leaf: it imports nothing else of carcodec, and nothing but the standard library.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER", "Triple", "backward_entry", "entry", "geometry", "source"]

FOLDER = Path(__file__).parent
_BLOCK = (32, 4)  # threads across and down
_FAST = (6, 9, 12)  # kernels that have an entry of their own
Triple = tuple[int, int, int]


def source() -> str:
    """The CUDA source, which needs no headers."""
    return (FOLDER / "resampler.cu").read_text("utf-8")


def entry(dtype: str, kernel: int, width: int) -> tuple[str, int]:
    """The kernel to launch, and how many LR pixels each of its threads makes.

    Args:
        dtype: of photo, heads and LR: ``float32`` or ``float16``.
        kernel: taps a side.
        width: of LR. The fast kernels load two neighbours at once and want an even one.

    Raises:
        ValueError: another dtype.
    """
    kinds = {"float32": "f32", "float16": "f16"}
    if dtype not in kinds:
        raise ValueError(f"the resampler works on float32 and float16, not {dtype}")
    name = f"carcodec_resample_{kinds[dtype]}"
    if kernel in _FAST and width % 2 == 0:
        return f"{name}_k{kernel}", 2
    return name, 1


def backward_entry() -> tuple[str, int]:
    """The kernel of the gradients, float32 only, and its LR pixels per thread."""
    return "carcodec_resample_backward_f32", 1


def geometry(count: int, height: int, width: int, pixels: int = 1) -> tuple[Triple, Triple]:
    """Grid and block for ``count`` LR images of ``height``×``width``, ``pixels`` for each thread.

    A warp is one row of a block, so that its loads of weights and offsets are consecutive.
    """
    across, down = _BLOCK
    grid = (-(-width // (across * pixels)), -(-height // down), count)
    return grid, (across, down, 1)

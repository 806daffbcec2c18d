"""A 3×3 convolution on tensor cores as a CUDA kernel: its source, and how it is launched.

It takes what surrounds a convolution in EDSR's residual blocks along, and for few features, which
cuDNN runs at a tenth of what the card can do.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARCHITECTURE",
    "FEATURES",
    "SOURCE",
    "THREADS",
    "entry",
    "places",
    "shared_bytes",
    "tiles",
]

SOURCE = Path(__file__).with_name("convolution.cu")  # needs no headers
ARCHITECTURE = "compute_80"  # the first with these instructions
FEATURES = (32, 48)  # of which there are kernels
THREADS = 128
_TILE = 16


def entry(features: int) -> str:
    """The kernel to launch, with :data:`THREADS` threads a block and any number of blocks."""
    return f"carcodec_convolve_{features}"


def tiles(count: int, height: int, width: int) -> int:
    """How many blocks have something to do."""
    return count * -(-height // _TILE) * -(-width // _TILE)


def shared_bytes(features: int) -> int:
    """Dynamic shared memory of a block: all weights and a tile's features, with those around it."""
    return 2 * features * (9 * features + (_TILE + 2) ** 2)


@functools.cache
def places(features: int) -> NDArray[np.int64]:
    """Where in ``(features, features, 3, 3)`` the kernel's weights lie, in its order.

    By column and row of the 3×3, 16 features that are read, two tiles of eight that result, and
    lane: what a lane hands to two instructions ``mma.m16n8k16``, in one load of 16 bytes. Which
    features a tile has is chosen so that a lane's results are consecutive.
    """
    tap, part, pair, lane, tile, high, low = np.ogrid[
        :9, : features // 16, : features // 16, :32, :2, :2, :2
    ]
    given = 16 * part + 8 * high + 2 * (lane % 4) + low
    number, column = 2 * pair + tile, lane // 4
    together = np.where(number // 4 * 4 + 4 <= features // 8, 4, 2)  # tiles that a lane stores
    first = number - number % together
    found = 8 * first + 2 * together * (column // 2) + 2 * (number - first) + column % 2
    where: NDArray[np.int64] = (found * features + given) * 9 + tap
    return where.ravel()

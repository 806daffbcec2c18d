"""MATLAB's ``imresize``, the resampler of the super-resolution papers' baselines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNELS", "imresize"]

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((x >= -0.5) & (x < 0.5), np.float64)


def _lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: dict[str, tuple[Kernel, float]] = {  # and its whole width
    "bicubic": (_cubic, 4.0),
    "box": (_box, 1.0),
    "lanczos3": (_lanczos3, 6.0),
}


def imresize(image: NDArray[Any], size: tuple[int, int], kernel: str = "bicubic") -> NDArray[Any]:
    """``image`` ``(H, W)`` or ``(H, W, C)`` resized to ``size`` (width, height).

    As MATLAB's ``imresize`` does it by default: the kernel is widened when shrinking
    (antialiasing), borders are reflected with the edge repeated, the axis that shrinks most goes
    first, and uint8 is rounded between the two axes and at the end, halves away from zero. Floats
    are not rounded.
    """
    width, height = size
    scales = {0: height / image.shape[0], 1: width / image.shape[1]}
    rounded = image.dtype == np.uint8
    found: NDArray[Any] = image.astype(np.float64)
    for axis in sorted(scales, key=lambda a: scales[a]):
        weights, indices = _contributions(
            image.shape[axis], (height, width)[axis], scales[axis], kernel
        )
        lines = np.moveaxis(found, axis, 0)
        total = np.zeros((len(weights), *lines.shape[1:]))
        for tap in range(weights.shape[1]):
            shape = (-1,) + (1,) * (lines.ndim - 1)
            total += weights[:, tap].reshape(shape) * lines[indices[:, tap]]
        found = np.moveaxis(total, 0, axis)
        if rounded:
            found = np.floor(np.clip(found, 0, 255) + 0.5)
    return found.astype(np.uint8) if rounded else found


def _contributions(
    length: int, out_length: int, scale: float, kernel: str
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Normalised weights and source positions of each output position, ``(out_length, taps)``."""
    function, width = KERNELS[kernel]
    shrink = min(scale, 1.0)
    width /= shrink
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2)
    taps = math.ceil(width) + 2
    positions = first[:, None] + np.arange(taps)
    weights = shrink * function(shrink * (centre[:, None] - positions))
    weights /= weights.sum(1, keepdims=True)
    period = np.concatenate((np.arange(length), np.arange(length)[::-1]))
    indices = period[np.mod(positions.astype(np.intp), 2 * length)]
    used = np.any(weights != 0, 0)
    return weights[:, used], indices[:, used]

"""PSNR and SSIM of two pictures, each under a named protocol (docs/PROTOCOL.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["luma", "psnr", "ssim"]


def luma(image: NDArray[Any]) -> NDArray[np.float64]:
    """BT.601 Y in 16…235 of 8-bit RGB ``(H, W, 3)``, not rounded; grey ``(H, W)`` as R = G = B."""
    pixels = image.astype(np.float64)
    if pixels.ndim == 2:
        return 16 + pixels * (65.481 + 128.553 + 24.966) / 255
    weighted: NDArray[np.float64] = 16 + pixels @ np.array([65.481, 128.553, 24.966]) / 255
    return weighted


def psnr(original: NDArray[Any], restored: NDArray[Any], border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB over all samples of two arrays of one shape and dtype.

    The peak is 255 (uint8 and float) or 65535 (uint16); ``border`` pixels are left out on each
    side. Equal images give infinity.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    a, b = _pair(original, restored, border)
    error = float(np.mean((a - b) ** 2))
    peak = 65535 if original.dtype == np.uint16 else 255
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ssim(original: NDArray[Any], restored: NDArray[Any], border: int = 0) -> float:
    """Structural similarity (Wang et al. 2004), mean over the image and its channels.

    Gaussian window of 11 taps and sigma 1.5, K1 0.01, K2 0.03, no padding: windows lie wholly
    inside the image. Images smaller than the window give NaN.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    a, b = _pair(original, restored, border)
    if min(a.shape[:2]) < 11:
        return math.nan
    peak = 65535 if original.dtype == np.uint16 else 255
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(score.mean())


def _pair(
    original: NDArray[Any], restored: NDArray[Any], border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if original.shape != restored.shape or original.dtype != restored.dtype:
        raise ValueError(
            f"cannot compare {original.shape} {original.dtype} with "
            f"{restored.shape} {restored.dtype}"
        )
    inside = slice(border, -border or None)
    return (
        original[inside, inside].astype(np.float64),
        restored[inside, inside].astype(np.float64),
    )


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    for axis in (0, 1):
        count = image.shape[axis] - 10
        image = sum(tap * np.take(image, range(i, i + count), axis) for i, tap in enumerate(taps))
    return image

"""Quality of a restored picture, each figure under a named protocol (docs/PROTOCOL.md)."""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec.errors import MetricError

__all__ = ["METRICS", "Metric", "by_name", "luma", "ms_ssim", "psnr", "ssim"]

# Wang, Simoncelli and Bovik (2003), table 1
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


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
    error = squared_error(a, b) / a.size
    peak = 65535 if original.dtype == np.uint16 else 255
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def squared_error(original: NDArray[Any], restored: NDArray[Any]) -> float:
    """Sum over all samples; no copy of a whole image is made."""
    exact = original.dtype == np.uint8  # whole numbers, and ten times as fast
    kind, wide = (np.int32, np.int64) if exact else (np.float64, np.float64)
    total = 0.0
    for rows in _strips(original):
        difference = np.subtract(original[rows], restored[rows], dtype=kind)
        total += float(np.square(difference, out=difference).sum(dtype=wide))
    return total


def _strips(image: NDArray[Any], beyond: int = 0) -> Iterator[slice]:
    """Rows of an image, about a quarter of a megapixel each, and ``beyond`` more that they share.

    Figures of photos of hundreds of megapixels would take tens of gigabytes at once.
    """
    rows = max(2**18 // max(image.shape[1], 1), 16)
    for top in range(0, len(image) - beyond, rows):
        yield slice(top, top + rows + beyond)


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
    similarity, _ = _structure(a, b, 65535 if original.dtype == np.uint16 else 255)
    return float(np.mean(similarity))


def ms_ssim(original: NDArray[Any], restored: NDArray[Any]) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) over five scales.

    Windows and constants as :func:`ssim`'s; between scales 2×2 pixels are averaged, an odd last
    line left out. Contrast and structure are averaged over each scale before they are multiplied,
    negative averages counting as 0. Several channels are averaged. Images under 176 pixels a side,
    where the smallest scale has no room for a window, give NaN.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    a, b = _pair(original, restored, 0)
    if min(a.shape[:2]) < 11 * 2 ** (len(_MS_WEIGHTS) - 1):
        return math.nan
    peak = 65535 if original.dtype == np.uint16 else 255
    score: Any = 1.0
    for scale, weight in enumerate(_MS_WEIGHTS):
        if scale:
            a, b = _halve(a), _halve(b)
        similarity, contrast = _structure(a, b, peak)
        mean = similarity if scale == len(_MS_WEIGHTS) - 1 else contrast
        score = score * np.maximum(mean, 0) ** weight
    return float(np.mean(score))


def _structure(a: NDArray[Any], b: NDArray[Any], peak: int) -> tuple[Any, Any]:
    """SSIM, and its factor for contrast and structure alone: means over all windows, by channel."""
    sums: list[Any] = [0.0, 0.0]
    for rows in _strips(a, 10):
        found = _at_windows(a[rows].astype(np.float64), b[rows].astype(np.float64), peak)
        sums = [one + part.sum((0, 1)) for one, part in zip(sums, found, strict=True)]
    windows = (a.shape[0] - 10) * (a.shape[1] - 10)
    return sums[0] / windows, sums[1] / windows


def _at_windows(
    a: NDArray[np.float64], b: NDArray[np.float64], peak: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (var_a + var_b + c2)
    return contrast * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), contrast


def _halve(image: NDArray[Any]) -> NDArray[np.float64]:
    height, width = (side // 2 * 2 for side in image.shape[:2])
    found = np.zeros((height // 2, width // 2, *image.shape[2:]))
    for row in (0, 1):
        for column in (0, 1):
            found += image[row:height:2, column:width:2]
    found /= 4
    return found


def _pair(
    original: NDArray[Any], restored: NDArray[Any], border: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    if original.shape != restored.shape or original.dtype != restored.dtype:
        raise ValueError(
            f"cannot compare {original.shape} {original.dtype} with "
            f"{restored.shape} {restored.dtype}"
        )
    inside = slice(border, -border or None)
    return original[inside, inside], restored[inside, inside]


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    height, width = (side - 10 for side in image.shape[:2])
    image = _weighted(taps, [image[i : i + height] for i in range(11)])
    return _weighted(taps, [image[:, i : i + width] for i in range(11)])


def _weighted(taps: NDArray[np.float64], shifted: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = taps[0] * shifted[0]
    part = np.empty_like(total)
    for tap, view in zip(taps[1:], shifted[1:], strict=True):
        total += np.multiply(view, tap, out=part)
    return total


Compare = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]


@dataclass(frozen=True)
class Metric:
    """A figure that a comparison can be made by; higher is better unless ``falling``.

    Attributes:
        name: as the command line knows it.
        title: for axes and tables.
        compare: original and restored, RGB ``(H, W, 3)`` uint8, to the figure.
        unit: of the figure, or "".
        to_db: the figure is a similarity up to 1, which curves and BD-rates take as
            -10 log10(1 - x) dB.
        falling: lower is better: a distance.
        check: raises :class:`~carcodec.errors.MetricError` where it cannot be computed here.
    """

    name: str
    title: str
    compare: Compare
    unit: str = ""
    to_db: bool = False
    falling: bool = False
    check: Callable[[], object] = lambda: None

    def scale(self, value: float) -> float:
        """``value`` as curves are drawn and compared: rising, similarities in dB."""
        if self.to_db:
            return -10 * math.log10(max(1 - value, 1e-6))
        return -value if self.falling else value

    @property
    def axis(self) -> str:
        """What :meth:`scale` returns, for an axis."""
        if self.to_db:
            return f"{self.title}, −10 log₁₀(1 − x) [dB]"
        if self.falling:
            return f"−{self.title}"
        return f"{self.title} [{self.unit}]" if self.unit else self.title


def by_name(name: str) -> Metric:
    """The metric called ``name``, ready to use.

    Raises:
        MetricError: unknown, or what it needs is missing; says how to get it.
    """
    for metric in METRICS:
        if metric.name == name.lower():
            metric.check()
            return metric
    if name.lower() in ("lpips", "dists"):
        raise MetricError(
            f"{name} needs network weights that its packages download when they are used, which "
            f"carcodec does not do: choose one of {_names()}, or give carcodec.compare a "
            "carcodec.metrics.Metric of your own"
        )
    raise MetricError(f"unknown metric {name!r}: choose one of {_names()}")


def _names() -> str:
    return ", ".join(metric.name for metric in METRICS)


@functools.cache
def _ssimulacra2() -> Callable[[str, str], float]:
    try:
        import ssimulacra2
    except ModuleNotFoundError as error:
        raise MetricError(
            'the metric ssimulacra2 needs its package: pip install "carcodec[compare]"'
        ) from error
    compute: Callable[[str, str], float] = ssimulacra2.compute_ssimulacra2
    return compute


def _butteraugli_program() -> str:
    program = shutil.which("butteraugli_main")
    if program is None:
        raise MetricError(
            "the metric butteraugli needs libjxl's program butteraugli_main on the PATH: install "
            "libjxl-devtools (Debian, Ubuntu) or build libjxl with its devtools"
        )
    return program


def _through_files(
    original: NDArray[np.uint8],
    restored: NDArray[np.uint8],
    measure: Callable[[str, str], float],
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, image in (("original", original), ("restored", restored)):
            path = Path(folder) / f"{name}.png"
            Image.fromarray(image).save(path, compress_level=1)
            paths.append(str(path))
        return measure(paths[0], paths[1])


def _butteraugli(original: NDArray[np.uint8], restored: NDArray[np.uint8]) -> float:
    def measure(a: str, b: str) -> float:
        ran = subprocess.run(
            [_butteraugli_program(), a, b], capture_output=True, text=True, check=False
        )
        lines = ran.stdout.split()
        if ran.returncode or not lines:
            raise MetricError(f"butteraugli_main failed: {' '.join(ran.stderr.split())}")
        return float(lines[0])

    return _through_files(original, restored, measure)


METRICS: tuple[Metric, ...] = (
    Metric("psnr", "PSNR, RGB", psnr, "dB"),
    Metric("psnr-y", "PSNR, Y", lambda a, b: psnr(luma(a), luma(b)), "dB"),
    Metric("ssim", "SSIM, Y", lambda a, b: ssim(luma(a), luma(b)), to_db=True),
    Metric("ssim-rgb", "SSIM, RGB", ssim, to_db=True),
    Metric("ms-ssim", "MS-SSIM, Y", lambda a, b: ms_ssim(luma(a), luma(b)), to_db=True),
    Metric("ms-ssim-rgb", "MS-SSIM, RGB", ms_ssim, to_db=True),
    Metric(
        "ssimulacra2", "SSIMULACRA2", lambda a, b: _through_files(a, b, _ssimulacra2()),
        check=_ssimulacra2,
    ),
    Metric(
        "butteraugli", "Butteraugli", _butteraugli, falling=True, check=_butteraugli_program
    ),
)  # fmt: skip

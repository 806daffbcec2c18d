"""Downscalers that papers compare with: MATLAB's ``imresize``, DPID, perceptual, L0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DOWNSCALERS", "KERNELS", "downscale", "dpid", "imresize", "l0", "perceptual"]

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def _box_kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((x >= -0.5) & (x < 0.5), np.float64)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: dict[str, tuple[Kernel, float]] = {  # and its whole width
    "bicubic": (_cubic, 4.0),
    "bilinear": (_triangle, 2.0),
    "nearest": (_box_kernel, 1.0),
    "box": (_box_kernel, 1.0),
    "lanczos3": (_lanczos3, 6.0),
}


def imresize(image: NDArray[Any], size: tuple[int, int], kernel: str = "bicubic") -> NDArray[Any]:
    """``image`` ``(H, W)`` or ``(H, W, C)`` resized to ``size`` (width, height).

    As MATLAB's ``imresize`` does it by default: the kernel is widened when shrinking
    (antialiasing; ``nearest`` stays as it is), borders are reflected with the edge repeated, the
    axis that shrinks most goes first, and uint8 is rounded between the two axes and at the end,
    halves away from zero. Floats are not rounded.
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
    shrink = 1.0 if kernel == "nearest" else min(scale, 1.0)
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


def downscale(image: NDArray[np.uint8], scale: int, kind: str = "bicubic") -> NDArray[np.uint8]:
    """``(H, W)`` or ``(H, W, C)``, sides multiples of ``scale``, by one of :data:`DOWNSCALERS`."""
    if kind == "dpid":
        return dpid(image, scale)
    if kind == "perceptual":
        return perceptual(image, scale)
    if kind == "l0":
        return l0(image, scale)
    size = (image.shape[1] // scale, image.shape[0] // scale)
    return np.asarray(imresize(image, size, kind), np.uint8)


DOWNSCALERS = (*KERNELS, "dpid", "perceptual", "l0")


def dpid(image: NDArray[np.uint8], scale: int, power: float = 1.0) -> NDArray[np.uint8]:
    """Detail-preserving downscaling.

    Each LR pixel is a mean of its HR pixels, weighed by their colour's distance, to ``power``, from
    what surrounds it: box-downscaled LR smoothed with [1 2 1] on either axis. 0 is the plain
    mean, larger keeps more detail; 1 is the authors' own default.

    Source: Weber, Waechter, Amend, Guthe and Goesele, "Rapid, detail-preserving image downscaling",
    ACM TOG 35 (2016).
    """
    cells = _cells(image.astype(np.float64), scale)  # (h, w, s*s, C)
    mean = cells.mean(2)
    smooth = mean
    for axis in (0, 1):
        before, after = _shifted(smooth, axis, 1), _shifted(smooth, axis, -1)
        smooth = (before + 2 * smooth + after) / 4
    distance = np.sqrt(np.square(cells - smooth[:, :, None]).sum(-1, keepdims=True))
    weights = (distance / (255 * 3**0.5)) ** power
    total = weights.sum(2)
    flat = total < 1e-12
    small = np.where(flat, mean, (weights * cells).sum(2) / np.where(flat, 1, total))
    return _levels(small).reshape(mean.shape[:2] + image.shape[2:])


def perceptual(image: NDArray[np.uint8], scale: int, patch: int = 2) -> NDArray[np.uint8]:
    """Perceptually based downscaling: LR whose patches have HR's local means and contrasts.

    The closed form that maximises SSIM between HR and LR over all ``patch``×``patch`` LR patches,
    channel by channel (section 3 and its pseudo-code).

    Source: Öztireli and Gross, "Perceptually based downscaling of images", ACM TOG 34 (2015).
    """
    cells = _cells(image.astype(np.float64), scale)
    small, squares = cells.mean(2), np.square(cells).mean(2)
    mean = _box(small, patch)
    low = _box(np.square(small), patch) - np.square(mean)
    high = _box(squares, patch) - np.square(mean)
    ratio = np.sqrt(np.maximum(high, 0) / np.where(low < 1e-6, 1, low))
    ratio[low < 1e-6] = 0
    count = _spread(np.ones_like(mean), patch)
    found = _spread(mean, patch) + _spread(ratio, patch) * small - _spread(ratio * mean, patch)
    return _levels(found / count).reshape(small.shape[:2] + image.shape[2:])


def l0(
    image: NDArray[np.uint8],
    scale: int,
    *,
    far: float = 0.1,
    edge: float = 0.04,
    weight: float = 0.025,
    rounds: int = 8,
) -> NDArray[np.uint8]:
    """Downscaling under two L0 priors, a reading: the publication's formulae were not at hand.

    The reconstruction prior wants LR's bilinear enlargement to meet HR in all but a few pixels.
    The gradient-ratio prior lets as large a share of HR's edge pixels be edges in LR as lines keep
    when they shrink, one in ``scale``, and wants everything else flat. Either is met by keeping
    the largest values, in turn with the least squares of both for LR, which is solved by conjugate
    gradients. As in the table V of the CAR paper, LR takes more bits than any other downscaler's.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, sides multiples of ``scale``.
        scale: HR pixels per LR pixel.
        far: distance of colours, of a range of 1, from which an HR pixel is given up.
        edge: difference of neighbours, of that range, from which one is an edge pixel.
        weight: of the gradients, for each HR pixel.
        rounds: how often both are met.

    Source: the two priors and their taking turns are those of Liu, He and Lau, "L0-regularized
    image downscaling", IEEE TIP 27 (2018), as Sun and Chen (CAR) describe it.
    """
    photo = (image[..., None] if image.ndim == 2 else image).astype(np.float64) / 255
    down, across = (_enlarging(length // scale, scale) for length in photo.shape[:2])
    penalty = weight * scale**2

    def enlarged(small: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.einsum("yi,ijc,xj->yxc", down, small, across, optimize=True))

    def gathered(large: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.einsum("yi,yxc,xj->ijc", down, large, across, optimize=True))

    bands = _bands(down), _bands(across)

    def normal(small: NDArray[np.float64]) -> NDArray[np.float64]:
        both = _tridiagonal(_tridiagonal(small, bands[0], 0), bands[1], 1)
        return both + penalty * _divergence(*_gradients(small))

    edges = sum(np.abs(g).max(-1) > edge for g in _gradients(photo)).sum() / 2
    size = (photo.shape[1] // scale, photo.shape[0] // scale)
    small = np.asarray(imresize(photo, size), np.float64)
    kept = min(int(edges / scale), small.shape[0] * small.shape[1] - 1)
    for _ in range(rounds):
        slopes = _gradients(small)
        steep = sum(np.abs(g).sum(-1) for g in slopes)
        flat = steep <= np.partition(steep.ravel(), -kept - 1)[-kept - 1]
        slopes = tuple(np.where(flat[..., None], 0, g) for g in slopes)
        missed = photo - enlarged(small)
        missed[np.square(missed).sum(-1) <= far**2] = 0
        wanted = gathered(photo - missed) + penalty * _divergence(*slopes)
        small = _conjugate_gradients(normal, wanted, small)
    return _levels(255 * small).reshape(small.shape[:2] + image.shape[2:])


def _enlarging(length: int, scale: int) -> NDArray[np.float64]:
    """Bilinear enlargement of a line, ``(length * scale, length)``."""
    return np.asarray(imresize(np.eye(length), (length, length * scale), "bilinear"))


def _bands(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The diagonal of ``lines.T @ lines`` and the one beside it after a 0, ``(2, n)``.

    An enlarged pixel lies between two of LR: there is nothing further from the diagonal.
    """
    beside = (lines[:, 1:] * lines[:, :-1]).sum(0)
    return np.stack([np.square(lines).sum(0), np.concatenate([[0.0], beside])])


def _tridiagonal(
    image: NDArray[np.float64], bands: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """A symmetric tridiagonal matrix, by its :func:`_bands`, times every line along ``axis``."""
    main, beside = (b[:, None, None] if axis == 0 else b[None, :, None] for b in bands)
    found: NDArray[np.float64] = main * image
    if axis == 0:
        found[1:] += beside[1:] * image[:-1]
        found[:-1] += beside[1:] * image[1:]
    else:
        found[:, 1:] += beside[:, 1:] * image[:, :-1]
        found[:, :-1] += beside[:, 1:] * image[:, 1:]
    return found


def _gradients(image: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Differences to the pixels below and right; 0 at the last."""
    below, right = np.zeros_like(image), np.zeros_like(image)
    below[:-1], right[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
    return below, right


def _divergence(below: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transpose of :func:`_gradients`."""
    found = np.zeros_like(below)
    found[:-1] -= below[:-1]
    found[1:] += below[:-1]
    found[:, :-1] -= right[:, :-1]
    found[:, 1:] += right[:, :-1]
    return found


def _conjugate_gradients(
    normal: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    wanted: NDArray[np.float64],
    start: NDArray[np.float64],
    steps: int = 40,
) -> NDArray[np.float64]:
    """x of ``normal(x) = wanted``."""
    found, rest = start, wanted - normal(start)
    along, far = rest, np.square(rest).sum()
    for _ in range(steps):
        if far < 1e-10:
            break
        image = normal(along)
        step = far / (along * image).sum()
        found, rest = found + step * along, rest - step * image
        before, far = far, np.square(rest).sum()
        along = rest + far / before * along
    return found


def _cells(image: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """The HR pixels of each LR pixel, ``(h, w, s*s, C)``."""
    planes = image[..., None] if image.ndim == 2 else image
    h, w = planes.shape[0] // scale, planes.shape[1] // scale
    split = planes[: h * scale, : w * scale].reshape(h, scale, w, scale, -1)
    return split.transpose(0, 2, 1, 3, 4).reshape(h, w, scale**2, -1)


def _shifted(image: NDArray[np.float64], axis: int, by: int) -> NDArray[np.float64]:
    """Moved by one along an axis, the edge repeated."""
    length = image.shape[axis]
    return np.take(image, np.clip(np.arange(length) - by, 0, length - 1), axis)


def _box(image: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Means over every ``side``×``side`` patch wholly inside: ``(h-side+1, w-side+1, C)``."""
    h, w = (length - side + 1 for length in image.shape[:2])
    shifts = [(i, j) for i in range(side) for j in range(side)]
    total = sum((image[i : i + h, j : j + w] for i, j in shifts), np.zeros((h, w, image.shape[2])))
    return total / side**2


def _spread(patches: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """What each pixel gets from all patches it lies in: the transpose of :func:`_box`."""
    h, w = patches.shape[:2]
    found = np.zeros((h + side - 1, w + side - 1, patches.shape[2]))
    for i in range(side):
        for j in range(side):
            found[i : i + h, j : j + w] += patches / side**2
    return found


def _levels(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)

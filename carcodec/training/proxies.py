"""Differentiable stand-ins for storage codecs, to train networks through.

Each takes LR and a quantiser step and returns LR as the codec would give it back, with
straight-through gradients, and an estimate of the bits it would take. They are checked against
the real codecs in tests/test_proxies.py: by rank over qualities and photos, not by value.

Images are float tensors ``(N, 3, h, w)``, RGB in [0, 1]; steps are in 8-bit levels of an
orthonormal transform, so that the mean squared error of fine quantisation is ``step**2 / 12``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["SHAPES", "Coded", "Grid", "dct_codec", "dct_step", "lossless_bits", "wavelet_codec"]

# Bits for each octave of a coefficient's magnitude in steps, sign and place included; zeros are
# nearly free. Fitted to AVIF and JPEG, and to JPEG 2000, whose context coder spends less.
_DCT_OCTAVE = 4.6
_WAVELET_OCTAVE = 2.8

# Shapes of the 8×8 quantiser of real codecs, for dct_codec
SHAPES: dict[str, dict[str, float]] = {
    "jpeg": {"tilt": 0.35, "chroma": 1.5},
    "webp": {"tilt": 0.0, "chroma": 1.5},
    "avif": {"tilt": 0.1, "chroma": 2.0},
}


@dataclass(frozen=True)
class Coded:
    """What a proxy returns.

    Attributes:
        image: ``(N, 3, h, w)`` as decoded, in [0, 1] up to quantisation noise, not clamped.
        bits: ``(N,)`` estimated bits per LR pixel.
    """

    image: Tensor
    bits: Tensor


def dct_codec(image: Tensor, step: Tensor, tilt: float = 0.0, chroma: float = 1.5) -> Coded:
    """An 8×8 block transform codec: JPEG, WebP and AVIF up to prediction and filters.

    BT.601 luma and chroma, orthonormal DCT, uniform quantisation; DC is counted as the difference
    from the block before. Sides need not be multiples of 8: the last pixels repeat.

    Args:
        image: see the module.
        step: ``(N,)``, of luma's lowest frequency.
        tilt: how much coarser each next frequency is; JPEG's tables come near 0.35, AVIF is flat.
        chroma: how many times as coarse chroma is.
    """
    height, width = image.shape[-2:]
    padded = functional.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    planes = _to_ycc(padded)
    basis = _dct_basis(image)
    n, channels, h, w = planes.shape
    blocks = functional.conv2d(planes.reshape(n * channels, 1, h, w), basis, stride=8)
    blocks = blocks.view(n, channels, 64, h // 8, w // 8)
    at = torch.arange(8, device=image.device)
    slope = 1 + tilt * (at[:, None] + at).flatten()
    steps = _steps(step, image, chroma).view(n, 3, 1, 1, 1) * slope.view(-1, 1, 1)
    coded = _quantise(blocks, steps)
    first = blocks[:, :, :1]
    before = functional.pad(first, (1, 0, 0, 0, 0, 0), mode="constant")[..., :-1]
    symbols = torch.cat((first - before, blocks[:, :, 1:]), 2) / steps
    bits = _octaves(symbols) * (_DCT_OCTAVE / (height * width))
    back = functional.conv_transpose2d(
        coded.view(n * channels, 64, h // 8, w // 8), basis, stride=8
    )
    return Coded(_to_rgb(back.view(n, channels, h, w))[..., :height, :width], bits)


class Grid:
    """The 8×8 DCT of one image ``(1, 3, h, w)`` in units of a quantiser's steps.

    Arguments as for :func:`dct_codec`, with one ``step``. Coefficients are ``(3, 64, h', w')``
    with sides rounded up to whole blocks.
    """

    def __init__(self, like: Tensor, step: float, tilt: float = 0.0, chroma: float = 1.5) -> None:
        self._size = like.shape[-2:]
        self._basis = _dct_basis(like)
        at = torch.arange(8, device=like.device)
        slope = (1 + tilt * (at[:, None] + at).flatten()).view(64, 1, 1)
        planes = like.new_tensor([1.0, chroma, chroma]).view(3, 1, 1, 1)
        self._steps = step / 255 * planes * slope

    def forward(self, image: Tensor) -> Tensor:
        """The image's coefficients."""
        height, width = self._size
        padded = functional.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
        planes = _to_ycc(padded).movedim(1, 0)
        found: Tensor = functional.conv2d(planes, self._basis, stride=8) / self._steps
        return found

    def backward(self, coefficients: Tensor) -> Tensor:
        """The image of these coefficients, not clamped."""
        planes = functional.conv_transpose2d(coefficients * self._steps, self._basis, stride=8)
        return _to_rgb(planes.movedim(1, 0))[..., : self._size[0], : self._size[1]]

    def bits(self, coefficients: Tensor) -> Tensor:
        """Estimated bits of all of them."""
        return _octaves(coefficients[None]).sum() * _DCT_OCTAVE


def dct_step(codec: str, quality: float) -> float:
    """About the step of ``codec`` (a key of :data:`SHAPES`) at its own ``quality``, 0…100."""
    if codec == "jpeg":  # libjpeg's scaling of the standard table, whose DC step is 16
        percent = 5000 / max(quality, 1) if quality < 50 else 200 - 2 * quality
        return max(1.0, 0.16 * percent)
    if codec == "webp":
        return 3 + 0.45 * (100 - quality)
    if codec == "avif":  # its quantiser steps grow exponentially
        return float(2.5 * 1.04 ** (100 - quality))
    raise ValueError(f"no such shape: {codec!r}")


def wavelet_codec(image: Tensor, step: Tensor, chroma: float = 1.5, levels: int = 5) -> Coded:
    """The irreversible path of JPEG 2000: 9/7 wavelet, dead-zone quantisation, no rate control.

    The lifting steps are those of ISO/IEC 15444-1 annex F, scaled to be nearly orthonormal;
    borders are extended symmetrically. Arguments as for :func:`dct_codec`.
    """
    planes = _to_ycc(image)
    n = len(image)
    steps = _steps(step, image, chroma).view(n, 3, 1, 1)
    total = planes.new_zeros(n)
    bands: list[tuple[Tensor, Tensor, Tensor]] = []
    low = planes
    for _ in range(levels):
        if min(low.shape[-2:]) < 2:
            break
        left, right = _split(low, -1)
        (ll, lh), (hl, hh) = _split(left, -2), _split(right, -2)
        details = (lh, hl, hh)
        total = total + sum((_octaves(d / steps) for d in details), planes.new_zeros(n))
        lh, hl, hh = (_quantise(d, steps, dead_zone=True) for d in details)
        bands.append((lh, hl, hh))
        low = ll
    total = total + _octaves(low / steps)
    low = _quantise(low, steps, dead_zone=True)
    for lh, hl, hh in reversed(bands):
        low = _merge(_merge(low, lh, -2), _merge(hl, hh, -2), -1)
    pixels = image.shape[-2] * image.shape[-1]
    return Coded(_to_rgb(low), total * (_WAVELET_OCTAVE / pixels))


def lossless_bits(image: Tensor) -> Tensor:
    """Estimated bits per LR pixel, ``(N,)``, of a lossless codec of the predictive kind.

    JPEG-LS' median edge detector (Weinberger, Seroussi and Sapiro, IEEE TIP 2000) on
    (G, R-G, B-G); a residual costs what a Laplacian of its neighbours' mean magnitude
    would charge for it, as the codec's contexts do.
    """
    levels = image * 255
    red, green, blue = levels.unbind(1)
    planes = torch.stack((green, red - green, blue - green), 1)
    padded = functional.pad(planes, (1, 0, 1, 0), mode="replicate")
    left, above = padded[..., 1:, :-1], padded[..., :-1, 1:]
    corner = padded[..., :-1, :-1]
    low, high = torch.minimum(left, above), torch.maximum(left, above)
    predicted = torch.minimum(torch.maximum(left + above - corner, low), high)
    residual = (planes - predicted).abs()
    around = functional.avg_pool2d(
        functional.pad(residual, (2, 2, 2, 0), mode="replicate"), (3, 5), stride=1
    )
    scale = around + 0.3  # a context is never sure of less than about a third of a level
    # Laplacian with mean magnitude `scale`, unit bins: -log2 of its density, at least half a bit
    bits = (residual / scale + torch.log(2 * scale)) / math.log(2)
    return functional.softplus(bits, beta=2.0).mean((2, 3)).sum(1)


def _steps(step: Tensor, image: Tensor, chroma: float) -> Tensor:
    """``(N, 3)`` quantiser steps of Y, Cb, Cr on the [0, 1] range."""
    return step.to(image).view(-1, 1) / 255 * image.new_tensor([1.0, chroma, chroma])


def _quantise(x: Tensor, step: Tensor, dead_zone: bool = False) -> Tensor:
    scaled = x / step
    if dead_zone:  # truncate towards zero, reconstruct in the middle
        level = torch.trunc(scaled)
        rounded = level + 0.5 * torch.sign(level)
    else:
        rounded = torch.round(scaled)
    return x + (rounded * step - x).detach()


def _octaves(symbols: Tensor) -> Tensor:
    """log2 of the magnitudes of ``(N, …)``, smooth at 0, summed over all but the first axis."""
    return (0.5 * torch.log2(1 + symbols.square())).flatten(1).sum(1)


_RGB_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
_YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def _to_ycc(image: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", image.new_tensor(_RGB_TO_YCC), image)


def _to_rgb(planes: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", planes.new_tensor(_YCC_TO_RGB), planes)


def _dct_basis(like: Tensor) -> Tensor:
    """The 64 orthonormal 8×8 DCT-II patterns as ``(64, 1, 8, 8)``."""
    at = torch.arange(8, dtype=torch.float64)
    line = torch.cos(math.pi / 8 * (at[None] + 0.5) * at[:, None]) / 2
    line[0] /= math.sqrt(2)
    return torch.einsum("ux,vy->uvxy", line, line).reshape(64, 1, 8, 8).to(like)


# ISO/IEC 15444-1, table F.4; K makes both filters' norms near 1 on this scaling
_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_K = 1.230174104914001 / math.sqrt(2)


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Low and high band along an axis; lengths ceil(n/2) and floor(n/2)."""
    x = x.movedim(axis, -1)
    even, odd = x[..., ::2], x[..., 1::2]
    for i, weight in enumerate(_LIFTING):
        if i % 2 == 0:
            odd = odd + weight * _to_odd(even, odd.shape[-1])
        else:
            even = even + weight * _to_even(odd, even.shape[-1])
    return (even / _K).movedim(-1, axis), (odd * _K).movedim(-1, axis)


def _merge(low: Tensor, high: Tensor, axis: int) -> Tensor:
    even, odd = low.movedim(axis, -1) * _K, high.movedim(axis, -1) / _K
    for i, weight in reversed(tuple(enumerate(_LIFTING))):
        if i % 2 == 0:
            odd = odd - weight * _to_odd(even, odd.shape[-1])
        else:
            even = even - weight * _to_even(odd, even.shape[-1])
    length = even.shape[-1] + odd.shape[-1]
    pairs = torch.stack((even[..., : odd.shape[-1]], odd), -1).flatten(-2)
    x = pairs if length % 2 == 0 else torch.cat((pairs, even[..., -1:]), -1)
    return x.movedim(-1, axis)


def _to_odd(even: Tensor, count: int) -> Tensor:
    """Sum of each odd sample's two even neighbours; the last mirrors."""
    after = torch.cat((even[..., 1:], even[..., -1:]), -1)[..., :count]
    return even[..., :count] + after


def _to_even(odd: Tensor, count: int) -> Tensor:
    """Sum of each even sample's two odd neighbours; both ends mirror."""
    before = torch.cat((odd[..., :1], odd), -1)[..., :count]
    after = torch.cat((odd, odd[..., -1:]), -1)[..., :count]
    return before + after

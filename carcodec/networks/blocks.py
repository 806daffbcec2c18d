"""What the papers' networks share: planes one by one, fixed interpolation, residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "FirstPlane",
    "Luma",
    "PlaneNetwork",
    "Reduction",
    "ResidualBlock",
    "Shortcut",
    "bicubic_kernel",
    "bicubic_phases",
    "doublings",
    "edges",
    "faint",
]


def bicubic_kernel(scale: int, size: int) -> Tensor:
    """Antialiased bicubic (a = -0.5) downscaling kernel, ``(size, size)``, summing to 1.

    The taps stand where :func:`.car.adaptive_resample` puts its undisplaced ones: centred on the
    LR pixel, one HR pixel apart. Support beyond ``size`` is cut off before normalising.
    """
    return _antialiased(_cubic, scale, size)


def _antialiased(function: Callable[[Tensor], Tensor], scale: int, size: int) -> Tensor:
    x = ((torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / scale).abs()
    line = function(x)
    line = line / line.sum()
    return torch.outer(line, line).float()


def bicubic_phases(scale: int) -> Tensor:
    """Bicubic ×scale interpolation as a ``(3*scale**2, 3, 5, 5)`` sub-pixel convolution."""
    taps = torch.arange(5, dtype=torch.float64) - 2
    lines = [_cubic((taps - ((phase + 0.5) / scale - 0.5)).abs()) for phase in range(scale)]
    phases = torch.stack(lines)
    kernels = torch.einsum("ai,bj->abij", phases, phases).reshape(scale**2, 5, 5).float()
    weight = torch.zeros(3, scale**2, 3, 5, 5)
    for channel in range(3):
        weight[channel, :, channel] = kernels
    return weight.view(3 * scale**2, 3, 5, 5)


def _cubic(x: Tensor) -> Tensor:
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


# compiled, its gradient fails on tensors that are channels last
@torch.compiler.disable  # type: ignore[untyped-decorator]
def edges(x: Tensor, width: int) -> Tensor:
    """Edge pixels repeated outwards."""
    return functional.pad(x, (width, width, width, width), mode="replicate")


class ResidualBlock(nn.Module):
    """EDSR's residual block: two 3×3 convolutions around one activation, no normalisation."""

    def __init__(self, width: int, activation: nn.Module, residual_scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.activation = activation
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.residual_scale = residual_scale
        with torch.no_grad():  # a block that starts near the identity trains faster
            self.second.weight *= 0.1
            nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def residual(self, x: Tensor) -> Tensor:
        y = self.second(self.activation(self.first(x)))
        scaled: Tensor = y if self.residual_scale == 1 else self.residual_scale * y
        return scaled

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


def doublings(scale: int, rule: str) -> int:
    """How often ×2 makes ``scale``.

    Raises:
        ValueError: it is no power of 2; ``rule`` says what it must be.
    """
    steps = scale.bit_length() - 1
    if scale < 2 or scale != 2**steps:
        raise ValueError(f"{rule}, not {scale}")
    return steps


def faint(convolution: nn.Conv2d, share: float = 0.1) -> nn.Conv2d:
    """A last layer that starts near zero, so that the network starts as its shortcut."""
    with torch.no_grad():
        convolution.weight *= share
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


class Shortcut(nn.Module):
    """×scale enlargement with nothing to learn: ``bicubic`` (a = -0.5) or ``nearest``.

    ``(N, channels, h, w)`` to ``(N, channels, s*h, s*w)``; edge pixels are repeated outwards.
    """

    weight: Tensor

    def __init__(self, scale: int, channels: int, kind: str = "bicubic") -> None:
        super().__init__()
        self.scale = scale
        phases = bicubic_phases(scale)[: channels * scale**2, :channels]
        if kind == "nearest":
            phases = torch.eye(channels).repeat_interleave(scale**2, 0)[..., None, None]
        self.padding = phases.shape[-1] // 2
        self.register_buffer("weight", phases, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = edges(x, self.padding) if self.padding else x
        return functional.pixel_shuffle(functional.conv2d(x, self.weight), self.scale)


def _bilinear_kernel(scale: int, size: int) -> Tensor:
    """As :func:`bicubic_kernel`."""
    return _antialiased(lambda x: (1 - x).clamp(min=0), scale, size)


def _nearest_kernel(scale: int, size: int) -> Tensor:
    """The middle pixel of each cell; of the four in the middle of an even one the last."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


class Reduction(nn.Module):
    """×1/scale with nothing to learn, edge pixels repeated outwards.

    ``(N, channels, H, W)`` to ``(N, channels, H/s, W/s)``: inside the image MATLAB's imresize,
    ``bicubic`` or ``bilinear`` (antialiased), or ``nearest``.
    """

    weight: Tensor

    def __init__(self, scale: int, channels: int, kind: str = "bicubic") -> None:
        super().__init__()
        kernels = {
            "bicubic": bicubic_kernel, "bilinear": _bilinear_kernel, "nearest": _nearest_kernel,
        }  # fmt: skip
        if kind not in kernels:
            raise ValueError(f"kind must be one of {', '.join(kernels)}, not {kind!r}")
        self.scale, self.channels = scale, channels
        self.padding = (3 * scale + 1) // 2
        size = scale + 2 * self.padding
        kernel = kernels[kind](scale, size).expand(channels, 1, size, size)
        self.register_buffer("weight", kernel.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = edges(x, self.padding)
        return functional.conv2d(x, self.weight, stride=self.scale, groups=self.channels)


class Luma(nn.Module):
    """BT.601 luma in full range, ``(N, 3, H, W)`` to ``(N, 1, H, W)``."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        self.register_buffer("weight", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight)


class FirstPlane(nn.Module):
    """``(N, 3, H, W)`` to its first plane, ``(N, 1, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class PlaneNetwork(nn.Module):
    """A network for colour (3 channels), or for one plane: then it runs on each of three.

    With ``channels=1`` a network is what papers train on luma alone. A grey photo is luma; of a
    colour photo the network takes red, green and blue one after the other. Subclasses define
    :meth:`core` on ``(N, channels, H, W)``, which torch.fx can trace, and :attr:`halo`.

    Attributes:
        slower: parameters' first names, and by how much slower they learn.
    """

    slower: ClassVar[dict[str, float]] = {}

    def __init__(self, scale: int, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        self.scale, self.channels = scale, channels

    @property
    def halo(self) -> int:
        """Receptive-field radius in LR pixels."""
        raise NotImplementedError

    def core(self, x: Tensor) -> Tensor:
        """From ``(N, channels, H, W)`` to as many planes of the other size."""
        raise NotImplementedError

    def forward(self, image: Tensor, quality: Tensor | None = None) -> Tensor:
        """``(N, 3, H, W)`` in [0, 1] to the other size; ``quality`` is ignored."""
        if self.channels == image.shape[1]:
            return self.core(image)
        planes = self.core(image.flatten(0, 1)[:, None])
        return planes.view(*image.shape[:2], *planes.shape[2:])

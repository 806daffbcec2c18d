"""Scaling without anything to learn: the baseline, and none at all."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from carcodec.networks.blocks import PlaneNetwork, Reduction

__all__ = ["BicubicDownscaler", "BicubicUpscaler", "Interpolation", "Unscaled"]


class BicubicDownscaler(nn.Module):
    """Fixed antialiased bicubic downscaling (a = -0.5), as MATLAB's imresize inside the image."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        """HR ``(N, 3, H, W)`` to LR ``(N, 3, H/s, W/s)``."""
        size = [side // self.scale for side in image.shape[-2:]]
        return functional.interpolate(image, size, mode="bicubic", antialias=True)


class Interpolation(PlaneNetwork):
    """A fixed downscaler that a model may have: ``bicubic``, ``bilinear`` or ``nearest``.

    What upscalers of the papers' baselines were trained on (RSRNet 2018, table 1).
    """

    halo = 2

    def __init__(self, scale: int, channels: int = 3, kind: str = "bicubic") -> None:
        super().__init__(scale, channels)
        self.reduce = Reduction(scale, channels, kind)

    def core(self, x: Tensor) -> Tensor:
        small: Tensor = self.reduce(x)
        return small


class BicubicUpscaler(nn.Module):
    """Bicubic enlargement (a = -0.5) as Pillow's: weights beyond the border are left out.

    A downscaler trained for it makes LR that any viewer's zoom restores (CAR, table I).
    """

    halo = 3

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: Tensor, quality: Tensor | None = None) -> Tensor:
        """LR ``(N, 3, h, w)`` to HR ``(N, 3, s*h, s*w)``, not clamped; ``quality`` is ignored."""
        size = [side * self.scale for side in image.shape[-2:]]
        return functional.interpolate(image, size, mode="bicubic", antialias=True)


class Unscaled(nn.Module):
    """Scale 1: the photo itself is stored, and the upscaler restores what storing it lost."""

    halo = 0

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"a model without a downscaler has scale 1, not {scale}")
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W)``, returned as it is."""
        return image

"""TAD and TAU: task-aware downscaling and the upscaling it serves.

Source: H. Kim, M. Choi, B. Lim and K. M. Lee, "Task-Aware Image Downscaling", ECCV 2018, section
3.2. Ten convolutions a side: one in the scaling layer, one at either end of three residual blocks
joined by a skip, and one that makes the image. Images are float tensors in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carcodec.networks.blocks import (
    FirstPlane,
    Luma,
    PlaneNetwork,
    Reduction,
    ResidualBlock,
    doublings,
    faint,
)

__all__ = ["TAD", "TAU", "TADGrey", "TAUColour"]


class _Body(nn.Module):
    """Convolution, residual blocks, convolution, and a skip around all but the first."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, nn.ReLU()) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y: Tensor = self.tail(self.blocks(x))
        return x + y


def _steps(scale: int) -> int:
    return doublings(scale, "TAD halves: its scale is a power of 2")


class TAD(PlaneNetwork):
    """Task-aware downscaler: ×1/2, and applied to its own result ×1/4 … ×1/128.

    With ``guided`` the network learns a residual on the guide, bicubic LR, as published for ×2;
    the recursive form makes the image itself (section 3.2, "Multi-scale SR").
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 64, blocks: int = 3, guided: bool = True
    ) -> None:
        super().__init__(scale, channels)
        self.steps = _steps(scale)
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, not {width}")
        self.scaling = nn.Sequential(
            nn.Conv2d(channels, width // 4, 3, padding=1), nn.PixelUnshuffle(2)
        )
        self.body = _Body(width, width, blocks)
        self.image = nn.Conv2d(width, channels, 3, padding=1)
        self.guide = Reduction(2, channels) if guided else None
        if guided:
            faint(self.image)

    @property
    def halo(self) -> int:
        once = 2 + 3 + 2 * len(self.body.blocks)  # the first convolution is at twice the resolution
        return -(-once * (2**self.steps - 1) // 2 ** (self.steps - 1)) if self.steps > 1 else once

    def core(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            y = self.image(self.body(self.scaling(x - 0.5)))
            x = y + 0.5 if self.guide is None else y + self.guide(x)
        return x


class TAU(PlaneNetwork):
    """Task-aware upscaler: TAD the other way round, ×2, applied again for ×4 … ×128."""

    def __init__(self, scale: int, channels: int = 3, width: int = 64, blocks: int = 3) -> None:
        super().__init__(scale, channels)
        self.steps = _steps(scale)
        self.body = _Body(channels, width, blocks)
        self.scaling = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.image = nn.Conv2d(width, channels, 3, padding=1)

    @property
    def halo(self) -> int:
        once = 4 + 2 * len(self.body.blocks)
        return once if self.steps == 1 else 2 * once

    def core(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = self.image(self.scaling(self.body(x - 0.5))) + 0.5
        return x


def _unscaled(scale: int) -> None:
    if scale != 1:
        raise ValueError(f"grey for colour keeps the size: its scale is 1, not {scale}")


class _Strided(PlaneNetwork):
    """What TADGrey and TAUColour share: a body whose features stand for ``stride``² pixels."""

    def __init__(
        self, scale: int, inputs: int, outputs: int, width: int, blocks: int, stride: int
    ) -> None:
        super().__init__(scale, 3)
        _unscaled(scale)
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, not {stride}")
        self.stride = stride
        cells = stride**2
        self.apart = nn.PixelUnshuffle(stride) if stride > 1 else nn.Identity()
        self.body = _Body(cells * inputs, width, blocks)
        self.image = nn.Conv2d(width, cells * outputs, 3, padding=1)
        self.together = nn.PixelShuffle(stride) if stride > 1 else nn.Identity()

    @property
    def halo(self) -> int:
        return self.stride * (3 + 2 * len(self.body.blocks)) + 2 * (self.stride - 1)

    def made(self, x: Tensor) -> Tensor:
        found: Tensor = self.together(self.image(self.body(self.apart(x - 0.5))))
        return found


class TADGrey(_Strided):
    """TAD for colour (section 3.3): RGB to one grey plane of the same size, for TAUColour.

    A residual on luma (BT.601, full range), TAD's body without its scaling layer: nine
    convolutions. ``(N, 3, H, W)`` to as many planes, all three the same.

    With ``stride`` 2, ours, features stand for 2×2 pixels. Convolutions alone do the same
    everywhere, and have no pattern to hide a flat surface's colour in; the four pixels of a cell
    can differ. Sides must then be even.
    """

    def __init__(self, scale: int = 1, width: int = 64, blocks: int = 3, stride: int = 1) -> None:
        super().__init__(scale, 3, 1, width, blocks, stride)
        faint(self.image)
        self.guide = Luma()

    def core(self, x: Tensor) -> Tensor:
        grey = self.made(x) + self.guide(x)
        return torch.cat((grey, grey, grey), 1)


class TAUColour(_Strided):
    """The other way: from the first plane of ``(N, 3, H, W)`` to RGB."""

    def __init__(self, scale: int = 1, width: int = 64, blocks: int = 3, stride: int = 1) -> None:
        super().__init__(scale, 1, 3, width, blocks, stride)
        self.plane = FirstPlane()

    def core(self, x: Tensor) -> Tensor:
        return self.made(self.plane(x)) + 0.5

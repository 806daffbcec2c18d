"""TAD and TAU: task-aware downscaling and the upscaling it serves.

Source: H. Kim, M. Choi, B. Lim and K. M. Lee, "Task-Aware Image Downscaling", ECCV 2018, section
3.2. Ten convolutions a side: one in the scaling layer, one at either end of three residual blocks
joined by a skip, and one that makes the image. Images are float tensors in [0, 1].
"""

from __future__ import annotations

from torch import Tensor, nn

from carcodec.networks.blocks import PlaneNetwork, Reduction, ResidualBlock

__all__ = ["TAD", "TAU"]


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
    steps = scale.bit_length() - 1
    if scale < 2 or scale != 2**steps:
        raise ValueError(f"TAD halves: its scale is a power of 2, not {scale}")
    return steps


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

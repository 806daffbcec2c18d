"""Published super-resolution networks, as upscalers for any downscaler.

Each at its publication's size by default; smaller ones by option. Written from the publications'
descriptions. Images are float tensors in [0, 1]. Where published networks subtract the training
set's mean colour, these subtract 0.5.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from carcodec.networks.blocks import PlaneNetwork, ResidualBlock, Shortcut, doublings, faint

__all__ = ["CNNSR", "DDBPN", "EDSR", "RCAN", "RDN", "SRCNN", "VDSR", "SRDenseNet"]


def _same(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def _enlarging(scale: int, width: int) -> nn.Sequential:
    """Sub-pixel steps of EDSR: ×2 once, twice …, or ×3 at once."""
    if scale == 3:
        return nn.Sequential(_same(width, 9 * width), nn.PixelShuffle(3))
    steps = _twos(scale)
    layers = [m for _ in range(steps) for m in (_same(width, 4 * width), nn.PixelShuffle(2))]
    return nn.Sequential(*layers)


def _twos(scale: int) -> int:
    return doublings(scale, "this network's scale is 3 or a power of 2")


class EDSR(PlaneNetwork):
    """Lim et al., "Enhanced deep residual networks for single image super-resolution" (2017).

    As published, 32 blocks of 256 channels or 16 of 64: :class:`carcodec.networks.car.EDSR` is the
    smaller one of our own models.
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 256, blocks: int = 32,
        residual_scale: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(scale, channels)
        self.head = _same(channels, width)
        self.body = _Skipped(
            *(ResidualBlock(width, nn.ReLU(), residual_scale) for _ in range(blocks)),
            _same(width, width),
        )
        self.enlarge = _enlarging(scale, width)
        self.image = _same(width, channels)

    @property
    def halo(self) -> int:
        return 4 + 2 * len(self.body.inside)

    def core(self, x: Tensor) -> Tensor:
        found: Tensor = self.image(self.enlarge(self.body(self.head(x - 0.5)))) + 0.5
        return found


class SRCNN(PlaneNetwork):
    """Dong et al., "Image super-resolution using deep convolutional networks" (2014).

    Three convolutions at HR resolution, 9-1-5 with 64 and 32 channels, on bicubic upscaling. The
    published network has no ``shortcut`` around them; with one it learns in minutes.
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 64, inner: int = 32, middle: int = 1,
        shortcut: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(scale, channels)
        if middle % 2 == 0:
            raise ValueError(f"middle must be odd, not {middle}")
        self.reach = 6 + middle // 2  # HR pixels
        self.enlarged = Shortcut(scale, channels)
        self.body = nn.Sequential(
            _same(channels, width, 9), nn.ReLU(), _same(width, inner, middle), nn.ReLU(),
            faint(_same(inner, channels, 5), 0.1 if shortcut else 1.0),
        )  # fmt: skip
        self.shortcut = shortcut

    @property
    def halo(self) -> int:
        return 2 + -(-self.reach // self.scale)

    def core(self, x: Tensor) -> Tensor:
        big = self.enlarged(x)
        found: Tensor = self.body(big - 0.5) + (big if self.shortcut else 0.5)
        return found


class VDSR(PlaneNetwork):
    """Kim et al., "Accurate image super-resolution using very deep convolutional networks" (2016).

    Twenty 3×3 convolutions of 64 channels at HR resolution learn a residual on bicubic upscaling.
    """

    def __init__(self, scale: int, channels: int = 3, width: int = 64, layers: int = 20) -> None:
        super().__init__(scale, channels)
        self.enlarged = Shortcut(scale, channels)
        sizes = [channels] + [width] * (layers - 1)
        inner = [nn.Sequential(_same(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        self.body = nn.Sequential(*inner, faint(_same(width, channels), 0.01))

    @property
    def halo(self) -> int:
        return 2 + -(-len(self.body) // self.scale)

    def core(self, x: Tensor) -> Tensor:
        big = self.enlarged(x)
        found: Tensor = big + self.body(big - 0.5)
        return found


class CNNSR(PlaneNetwork):
    """The upscaler of CNN-CR (Li et al., TIP 2019), which CAR's table IV compares with.

    The papers at hand do not describe it: this is a reading. Convolutions of 64 channels at LR
    resolution, a transposed convolution, and a last convolution make a residual on bicubic
    upscaling.
    """

    def __init__(self, scale: int, channels: int = 3, width: int = 64, layers: int = 18) -> None:
        super().__init__(scale, channels)
        sizes = [channels] + [width] * layers
        self.body = nn.Sequential(
            *(nn.Sequential(_same(a, b), nn.PReLU(b)) for a, b in itertools.pairwise(sizes))
        )
        self.enlarge = nn.ConvTranspose2d(
            width, width, 2 * scale, stride=scale, padding=(scale + 1) // 2,
            output_padding=scale % 2,
        )  # fmt: skip
        self.image = nn.Sequential(nn.PReLU(width), faint(_same(width, channels), 0.1))
        self.shortcut = Shortcut(scale, channels)

    @property
    def halo(self) -> int:
        return len(self.body) + 3

    def core(self, x: Tensor) -> Tensor:
        found: Tensor = self.image(self.enlarge(self.body(x - 0.5))) + self.shortcut(x)
        return found


class _Dense(nn.Module):
    """Convolutions that each see the results of all before them; returns all results."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(_same(i * growth or inputs, growth), nn.ReLU()) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [self.layers[0](x)]
        for layer in self.layers[1:]:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class _ResidualDense(nn.Module):
    """RDN's block: convolutions that see the input too, fused by a 1×1 one, added to the input."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(_same(inputs + i * growth, growth), nn.ReLU()) for i in range(layers)
        )
        self.fusion = nn.Conv2d(inputs + layers * growth, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        found: Tensor = x + self.fusion(torch.cat(features, 1))
        return found


class SRDenseNet(PlaneNetwork):
    """Tong et al., "Image super-resolution using dense skip connections" (ICCV 2017), "All".

    Eight dense blocks of eight layers that grow by 16; the first features and every block's feed a
    1×1 bottleneck of 256 channels, and transposed 3×3 convolutions enlarge ×2 each.
    """

    def __init__(
        self, scale: int, channels: int = 3, growth: int = 16, blocks: int = 8, layers: int = 8,
        width: int = 256,
    ) -> None:  # fmt: skip
        super().__init__(scale, channels)
        steps = [3] if scale == 3 else [2] * _twos(scale)
        block = growth * layers
        self.first = nn.Sequential(_same(channels, block), nn.ReLU())
        self.blocks = nn.ModuleList(_Dense(block, growth, layers) for _ in range(blocks))
        self.bottleneck = nn.Sequential(nn.Conv2d(block * (blocks + 1), width, 1), nn.ReLU())
        self.enlarge = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 3, stride=s, padding=1, output_padding=s - 1)
                    if s == 2
                    else nn.ConvTranspose2d(width, width, 3, stride=3),
                    nn.ReLU(),
                )
                for s in steps
            )
        )
        self.image = _same(width, channels)

    @property
    def halo(self) -> int:
        return 4 + sum(len(block.layers) for block in self.blocks)  # type: ignore[misc,arg-type]

    def core(self, x: Tensor) -> Tensor:
        features = [self.first(x - 0.5)]
        for block in self.blocks:
            features.append(block(features[-1]))
        found: Tensor = self.image(self.enlarge(self.bottleneck(torch.cat(features, 1)))) + 0.5
        return found


class RDN(PlaneNetwork):
    """Zhang et al., "Residual dense network for image super-resolution" (CVPR 2018).

    Sixteen residual dense blocks of eight layers, 64 channels, growth 64; their outputs are fused.
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 64, growth: int = 64, blocks: int = 16,
        layers: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(scale, channels)
        self.first = _same(channels, width)
        self.second = _same(width, width)
        self.blocks = nn.ModuleList(_ResidualDense(width, growth, layers) for _ in range(blocks))
        self.fusion = nn.Sequential(nn.Conv2d(width * blocks, width, 1), _same(width, width))
        self.enlarge = _enlarging(scale, width)
        self.image = _same(width, channels)

    @property
    def halo(self) -> int:
        return 6 + sum(len(block.layers) for block in self.blocks)  # type: ignore[misc,arg-type]

    def core(self, x: Tensor) -> Tensor:
        first = self.first(x - 0.5)
        y = self.second(first)
        features = []
        for block in self.blocks:
            y = block(y)
            features.append(y)
        found: Tensor = self.image(self.enlarge(first + self.fusion(torch.cat(features, 1)))) + 0.5
        return found


class _Attention(nn.Module):
    """RCAN's channel attention: a gain for each channel from the means of all."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.gains = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(width // reduction, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x * self.gains(x)
        return found


class _Skipped(nn.Module):
    """A sequence and a skip around it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.inside(x)
        return found


class RCAN(PlaneNetwork):
    """Zhang et al., "Image super-resolution using very deep residual channel attention networks".

    ECCV 2018: ten groups of twenty blocks, 64 channels, channel attention reduced 16 times. The
    attention averages over the whole image, so the halo is beyond any image and tiling is off:
    memory grows with the photo.
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 64, groups: int = 10, blocks: int = 20,
        reduction: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(scale, channels)

        def block() -> nn.Module:
            return _Skipped(
                _same(width, width), nn.ReLU(), _same(width, width), _Attention(width, reduction)
            )

        self.head = _same(channels, width)
        self.body = _Skipped(
            *(
                _Skipped(*(block() for _ in range(blocks)), _same(width, width))
                for _ in range(groups)
            ),
            _same(width, width),
        )
        self.enlarge = _enlarging(scale, width)
        self.image = _same(width, channels)

    @property
    def halo(self) -> int:
        return 2**16

    def core(self, x: Tensor) -> Tensor:
        found: Tensor = self.image(self.enlarge(self.body(self.head(x - 0.5)))) + 0.5
        return found


class _Projection(nn.Module):
    """D-DBPN's back-projection unit: up (``enlarging``) or down, corrected by the way back."""

    def __init__(self, inputs: int, width: int, scale: int, enlarging: bool) -> None:
        super().__init__()
        kernel, padding = {2: (6, 2), 3: (7, 2), 4: (8, 2), 8: (12, 2)}[scale]

        def step(up: bool) -> nn.Sequential:
            kind = nn.ConvTranspose2d if up else nn.Conv2d
            return nn.Sequential(kind(width, width, kernel, scale, padding), nn.PReLU())

        self.narrow = nn.Identity() if inputs == width else nn.Sequential(
            nn.Conv2d(inputs, width, 1), nn.PReLU()
        )  # fmt: skip
        self.there = step(enlarging)
        self.back = step(not enlarging)
        self.again = step(enlarging)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        y = self.there(x)
        found: Tensor = y + self.again(self.back(y) - x)
        return found


class DDBPN(PlaneNetwork):
    """Haris et al., "Deep back-projection networks for super-resolution" (CVPR 2018), dense.

    ``stages`` up-projections and one fewer down-projections; each takes all results of the other
    kind before it. Published: 7 stages, 64 channels, 256 in the first layer.
    """

    def __init__(
        self, scale: int, channels: int = 3, width: int = 64, first: int = 256, stages: int = 7
    ) -> None:
        super().__init__(scale, channels)
        if scale not in (2, 3, 4, 8):
            raise ValueError(f"D-DBPN's scale is 2, 3, 4 or 8, not {scale}")
        self.first = nn.Sequential(
            _same(channels, first), nn.PReLU(), nn.Conv2d(first, width, 1), nn.PReLU()
        )
        self.up = nn.ModuleList(
            _Projection(width * max(1, i), width, scale, True) for i in range(stages)
        )
        self.down = nn.ModuleList(
            _Projection(width * (i + 1), width, scale, False) for i in range(stages - 1)
        )
        self.image = _same(width * stages, channels)

    @property
    def halo(self) -> int:
        reach = 3 * math.ceil((3 + self.scale) / self.scale)  # of one projection
        return 3 + reach * (len(self.up) + len(self.down))

    def core(self, x: Tensor) -> Tensor:
        low, high = [self.first(x - 0.5)], []
        for i, up in enumerate(self.up):
            # the first features are not carried on
            high.append(up(torch.cat(low[1:], 1) if i else low[0]))
            if i < len(self.down):
                low.append(self.down[i](torch.cat(high, 1)))
        found: Tensor = self.image(torch.cat(high, 1)) + 0.5
        return found

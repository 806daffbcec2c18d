"""RRNet and SRNet.

Source: B. Cai, X. Xu, K. Guo, K. Jia and D. Tao, "Learning Reduced-Resolution and
Super-Resolution Networks in Synchrony" (RSRNet, 2018): sections 3.1 and 3.2, table 2.
Images are float tensors in [0, 1]; the paper's networks see luma (``channels=1``).
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from carcodec.networks.blocks import PlaneNetwork, Shortcut

__all__ = ["QBReLU", "RRNet", "SRNet"]

_SLOPE = 0.05  # section 4.1


class _Quantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, levels: int) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        step = (high - low) / (levels - 1)
        return torch.floor((x.clamp(low, high) - low) / step + 0.5) * step + low

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


class QBReLU(nn.Module):
    """Quantised bilateral ReLU: eq. 2 forwards, eq. 3 backwards.

    Clamps to [``low``, ``high``] and rounds to ``levels`` equidistant values; the gradient is 1
    inside the interval and 0 outside.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, levels: int = 256) -> None:
        super().__init__()
        self.low, self.high, self.levels = low, high, levels

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Quantised.apply(x, self.low, self.high, self.levels)  # type: ignore[no-untyped-call]
        return found


def _last(convolution: nn.Conv2d) -> nn.Conv2d:
    """Residuals start near zero: a Gaussian of 0.001 (section 4.1)."""
    nn.init.normal_(convolution.weight, std=1e-3)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _layer(inputs: int, width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, a=_SLOPE)  # "MSRA"
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.LeakyReLU(_SLOPE))


class RRNet(PlaneNetwork):
    """Reduced-resolution network: a residual on the mean of each d×d super-pixel (eq. 1).

    Three 3×3 convolutions at HR resolution, a d×d convolution of stride d, the averages added,
    Q-BReLU with 2⁸ levels. The paper's width is 64.
    """

    slower: ClassVar = {"down": 0.1}

    def __init__(self, scale: int, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__(scale, channels)
        sizes = [channels] + [width] * layers
        self.trunk = nn.Sequential(*(_layer(a, b, 3) for a, b in itertools.pairwise(sizes)))
        self.down = _last(nn.Conv2d(width, channels, scale, stride=scale))
        self.average = nn.AvgPool2d(scale)
        self.quantise = QBReLU()

    @property
    def halo(self) -> int:
        return -(-len(self.trunk) // self.scale)

    def core(self, x: Tensor) -> Tensor:
        found: Tensor = self.quantise(self.down(self.trunk(x)) + self.average(x))
        return found


class SRNet(PlaneNetwork):
    """Super-resolution network: a sub-pixel residual on the tiled LR image (eq. 4).

    A 3×3 convolution, then units of a 1×1 bottleneck and a 3×3 convolution, each fed with all
    features before it; all of them feed the last 1×1 convolution (figure 4 and section 3.2.1: three
    streams of receptive fields 5, 7 and 9, supervised directly). Width 64 and 3 units are the
    paper's.
    """

    slower: ClassVar = {"last": 0.1}

    def __init__(self, scale: int, channels: int = 3, width: int = 64, units: int = 3) -> None:
        super().__init__(scale, channels)
        self.first = _layer(channels, width, 3)
        self.units = nn.ModuleList(
            nn.Sequential(_layer(width * (i + 1), width, 1), _layer(width, width, 3))
            for i in range(units)
        )
        self.last = _last(nn.Conv2d(width * (units + 1), channels * scale**2, 1))
        self.shuffle = nn.PixelShuffle(scale)
        self.tile = Shortcut(scale, channels, "nearest")

    @property
    def halo(self) -> int:
        return 1 + len(self.units)

    def core(self, x: Tensor) -> Tensor:
        features = [self.first(x)]
        for unit in self.units:
            features.append(unit(torch.cat(features, 1)))
        found: Tensor = self.shuffle(self.last(torch.cat(features, 1))) + self.tile(x)
        return found

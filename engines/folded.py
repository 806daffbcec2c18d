"""EDSR for a GPU: as few passes over its features as PyTorch's own kernels can do with.

cuDNN's convolutions took four tenths of the time of a network in float16. The rest went to reading
features and writing them back: once to add a bias, again for the ReLU, for the gain that a quality
sets, and for the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carcodec.networks import car
from carcodec.networks.blocks import edges

__all__ = ["Folded"]

_MORE = 8  # features: tensor cores take them by eights


class Folded:
    """What a :class:`.car.EDSR` computes, for one quality at a time.

    A block's first convolution takes bias and ReLU along. Its second has the gain in its weights,
    and no bias: one more feature, which the first makes 1 everywhere, brings it through the middle
    of the kernel, also at borders.

    Args:
        network: on the device where it is to run.
        precision: what it computes in.
    """

    def __init__(self, network: car.EDSR, precision: torch.dtype) -> None:
        self.network, self.precision = network, precision
        self._made: tuple[float, list[tuple[Tensor, Tensor, Tensor]]] | None = None
        ends: Any = (network.head, network.tail, network.skip)
        self._head, self._tail, self._skip = (
            (self._cast(layer.weight), self._cast(layer.bias)) for layer in ends
        )

    def _cast(self, weights: Tensor) -> Tensor:
        kind = torch.channels_last if weights.ndim == 4 else torch.contiguous_format
        return weights.detach().to(self.precision, memory_format=kind)

    def _blocks(self, quality: float) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each block the first convolution's weights and bias, and the second's weights."""
        made = self._made
        if made is not None and made[0] == quality:
            return made[1]
        found = []
        for part, gain in zip(self.network.body, _gains(self.network, quality), strict=True):
            block: Any = part
            first, second = block.first, block.second
            width = len(first.weight)
            weight = first.weight.new_zeros(width + _MORE, *first.weight.shape[1:])
            weight[:width] = first.weight
            bias = weight.new_zeros(width + _MORE)
            bias[:width], bias[width] = first.bias, 1
            reader = weight.new_zeros(width, width + _MORE, 3, 3)
            reader[:, :width] = second.weight
            reader[:, width, 1, 1] = second.bias
            reader *= (block.residual_scale * gain).view(-1, 1, 1, 1)
            found.append((self._cast(weight), self._cast(bias), self._cast(reader)))
        self._made = quality, found
        return found

    @torch.inference_mode()
    def __call__(self, image: Tensor, quality: float) -> Tensor:
        """LR ``(N, 3, h, w)`` in [0, 1] to HR, as :meth:`.car.EDSR.forward` has it."""
        scale, stride = self.network.scale, self.network.stride
        x = functional.conv2d(self._cast(image - 0.5), *self._head, stride, 1)
        y = x
        for weight, bias, reader in self._blocks(quality):
            z = _rectified(y, weight, bias)
            y = functional.conv2d(z, reader, None, 1, 1).add_(y)
        x = functional.conv2d(x + y, *self._tail, 1, 1)
        around = functional.conv2d(self._cast(edges(image, 2)), *self._skip)
        if stride == 1:
            return functional.pixel_shuffle(x.add_(around), scale)
        return functional.pixel_shuffle(x, scale * stride) + functional.pixel_shuffle(around, scale)


def _gains(network: car.EDSR, quality: float) -> list[Tensor]:
    width, blocks = len(network.head.weight), len(network.body)
    if network.condition is None:
        return list(network.head.weight.new_ones(blocks, width))
    told = network.head.weight.new_full((1, 1), quality)
    return list(network.condition(told).view(blocks, width))


def _rectified(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3×3 convolution, its bias and the ReLU behind it, where cuDNN is in one pass."""
    if x.is_cuda and torch.version.hip is None:
        one = (1, 1)
        found: Tensor = torch.cudnn_convolution_relu(x, weight, bias, one, one, one, 1)
        return found
    return functional.conv2d(x, weight, bias, padding=1).relu_()

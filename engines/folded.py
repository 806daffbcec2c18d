"""EDSR for a GPU: as few passes over its features as PyTorch's own kernels can do with.

cuDNN's convolutions took four tenths of the time of a network in float16. The rest went to reading
features and writing them back: once to add a bias, again for the ReLU, for the gain that a quality
sets, and for the sum. :mod:`carcodec.plugins.convolution` takes all of these along, for the numbers
of features that it knows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from carcodec.networks import car
from carcodec.networks.blocks import edges
from carcodec.plugins.convolution.pytorch import Kernel, arranged

__all__ = ["Folded"]

_EIGHT = 8  # tensor cores take channels by as many: more than there are, some are 0
_KEPT = 8  # qualities whose weights are kept
_Block = tuple[Tensor, ...]


class Folded:
    """What a :class:`.car.EDSR` computes, all images of a batch at one quality.

    A block's first convolution takes bias and ReLU along. Its second has the gain in its weights,
    and no bias: one more feature, which the first makes 1 everywhere, brings it through the middle
    of the kernel, also at borders.

    Args:
        network: on the device where it is to run.
        precision: what it computes in.
        kernel: what computes the blocks' convolutions, in half precision, instead of cuDNN.
    """

    def __init__(
        self, network: car.EDSR, precision: torch.dtype, kernel: Kernel | None = None
    ) -> None:
        self.network, self.precision, self.kernel = network, precision, kernel
        self._made: dict[float, list[_Block]] = {}
        head, tail, skip = (
            _parameters(part) for part in (network.head, network.tail, network.skip)
        )
        self._head = self._cast(_aligned(head[0], 1)), self._cast(head[1])
        self._tail = self._cast(_aligned(tail[0])), self._cast(_aligned(tail[1]))
        self._skip = self._cast(_aligned(_aligned(skip[0], 1))), self._cast(_aligned(skip[1]))

    def _cast(self, weights: Tensor) -> Tensor:
        kind = torch.channels_last if weights.ndim == 4 else torch.contiguous_format
        return weights.detach().to(self.precision, memory_format=kind)

    def _blocks(self, quality: float) -> list[_Block]:
        """Each block's weights and biases, as what computes it takes them."""
        if quality not in self._made:
            if len(self._made) == _KEPT:
                del self._made[next(iter(self._made))]
            make = self._for_cudnn if self.kernel is None else self._for_kernel
            body: Any = self.network.body
            gains = _gains(self.network, quality)
            self._made[quality] = [
                make(block.first, block.second, block.residual_scale * gain)
                for block, gain in zip(body, gains, strict=True)
            ]
        return self._made[quality]

    def _for_cudnn(self, first: nn.Conv2d, second: nn.Conv2d, gain: Tensor) -> _Block:
        """The first convolution's weights and bias, and the second's weights."""
        width = len(first.weight)
        weight = first.weight.new_zeros(width + _EIGHT, *first.weight.shape[1:])
        weight[:width] = first.weight
        bias = weight.new_zeros(width + _EIGHT)
        bias[:width], bias[width] = _bias(first), 1
        reader = weight.new_zeros(width, width + _EIGHT, 3, 3)
        reader[:, :width] = second.weight
        reader[:, width, 1, 1] = _bias(second)
        reader *= gain.view(-1, 1, 1, 1)
        return self._cast(weight), self._cast(bias), self._cast(reader)

    def _for_kernel(self, first: nn.Conv2d, second: nn.Conv2d, gain: Tensor) -> _Block:
        """Both convolutions' weights and biases."""
        return (
            arranged(first.weight), _bias(first),
            arranged(second.weight * gain.view(-1, 1, 1, 1)), _bias(second) * gain,
        )  # fmt: skip

    @torch.inference_mode()
    def __call__(self, image: Tensor, quality: float) -> Tensor:
        """LR ``(N, 3, h, w)`` in [0, 1] to HR, as :meth:`.car.EDSR.forward` has it."""
        scale, stride = self.network.scale, self.network.stride
        x = functional.conv2d(self._cast(_aligned(image - 0.5, 1)), *self._head, stride, 1)
        x = functional.conv2d(self._body(x, quality).add_(x), *self._tail, 1, 1)
        around = functional.conv2d(self._cast(_aligned(edges(image, 2), 1)), *self._skip)
        if stride == 1:
            return functional.pixel_shuffle(x.add_(around)[:, : 3 * scale**2], scale)
        large = functional.pixel_shuffle(x[:, : 3 * (scale * stride) ** 2], scale * stride)
        return large.add_(functional.pixel_shuffle(around[:, : 3 * scale**2], scale))

    def _body(self, x: Tensor, quality: float) -> Tensor:
        if self.kernel is None:
            y = x
            for weight, bias, reader in self._blocks(quality):
                z = _rectified(y, weight, bias)
                y = functional.conv2d(z, reader, None, 1, 1).add_(y)
            return y
        x = x.contiguous(memory_format=torch.channels_last)
        y, z, sums = x, torch.empty_like(x), torch.empty_like(x)
        for weight, bias, reader, after in self._blocks(quality):
            self.kernel(y, weight, bias, result=z)
            y = self.kernel(z, reader, after, residual=y, result=sums)
        return y


def _aligned(tensor: Tensor, axis: int = 0) -> Tensor:
    """Zeros behind what there is along an axis, up to a multiple of eight."""
    missing = -tensor.shape[axis] % _EIGHT
    behind = [0, 0] * (tensor.ndim - 1 - axis) + [0, missing]
    return functional.pad(tensor, behind) if missing else tensor


def _parameters(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    bias: Any = layer.bias
    return layer.weight.detach(), bias.detach()


def _bias(layer: nn.Conv2d) -> Tensor:
    return _parameters(layer)[1].float()


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

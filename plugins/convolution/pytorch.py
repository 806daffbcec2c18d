"""The convolution's kernel under PyTorch, on its tensors, memory and streams."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from carcodec.plugins.convolution import (
    FEATURES,
    SOURCE,
    THREADS,
    entry,
    places,
    shared_bytes,
    tiles,
)
from carcodec.plugins.driver import DriverError
from carcodec.plugins.launching import Launcher, kernels, launch

__all__ = ["Kernel", "arranged", "kernel"]


class Kernel:
    """The convolution of one number of features on one device.

    Args:
        features: that come and go, one of :data:`carcodec.plugins.convolution.FEATURES`.
        launcher: what starts it.
        processors: of the device.

    Raises:
        DriverError: the device has too little shared memory.
    """

    def __init__(self, features: int, launcher: Launcher, processors: int) -> None:
        self.features, self.launcher = features, launcher
        self.shared = shared_bytes(features)
        self.most = processors * launcher.resident(entry(features), THREADS, self.shared)
        if not self.most:
            raise DriverError(f"a block of {entry(features)} finds no room on the GPU")

    def __call__(
        self, features: Tensor, weights: Tensor, bias: Tensor, residual: Tensor | None = None,
        result: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``max(0, convolution + bias)``, or ``convolution + bias + residual`` with one.

        Args:
            features: ``(N, C, H, W)`` half, channels last.
            weights: half, as :func:`arranged` has them.
            bias: ``(C,)`` float32.
            residual: like ``features``.
            result: like ``features``; may be ``residual``, but not ``features``.

        Returns:
            ``result``, or a new one.

        Raises:
            ValueError: another layout or dtype.
        """
        result = torch.empty_like(features) if result is None else result
        n, count, h, w = features.shape
        for tensor in (features, residual, result):
            if tensor is not None and (
                tensor.shape != features.shape
                or count != self.features
                or tensor.dtype != torch.float16
                or not tensor.is_contiguous(memory_format=torch.channels_last)
            ):
                raise ValueError(
                    f"features {tuple(tensor.shape)} {tensor.dtype} are not {self.features} "
                    "in half precision, channels last"
                )
        if weights.numel() != 9 * count**2 or (weights.dtype, bias.dtype) != (
            torch.float16,
            torch.float32,
        ):
            raise ValueError("weights are half and arranged, the bias is float32")
        if result is features:
            raise ValueError("features are read when some of the result is there already")
        size = (min(tiles(n, h, w), self.most), 1, 1), (THREADS, 1, 1)
        given = (features, weights, bias, residual, n, h, w, result)
        launch(self.launcher, entry(count), size, given, self.shared)
        return result


def arranged(weights: Tensor) -> Tensor:
    """``(C, C, 3, 3)`` as the kernel takes it, half."""
    where = torch.from_numpy(places(len(weights))).to(weights.device)
    return weights.detach().flatten()[where].half()


@functools.cache
def kernel(features: int, device: torch.device) -> Kernel:
    """The convolution on a GPU.

    Raises:
        DriverError: there is none for so many features, or for that GPU.
        CompilingError: the shipped PTX is not that of the source.
    """
    if features not in FEATURES:
        raise DriverError(f"there is no kernel for {features} features")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise DriverError("the convolution's kernel takes compute 8.0 or later")
    index = device.index or 0
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    with torch.cuda.device(index):
        return Kernel(features, kernels(SOURCE, index), processors)

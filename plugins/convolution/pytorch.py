"""The convolution's kernel under PyTorch, on its tensors, memory and streams."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

from carcodec.plugins.compiling import shipped
from carcodec.plugins.convolution import (
    FEATURES,
    SOURCE,
    THREADS,
    entry,
    places,
    shared_bytes,
    tiles,
)
from carcodec.plugins.driver import DriverError, Kernels, Pointer, Triple

__all__ = ["Kernel", "Launcher", "arranged", "kernel"]


class Launcher(Protocol):
    """What starts kernels: :class:`carcodec.plugins.driver.Kernels`."""

    def resident(self, name: str, threads: int, shared: int) -> int: ...

    def launch(
        self, name: str, grid: Triple, block: Triple, stream: int, arguments: Any, shared: int = 0
    ) -> None: ...


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
        blocks = min(tiles(n, h, w), self.most)
        stream = torch.cuda.current_stream(features.device).cuda_stream if features.is_cuda else 0
        given = [features, weights, bias, residual, n, h, w, result]
        self.launcher.launch(
            entry(count), (blocks, 1, 1), (THREADS, 1, 1), stream,
            [_value(a) for a in given], self.shared,
        )  # fmt: skip
        return result


def _value(given: Tensor | int | None) -> int:
    if isinstance(given, int):
        return given
    return Pointer(0 if given is None else given.data_ptr())


def arranged(weights: Tensor) -> Tensor:
    """``(C, C, 3, 3)`` as the kernel takes it, half."""
    where = torch.from_numpy(places(len(weights))).to(weights.device)
    return weights.detach().flatten()[where].half()


@functools.cache
def _kernels(device: int) -> Kernels:
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # PyTorch makes its context when it is used
        return Kernels(shipped(SOURCE))


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
        return Kernel(features, _kernels(index), processors)

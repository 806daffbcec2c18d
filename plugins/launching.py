"""Starting kernels under PyTorch: on its tensors, in its context, on its streams."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from carcodec.plugins.compiling import shipped
from carcodec.plugins.driver import Kernels, Pointer, Triple

__all__ = ["Launcher", "kernels", "launch"]


class Launcher(Protocol):
    """What starts kernels: :class:`carcodec.plugins.driver.Kernels`."""

    def resident(self, name: str, threads: int, shared: int) -> int: ...

    def launch(
        self,
        name: str,
        grid: Triple,
        block: Triple,
        stream: int,
        arguments: Sequence[int],
        shared: int = 0,
    ) -> None: ...


@functools.cache
def kernels(source: Path, device: int) -> Kernels:
    """A source's shipped kernels in PyTorch's context of one GPU.

    Raises:
        DriverError: they cannot be loaded.
        CompilingError: the shipped PTX is not that of the source.
    """
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # PyTorch makes its context when it is used
        return Kernels(shipped(source))


def launch(
    launcher: Launcher,
    name: str,
    size: tuple[Triple, Triple],
    arguments: Sequence[Tensor | int | None],
    shared: int = 0,
) -> None:
    """Start a kernel on the current stream of its tensors' device.

    ``size`` is grid and block, ``None`` among the arguments a pointer to nothing.
    """
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    launcher.launch(name, *size, stream, [_value(a) for a in arguments], shared)


def _value(given: Tensor | int | None) -> int:
    if isinstance(given, int):
        return given
    return Pointer(0 if given is None else given.data_ptr())

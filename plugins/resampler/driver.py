"""Launching the resampler through the CUDA driver, on whatever stream and memory one has."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from carcodec.plugins.resampler import Triple
from carcodec.plugins.resampler.compiling import shipped

__all__ = ["DriverError", "Kernels", "Pointer"]


class Pointer(int):
    """An address on the device."""


class DriverError(RuntimeError):
    """There is no driver or no GPU, or it refused."""


class Kernels:
    """The shipped kernels, loaded into the current CUDA context.

    Raises:
        DriverError: cuda-bindings is not installed, there is no driver, or it refuses the PTX.
        CompilingError: the shipped PTX is not that of the source.
    """

    def __init__(self, ptx: bytes = b"") -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DriverError(
                "the CUDA kernel takes NVIDIA's bindings: pip install cuda-bindings"
            ) from error
        self._driver: Any = driver
        try:
            self._done(driver.cuInit(0))
            self._module = self._done(driver.cuModuleLoadData((ptx or shipped()) + b"\0"))
        except RuntimeError as error:
            if isinstance(error, DriverError):
                raise
            raise DriverError(f"there is no NVIDIA driver here: {error}") from error
        self._functions: dict[str, Any] = {}

    def _done(self, result: tuple[Any, ...]) -> Any:
        status, *rest = result
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise DriverError(f"the NVIDIA driver failed: {status.name}")
        return rest[0] if rest else None

    def launch(
        self, name: str, grid: Triple, block: Triple, stream: int, arguments: Sequence[int]
    ) -> None:
        """Start one kernel.

        Args:
            name: an entry point of the source.
            grid, block: see :func:`carcodec.plugins.resampler.geometry`.
            stream: a CUDA stream's handle.
            arguments: in the kernel's order: addresses as :class:`Pointer`, numbers as int.

        Raises:
            DriverError: no such entry, or the launch failed.
        """
        if name not in self._functions:
            function = self._done(self._driver.cuModuleGetFunction(self._module, name.encode()))
            self._functions[name] = function
        kinds = (ctypes.c_void_p if isinstance(a, Pointer) else ctypes.c_int for a in arguments)
        given = (tuple(map(int, arguments)), tuple(kinds))
        self._done(
            self._driver.cuLaunchKernel(self._functions[name], *grid, *block, 0, stream, given, 0)
        )

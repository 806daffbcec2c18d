"""Launching kernels through the CUDA driver, on whatever stream and memory one has."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

__all__ = ["DriverError", "Kernels", "Pointer", "Triple"]

Triple = tuple[int, int, int]


class Pointer(int):
    """An address on the device."""


class DriverError(RuntimeError):
    """There is no driver or no GPU, or it refused."""


class Kernels:
    """The kernels of a PTX, loaded into the current CUDA context.

    Raises:
        DriverError: cuda-bindings is not installed, there is no driver, or it refuses the PTX.
    """

    def __init__(self, ptx: bytes) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DriverError(
                "CUDA kernels take NVIDIA's bindings: pip install cuda-bindings"
            ) from error
        self._driver: Any = driver
        try:
            self._done(driver.cuInit(0))
            self._module = self._done(driver.cuModuleLoadData(ptx + b"\0"))
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

    def _function(self, name: str, shared: int) -> Any:
        if name not in self._functions:
            function = self._done(self._driver.cuModuleGetFunction(self._module, name.encode()))
            if shared > 48 << 10:  # more has to be asked for
                kinds = self._driver.CUfunction_attribute
                for kind, value in (
                    (kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared),
                    # per cent: as many blocks at a time as there is room for
                    (kinds.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
                ):
                    self._done(self._driver.cuFuncSetAttribute(function, kind, value))
            self._functions[name] = function
        return self._functions[name]

    def resident(self, name: str, threads: int, shared: int) -> int:
        """How many blocks of a kernel one of the GPU's multiprocessors runs at a time.

        Raises:
            DriverError: no such entry, or it wants more shared memory than there is.
        """
        count = self._driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
        return int(self._done(count(self._function(name, shared), threads, shared)))

    def launch(
        self,
        name: str,
        grid: Triple,
        block: Triple,
        stream: int,
        arguments: Sequence[int],
        shared: int = 0,
    ) -> None:
        """Start one kernel.

        Args:
            name: an entry point of the source.
            grid, block: see :func:`carcodec.plugins.resampler.geometry`.
            stream: a CUDA stream's handle.
            arguments: in the kernel's order: addresses as :class:`Pointer`, numbers as int.
            shared: bytes of dynamic shared memory, the same for every launch of that kernel.

        Raises:
            DriverError: no such entry, or the launch failed.
        """
        kinds = (ctypes.c_void_p if isinstance(a, Pointer) else ctypes.c_int for a in arguments)
        given = (tuple(map(int, arguments)), tuple(kinds))
        function = self._function(name, shared)
        self._done(self._driver.cuLaunchKernel(function, *grid, *block, shared, stream, given, 0))

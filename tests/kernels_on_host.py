"""Our CUDA kernels as a library for the CPU, compiled by g++ under ``cuda_on_host.hpp``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from carcodec.plugins.driver import Pointer

HERE = Path(__file__).parent


def library(source: Path, entries: str, folder: Path) -> ctypes.CDLL:
    """``source`` with C++ behind it that exports a ``run_`` for each kernel."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no g++, or one that does not know what the header takes")
    program = folder / "driver.cpp"
    program.write_text(f'#include "cuda_on_host.hpp"\n#include "{source.name}"\n{entries}')
    includes = [f"-I{HERE}", f"-I{source.parent}"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    done = subprocess.run(
        [compiler, *flags, *includes, str(program), "-o", str(folder / "host.so")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "host.so"))


class HostKernels:
    """Launches the kernels' host versions: what PyTorch hands to the driver, run here."""

    def __init__(self, host: ctypes.CDLL) -> None:
        self.host = host
        self.started: list[str] = []

    def resident(self, name: str, threads: int, shared: int) -> int:
        return 1 if shared <= 227 << 10 else 0

    def launch(
        self,
        name: str,
        grid: Any,
        block: Any,
        stream: int,
        arguments: Sequence[int],
        shared: int = 0,
    ) -> None:
        self.started.append(name)
        kinds = [ctypes.c_void_p if isinstance(a, Pointer) else ctypes.c_int for a in arguments]
        sizes = [(ctypes.c_int * 3)(*three) for three in (grid, block)]
        given = [kind(int(a)) for kind, a in zip(kinds, arguments, strict=True)]
        getattr(self.host, f"run_{name}")(*sizes, *given)

"""Kernels' PTX: as shipped, or compiled here by NVRTC."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["CompilingError", "compiled", "shipped"]


class CompilingError(RuntimeError):
    """A kernel cannot be compiled here."""


def shipped(source: Path) -> bytes:
    """PTX of a CUDA source, in CUDA 13.0's version of it, for an architecture and later ones.

    Newer PTX would be refused by older drivers. Written by ``python -m
    carcodec.plugins.compiling``.

    Raises:
        CompilingError: it is not that of the source beside it.
    """
    path = source.with_suffix(".ptx")
    text = path.read_bytes()
    if not text.startswith(_mark(source)):
        raise CompilingError(f"{path.name} is not made from {source.name}: compile it again")
    return text


def compiled(source: Path, architecture: str) -> bytes:
    """PTX made by NVRTC, which needs no GPU and no toolkit.

    Args:
        source: the CUDA source.
        architecture: such as ``compute_75``.

    Raises:
        CompilingError: NVRTC is not installed, or refuses.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompilingError(
            "compiling a kernel takes NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error

    def done(result: tuple[Any, ...]) -> Any:
        status, *rest = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilingError(f"NVRTC failed: {status.name}{_log(nvrtc, program)}")
        return rest[0] if rest else None

    program: Any = None
    try:
        text = source.read_text("utf-8").encode()
        program = done(nvrtc.nvrtcCreateProgram(text, source.name.encode(), 0, [], []))
        kinds = (
            f"--gpu-architecture={architecture}",
            "--std=c++17",
            "--device-as-default-execution-space",
        )
        options = [kind.encode() for kind in kinds]
        done(nvrtc.nvrtcCompileProgram(program, len(options), options))
        made: bytes = b" " * done(nvrtc.nvrtcGetPTXSize(program))
        done(nvrtc.nvrtcGetPTX(program, made))
    except (OSError, RuntimeError) as error:
        if isinstance(error, CompilingError):
            raise
        raise CompilingError(f"NVRTC cannot be loaded: {error}") from error
    finally:
        if program is not None:
            nvrtc.nvrtcDestroyProgram(program)
    return _mark(source) + made.rstrip(b"\0 ")


def _log(nvrtc: Any, program: Any) -> str:
    if program is None:
        return ""
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    text = b" " * size
    nvrtc.nvrtcGetProgramLog(program, text)
    lines = text.decode(errors="replace").strip("\0 \n").splitlines()
    return f": {lines[0]}" if lines else ""


def _mark(source: Path) -> bytes:
    digest = hashlib.sha256(source.read_text("utf-8").encode()).hexdigest()
    return f"// of {source.name} {digest}\n".encode()


if __name__ == "__main__":
    from carcodec.plugins import convolution, resampler

    for kernels in (resampler, convolution):
        made = compiled(kernels.SOURCE, kernels.ARCHITECTURE)
        kernels.SOURCE.with_suffix(".ptx").write_bytes(made)

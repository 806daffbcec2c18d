"""The resampler's PTX: as shipped, or compiled here by NVRTC."""

from __future__ import annotations

import hashlib
from typing import Any

from carcodec.plugins.resampler import FOLDER, source

__all__ = ["ARCHITECTURE", "CompilingError", "compiled", "shipped"]

ARCHITECTURE = "compute_75"  # the oldest that CUDA 13 knows; drivers translate it for later ones


class CompilingError(RuntimeError):
    """The kernel cannot be compiled here."""


def shipped() -> bytes:
    """PTX for :data:`ARCHITECTURE` and later, in CUDA 13.0's version of it.

    Newer PTX would be refused by older drivers. Written by ``python -m
    carcodec.plugins.resampler.compiling``.

    Raises:
        CompilingError: it is not that of the source beside it.
    """
    text = (FOLDER / "resampler.ptx").read_bytes()
    if not text.startswith(_mark()):
        raise CompilingError("resampler.ptx is not made from resampler.cu: compile it again")
    return text


def compiled(architecture: str = ARCHITECTURE) -> bytes:
    """PTX made by NVRTC, which needs no GPU and no toolkit.

    Raises:
        CompilingError: NVRTC is not installed, or refuses.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompilingError(
            "compiling the resampler takes NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error

    def done(result: tuple[Any, ...]) -> Any:
        status, *rest = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilingError(f"NVRTC failed: {status.name}{_log(nvrtc, program)}")
        return rest[0] if rest else None

    program: Any = None
    try:
        program = done(nvrtc.nvrtcCreateProgram(source().encode(), b"resampler.cu", 0, [], []))
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        done(nvrtc.nvrtcCompileProgram(program, len(options), options))
        text: bytes = b" " * done(nvrtc.nvrtcGetPTXSize(program))
        done(nvrtc.nvrtcGetPTX(program, text))
    except (OSError, RuntimeError) as error:
        if isinstance(error, CompilingError):
            raise
        raise CompilingError(f"NVRTC cannot be loaded: {error}") from error
    finally:
        if program is not None:
            nvrtc.nvrtcDestroyProgram(program)
    return _mark() + text.rstrip(b"\0 ")


def _log(nvrtc: Any, program: Any) -> str:
    if program is None:
        return ""
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    text = b" " * size
    nvrtc.nvrtcGetProgramLog(program, text)
    lines = text.decode(errors="replace").strip("\0 \n").splitlines()
    return f": {lines[0]}" if lines else ""


def _mark() -> bytes:
    return f"// of resampler.cu {hashlib.sha256(source().encode()).hexdigest()}\n".encode()


if __name__ == "__main__":
    (FOLDER / "resampler.ptx").write_bytes(compiled())

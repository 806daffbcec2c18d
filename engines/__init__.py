"""Inference engines: what executes a model's networks. One file an engine, one protocol."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from carcodec.errors import EngineError, MissingDependencyError
from carcodec.zoo import ModelCard, Quantised

__all__ = [
    "ENGINES", "IN_8_BITS", "ON_GPU", "OPTIONS", "Engine", "Levelled", "Network", "Pipelined",
    "at_once", "available", "batches", "get", "has_gpu", "int8", "load", "missing", "options",
    "over", "resolve",
]  # fmt: skip

# name -> (modules to look for, extra that brings them), in the order "auto" prefers
ENGINES: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorrt": (("tensorrt", "cuda.bindings", "onnx"), "tensorrt"),
    "tensorrt-rtx": (("tensorrt_rtx_bindings", "cuda.bindings", "onnx"), "tensorrt-rtx"),
    "openvino": (("openvino", "onnx"), "openvino"),
    "onnxruntime": (("onnxruntime",), ""),
    "pytorch": (("torch", "onnx"), "torch"),
}


ON_GPU = ("tensorrt", "tensorrt-rtx")
IN_8_BITS = ("openvino", "onnxruntime")  # what these run, where the model has it
# what may follow an engine's name: "pytorch:bf16+compile"
OPTIONS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("fp32", "fp16"),
    "tensorrt-rtx": ("fp32", "fp16"),
    "openvino": ("fp32", "bf16"),
    "onnxruntime": ("fp32",),
    "pytorch": ("fp32", "fp16", "bf16", "compile"),
}
log = logging.getLogger("carcodec")


class Network(Protocol):
    """A loaded network: ``(1, 3, H, W)`` float32 in, the same in other sizes out.

    ``quality`` in [0, 1] (1 is lossless) is that of the stored LR, for a conditioned upscaler;
    other networks ignore it.
    """

    def __call__(self, image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]: ...


@runtime_checkable
class Pipelined(Protocol):
    """A network that is faster with several tiles on their way at once."""

    def stream(
        self, tiles: Iterable[NDArray[np.float32]], quality: float = 1.0
    ) -> Iterator[NDArray[np.float32]]:
        """Results in order; takes tiles ahead of what it has given back."""
        ...


@runtime_checkable
class Levelled(Protocol):
    """A network that turns levels into floats and back where it computes: bytes are copied."""

    def takes(self, tile: NDArray[Any], peak: int = 255, channels: int = 3) -> bool:
        """Whether :meth:`levels` is for tiles like this one, and for such results."""
        ...

    def levels(
        self,
        tiles: Iterable[NDArray[Any]],
        quality: float = 1.0,
        peak: int = 255,
        channels: int = 3,
    ) -> Iterator[NDArray[Any]]:
        """Results in order, as :meth:`Pipelined.stream` has them, but in levels.

        Args:
            tiles: ``(h, w)`` or ``(h, w, 3)`` uint8 or uint16.
            peak: of an upscaler's results: 255 in uint8, 65535 in uint16.
            channels: of the results, ``(H, W, channels)``; 1 is the mean of what is restored.
        """
        ...


def over(
    network: Network, tiles: Iterable[NDArray[np.float32]], quality: float = 1.0
) -> Iterator[NDArray[np.float32]]:
    """The network's results for ``tiles``, in order."""
    if isinstance(network, Pipelined):
        return network.stream(tiles, quality)
    return (network(tile, quality) for tile in tiles)


class Engine(Protocol):
    """What an engine module's ``load`` looks like."""

    def load(
        self, card: ModelCard, side: str, threads: int, options: tuple[str, ...] = ()
    ) -> Network:
        """Load one side (``downscaler`` or ``upscaler``) of a model.

        ``threads`` 0 leaves the number to the engine; ``options`` are of :data:`OPTIONS`. Weights
        are checked against the card.
        """
        ...


def available() -> list[str]:
    """Names of the engines that are installed and can run here, in the order of preference."""
    there = [name for name in ENGINES if not missing(name)]
    return [name for name in there if name not in ON_GPU or has_gpu()]


def missing(name: str) -> list[str]:
    """Which of an engine's packages are not installed."""
    return [module for module in ENGINES[name][0] if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is itself missing
        return False


@functools.cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA driver with a GPU, as far as cuda-bindings can tell."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return False
        status, count = driver.cuDeviceGetCount()
    except (ImportError, RuntimeError):
        return False
    return bool(status == driver.CUresult.CUDA_SUCCESS and count > 0)


def at_once(name: str) -> int:
    """How many photos the engine called ``name`` is best given at a time.

    Two: while the networks have one, the small image of another is coded. On a GPU the networks are
    faster than the codecs, which have the CPU's cores to themselves there: a PNG takes a core for
    seconds.
    """
    on_gpu = name.partition(":")[0] in ("auto", "pytorch", *ON_GPU) and has_gpu()
    return min(16, max(2, os.cpu_count() or 1)) if on_gpu else 2


def load(name: str, card: ModelCard, side: str, threads: int = 0) -> Network:
    """Load one side of a model into the engine called ``name``; the log says which was taken.

    ``auto`` takes the fastest that works: one that is installed but cannot load the network (no
    room on the GPU, libraries of another version) is passed over, and the log says why.

    Raises: as :func:`resolve`.
        EngineError: the engine, or the last one there is, cannot load the network.
    """
    candidates = _preferred() if name == "auto" else [resolve(name)]
    chosen = options(name)
    for candidate in candidates or [resolve(name)]:
        try:
            network = _module(candidate).load(card, side, threads, chosen)
        except (EngineError, MissingDependencyError) as error:
            if candidate == candidates[-1]:
                raise
            log.warning("%s is passed over: %s", candidate, error)
        else:
            with_options = ":".join(filter(None, (candidate, "+".join(chosen))))
            bits = " in 8 bits" if candidate in IN_8_BITS and int8(card, side, chosen) else ""
            log.info("%s runs the %s of %s%s", with_options, side, card.name, bits)
            return network
    raise AssertionError("the last candidate raises")


def get(name: str = "auto") -> Engine:
    """The engine called ``name``; ``auto`` is the first that :func:`load` tries.

    Raises: as :func:`resolve`.
    """
    return _module(resolve(name))


def _module(name: str) -> Engine:
    engine: Any = importlib.import_module(f"carcodec.engines.{name.replace('-', '_')}")
    return engine  # type: ignore[no-any-return]


def options(name: str) -> tuple[str, ...]:
    """Those of :data:`OPTIONS` that ``name`` carries, unchecked."""
    return tuple(filter(None, name.partition(":")[2].split("+")))


def int8(card: ModelCard, side: str, options: tuple[str, ...]) -> Quantised | None:
    """What an engine of :data:`IN_8_BITS` runs of a side, unless a precision is asked for."""
    quantised: Quantised | None = None if options else getattr(card, side).int8
    return quantised


def resolve(name: str = "auto") -> str:
    """The engine's name, checked but not yet imported; ``auto`` is the fastest installed.

    ``name`` may carry :data:`OPTIONS`, which are checked and left out.

    Raises:
        EngineError: no engine of that name, or not with these options.
        MissingDependencyError: its package is not installed; names the pip command.
    """
    if name == "auto":
        usable = _preferred()
        if not usable:
            raise MissingDependencyError(
                "no inference engine is installed: pip install onnxruntime"
            )
        name = usable[0]
    name, chosen = name.partition(":")[0], options(name)
    if name == "auto":
        raise EngineError("options go with an engine's own name, not with auto: pytorch:fp32")
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: choose auto or one of {', '.join(ENGINES)}")
    known = OPTIONS.get(name, ())
    for option in chosen:
        if option not in known:
            has = f"options are {', '.join(known)}" if known else "it has none"
            raise EngineError(f"{name} has no option {option!r}: {has}")
    if len([option for option in chosen if option != "compile"]) > 1:
        raise EngineError(f"one precision at a time, not {'+'.join(chosen)}")
    if lacking := missing(name):
        extra = ENGINES[name][1]
        package = f'"carcodec[{extra}]"' if extra else lacking[0]
        raise MissingDependencyError(f"the {name} engine is not installed: pip install {package}")
    return name


def _preferred() -> list[str]:
    """What "auto" tries, best first: PyTorch before the CPU's engines on a GPU, else last."""
    found = available()
    if "pytorch" in found and has_gpu():
        import torch

        if torch.cuda.is_available():
            first = sum(name in ON_GPU for name in found)
            found.insert(first, found.pop(found.index("pytorch")))
    return found


def batches(tiles: Iterable[NDArray[Any]], most: int) -> Iterator[list[NDArray[Any]]]:
    """Tiles that follow each other and have one shape, up to ``most`` together."""
    together: list[NDArray[Any]] = []
    for tile in tiles:
        if together and (len(together) == most or tile.shape != together[0].shape):
            yield together
            together = []
        together.append(tile)
    if together:
        yield together

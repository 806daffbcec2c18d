"""Inference engines: what executes a model's networks. One file an engine, one protocol."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carcodec.errors import EngineError, MissingDependencyError
from carcodec.zoo import ModelCard

__all__ = ["ENGINES", "Engine", "Network", "available", "get", "resolve"]

# name -> (modules to look for, extra that brings them), in the order "auto" prefers
ENGINES: dict[str, tuple[tuple[str, ...], str]] = {
    "openvino": (("openvino", "onnx"), "openvino"),
    "onnxruntime": (("onnxruntime",), ""),
    "pytorch": (("torch", "onnx"), "torch"),
}


class Network(Protocol):
    """A loaded network: ``(1, 3, H, W)`` float32 in, the same in other sizes out.

    ``quality`` in [0, 1] (1 is lossless) is that of the stored LR, for a conditioned upscaler;
    other networks ignore it.
    """

    def __call__(self, image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]: ...


class Engine(Protocol):
    """What an engine module's ``load`` looks like."""

    def load(self, card: ModelCard, side: str, threads: int) -> Network:
        """Load one side (``downscaler`` or ``upscaler``) of a model.

        ``threads`` 0 leaves the number to the engine. Weights are checked against the card.
        """
        ...


def available() -> list[str]:
    """Names of the engines whose packages are installed, in the order of preference."""
    return [name for name in ENGINES if not _missing(name)]


def _missing(name: str) -> list[str]:
    return [module for module in ENGINES[name][0] if importlib.util.find_spec(module) is None]


def get(name: str = "auto") -> Engine:
    """The engine called ``name``; ``auto`` takes the fastest that is installed.

    Raises: as :func:`resolve`.
    """
    engine: Any = importlib.import_module(f"carcodec.engines.{resolve(name)}")
    return engine  # type: ignore[no-any-return]


def resolve(name: str = "auto") -> str:
    """The engine's name, checked but not yet imported; ``auto`` is the fastest installed.

    Raises:
        EngineError: no engine of that name.
        MissingDependencyError: its package is not installed; names the pip command.
    """
    if name == "auto":
        usable = [n for n in available() if n != "pytorch"] or available()
        if not usable:
            raise MissingDependencyError(
                "no inference engine is installed: pip install onnxruntime"
            )
        name = usable[0]
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: choose auto or one of {', '.join(ENGINES)}")
    if missing := _missing(name):
        extra = ENGINES[name][1]
        package = f'"carcodec[{extra}]"' if extra else missing[0]
        raise MissingDependencyError(f"the {name} engine is not installed: pip install {package}")
    return name

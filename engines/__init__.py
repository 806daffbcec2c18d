"""Inference engines: what executes a model's networks. One file an engine, one protocol."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carcodec.errors import EngineError, MissingDependencyError
from carcodec.zoo import ModelCard

__all__ = ["ENGINES", "Engine", "Network", "available", "get"]

# name -> (module to look for, extra that brings it), in the order "auto" prefers
ENGINES: dict[str, tuple[str, str]] = {
    "openvino": ("openvino", "openvino"),
    "onnxruntime": ("onnxruntime", ""),
    "pytorch": ("torch", "torch"),
}


class Network(Protocol):
    """A loaded network: ``(1, 3, H, W)`` float32 in, the same in other sizes out."""

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]: ...


class Engine(Protocol):
    """What an engine module's ``load`` looks like."""

    def load(self, card: ModelCard, side: str, threads: int) -> Network:
        """Load one side (``downscaler`` or ``upscaler``) of a model.

        ``threads`` 0 leaves the number to the engine. Weights are checked against the card.
        """
        ...


def available() -> list[str]:
    """Names of the engines whose packages are installed, in the order of preference."""
    return [name for name, (module, _) in ENGINES.items() if importlib.util.find_spec(module)]


def get(name: str = "auto") -> Engine:
    """The engine called ``name``; ``auto`` takes the fastest that is installed.

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
    module, extra = ENGINES[name]
    if importlib.util.find_spec(module) is None:
        package = f'"carcodec[{extra}]"' if extra else module
        raise MissingDependencyError(f"the {name} engine is not installed: pip install {package}")
    engine: Any = importlib.import_module(f"carcodec.engines.{name}")
    return engine  # type: ignore[no-any-return]

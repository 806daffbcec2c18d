"""ONNX Runtime: the default engine. It inlines the resampler's local function by itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from carcodec.engines import Network, int8
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["load"]


def load(card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()) -> Network:
    """See :class:`carcodec.engines.Engine`; ``fp32`` forbids 8 bits."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Tiles have one shape, so the arena hands the same memory out again (without it every tile
    # pays for fresh pages, a quarter to a half of the time); planning by pattern would hold more.
    settings.enable_mem_pattern = False
    data = card.weights(int8(card, side, options) or getattr(card, side))
    try:
        session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load {card.name}: {error}") from error
    names = [source.name for source in session.get_inputs()]

    def run(image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]:
        given = (image, np.array([quality], np.float32))
        try:
            return np.asarray(session.run(None, dict(zip(names, given, strict=False)))[0])
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {card.name}: {error}") from error

    return run

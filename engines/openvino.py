"""OpenVINO: faster on Intel CPUs, and in bfloat16 where the CPU has it."""

from __future__ import annotations

import numpy as np
import openvino
from numpy.typing import NDArray

from carcodec.engines import Network
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["load"]


def load(card: ModelCard, side: str, threads: int = 0, precision: str = "") -> Network:
    """See :class:`carcodec.engines.Engine`; ``precision`` ``f32`` forbids bfloat16.

    The downscaler always runs in float32: what it writes is rounded to 8 bits once and for all.
    """
    import onnx
    from onnx import inliner

    data = card.weights(getattr(card, side))
    model = onnx.load_model_from_string(data)
    if model.functions:  # OpenVINO's reader knows no local functions
        model = inliner.inline_local_functions(model)
    core = openvino.Core()
    settings: dict[str, str] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if precision or side == "downscaler":
        settings["INFERENCE_PRECISION_HINT"] = precision or "f32"
    try:
        compiled = core.compile_model(
            core.read_model(model.SerializeToString(), b""), "CPU", settings
        )
    except Exception as error:
        raise EngineError(f"OpenVINO cannot load {card.name}: {error}") from error
    request = compiled.create_infer_request()

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.array(request.infer([image], share_inputs=True)[0])
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {card.name}: {error}") from error

    return run

"""OpenVINO: faster on most CPUs, and in bfloat16 where the CPU has it."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray
from onnx import TensorProto, inliner
from onnx.helper import make_tensor_value_info
from onnx.utils import Extractor

from carcodec.engines import Network, int8
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["load"]

_RESAMPLER = "AdaptiveResample"

# OpenVINO fills a table of NumPy's types where the first inference asks for it. Two threads that
# ask at once wait for each other for ever, so it is filled here.
openvino.Type.f32.to_dtype()


def load(card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()) -> Network:
    """See :class:`carcodec.engines.Engine`; ``fp32`` forbids 8 bits and bfloat16, ``bf16`` 8 bits.

    What surrounds the layers in 8 bits is float32: in bfloat16 it loses several times as much as
    they do, and is hardly faster. Without such layers bfloat16 is OpenVINO's choice.
    Only a downscaler's features may be bfloat16: the kernels made from them and the
    resampling, whose result is rounded to 8 bits once and for all, are always float32.
    """
    eight = int8(card, side, options)
    model = onnx.load_model_from_string(card.weights(eight or getattr(card, side)))
    if eight:
        _keep_sums(model)
    core = openvino.Core()
    settings: dict[str, str] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        # A stream is what serves one request. With one only, callers on several threads of their
        # own would wait for each other.
        streams = max(1, (os.cpu_count() or 1) // threads)
        settings["NUM_STREAMS"] = str(streams)
        settings["INFERENCE_NUM_THREADS"] = str(streams * threads)
    exact = settings | {"INFERENCE_PRECISION_HINT": "f32"}
    free = exact if eight or "fp32" in options else settings

    def compile(part: onnx.ModelProto, config: dict[str, str]) -> Any:
        if part.functions:  # OpenVINO's reader knows no local functions
            part = inliner.inline_local_functions(part)
        network = core.read_model(part.SerializeToString(), b"")
        return core.compile_model(network, "CPU", config)

    try:
        if any(node.op_type == _RESAMPLER for node in model.graph.node):
            trunk, rest = _split(model)
            compiled = [compile(trunk, free), compile(rest, exact)]
        else:
            compiled = [compile(model, free if side == "upscaler" else exact)]
    except Exception as error:
        raise EngineError(f"OpenVINO cannot load {card.name}: {error}") from error

    sources = len(model.graph.input)
    own = threading.local()  # a request holds its results: threads must not share it

    def run(image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]:
        inputs = [image, np.array([quality], np.float32)][:sources]
        try:
            if not hasattr(own, "requests"):
                own.requests = [part.create_infer_request() for part in compiled]
            for request in own.requests:
                found = request.infer(inputs, share_inputs=True, share_outputs=True)
                inputs = [image, *found.values()]
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {card.name}: {error}") from error
        return np.array(inputs[1])

    return run


def _keep_sums(model: onnx.ModelProto) -> None:
    """Leave out that convolutions' own results are rounded to 8 bits.

    ONNX Runtime computes in integers only what is rounded before and after. OpenVINO does without
    the latter, which is faster and nearer to float32.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    instead = {}
    for node in model.graph.node:
        rounded = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounded is None:
            continue
        made = made_by.get(rounded.input[0])
        if made is not None and made.op_type == "Conv":
            instead[node.output[0]] = rounded.input[0]
    for node in model.graph.node:
        if node.op_type == "Conv":  # what it reads is to be in 8 bits
            continue
        for i, name in enumerate(node.input):
            if name in instead:
                node.input[i] = instead[name]


def _split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A downscaler's features, and from the photo and these its last layers and resampling."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    channels = {
        weight.name: weight.dims[1] for weight in model.graph.initializer if weight.dims[1:]
    }
    resampler = next(node for node in model.graph.node if node.op_type == _RESAMPLER)
    heads = [made_by[head] for head in resampler.input[1:]]
    last = [layer for layer in heads if layer.op_type == "Conv"]  # there may be no offsets
    features = [layer.input[0] for layer in last]
    model.graph.value_info.extend(
        make_tensor_value_info(name, TensorProto.FLOAT, [1, channels[layer.input[1]], "h", "w"])
        for name, layer in zip(features, last, strict=True)
    )
    photo, small = model.graph.input[0].name, model.graph.output[0].name
    extractor = Extractor(model)
    return (
        extractor.extract_model([photo], features),
        extractor.extract_model([photo, *features], [small]),
    )

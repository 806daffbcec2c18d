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

from carcodec.engines import Network, int8, sampling
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard, halves

__all__ = ["load"]

_RESAMPLER = "AdaptiveResample"

# OpenVINO fills a table of NumPy's types where the first inference asks for it. Two threads that
# ask at once wait for each other for ever, so it is filled here.
openvino.Type.f32.to_dtype()


def load(card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()) -> Network:
    """See :class:`carcodec.engines.Engine`; ``fp32`` forbids 8 bits and bfloat16, ``bf16`` 8 bits.

    What surrounds the layers in 8 bits is float32: in bfloat16 it loses several times as much as
    they do, and is hardly faster. Without such layers bfloat16 is OpenVINO's choice.
    Only a downscaler's features may be bfloat16 or have layers in 8 bits: the kernels made from
    them and the resampling, whose result is rounded once and for all, are always float32.
    """
    eight = int8(card, side, options)
    model = halves.network(card, eight or getattr(card, side))
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
        return core.compile_model(read(part), "CPU", config)

    def read(part: onnx.ModelProto) -> Any:
        return core.read_model(part.SerializeToString(), b"")

    try:
        nodes = [node for node in model.graph.node if node.op_type == _RESAMPLER]
        if nodes and (last := _last(model, nodes[0])):
            trunk = sampling.channels_last(read(_trunk(model, last)))
            given: dict[str, int] = {a.name: a.i for a in nodes[0].attribute}
            rest = sampling.resampler(
                given["scale"], given["kernel"], bool(given["convex"]),
                *(_parameters(model, layer) for layer in last),
            )  # fmt: skip
            compiled = [core.compile_model(trunk, "CPU", free)]
            compiled.append(core.compile_model(rest, "CPU", exact))
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


def _last(model: onnx.ModelProto, resampler: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The last layers of a downscaler's kernels and offsets; none where it has no offsets."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    heads = [made_by[head] for head in resampler.input[1:]]
    return heads if all(layer.op_type == "Conv" for layer in heads) else []


def _trunk(model: onnx.ModelProto, last: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A downscaler's features: what the last layers read."""
    model.graph.value_info.extend(
        make_tensor_value_info(
            layer.input[0], TensorProto.FLOAT, [1, _parameters(model, layer)[0].shape[1], "h", "w"]
        )
        for layer in last
    )
    photo = model.graph.input[0].name
    return Extractor(model).extract_model([photo], [layer.input[0] for layer in last])


def _parameters(model: onnx.ModelProto, layer: onnx.NodeProto) -> sampling.Layer:
    """Weights ``(outputs, inputs)`` and biases of a 1×1 convolution."""
    found = {w.name: w for w in model.graph.initializer if w.name in layer.input}
    weight, bias = (onnx.numpy_helper.to_array(found[name]) for name in layer.input[1:])
    return weight.reshape(weight.shape[:2]), bias

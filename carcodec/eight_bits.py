"""A network's convolutions between QuantizeLinear and DequantizeLinear: ONNX in, ONNX out.

Post-training quantisation as in B. Jacob et al., CVPR 2018: a tensor's activations in 8 bits, an
output channel's weights in 7 (CPUs without VNNI add two products in 16 bits, which weights of 8
bits would overflow). The first layer, which sees the image itself, and the last, whose error
nothing corrects, stay in float32, and so do the sums that skip the layers between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Feed", "layers", "quantised"]

_WEIGHT_LEVELS = 63  # either side of 0: 7 bits
_FEWEST = 16  # channels that a layer in 8 bits takes: before that, it is not what takes time
_DRAWN = 8192  # values of a tensor and an image, whose ranges are to be found

Feed = dict[str, NDArray[np.float32]]


def layers(network: Any) -> list[str]:
    """Names, given where there are none, of the convolutions that are to be in 8 bits."""
    channels = {w.name: w.dims[1] for w in network.graph.initializer if len(w.dims) == 4}
    deeper = set()  # what a convolution is still to come after
    chosen = []
    for i, node in reversed(list(enumerate(network.graph.node))):
        node.name = node.name or f"{node.op_type}_{i}"
        convolves = node.op_type == "Conv"
        follows = any(output in deeper for output in node.output)
        if convolves and follows and channels.get(node.input[1], 0) >= _FEWEST:
            chosen.append(node.name)
        if convolves or follows:
            deeper.update(node.input)
    return chosen[::-1]


def quantised(network: Any, layers: list[str], feeds: list[Feed]) -> bytes:
    """The network with its larger convolutions between QuantizeLinear and DequantizeLinear.

    Sums and what is added to them stay as they are. ONNX Runtime computes in integers only what is
    rounded before and after; a ReLU is done with the rounding that follows it.
    """
    import onnx

    graph, numpy = network.graph, onnx.numpy_helper
    before_relu = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    inputs = {node.input[0] for node in graph.node if node.name in layers}
    results = {node.output[0] for node in graph.node if node.name in layers} - before_relu
    ranges = _ranges(network, sorted(inputs | results), feeds)
    weights = {weight.name: numpy.to_array(weight) for weight in graph.initializer}
    nodes: list[Any] = []

    def rounded(name: str) -> str:
        return f"{name}.rounded"

    def restored(name: str, levels: str, step: Any, zero: Any, **axis: Any) -> None:
        """What is ``step * (levels - zero)`` of a tensor's levels."""
        for part, value in (("step", np.asarray(step, np.float32)), ("zero", zero)):
            graph.initializer.append(numpy.from_array(value, f"{name}.{part}"))
        given = [levels, f"{name}.step", f"{name}.zero"]
        if not axis:
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, *given[1:]], [levels]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", given, [rounded(name)], **axis))

    def in_integers(layer: Any) -> None:
        image, weight, bias = layer.input
        step = (ranges[image][1] - ranges[image][0]) / 255
        size = np.abs(weights[weight]).max((1, 2, 3))
        steps = np.where(size > 0, size, 1) / _WEIGHT_LEVELS
        kernels = np.rint(weights[weight] / steps[:, None, None, None]).astype(np.int8)
        sums = np.rint(weights[bias] / (step * steps)).astype(np.int32)
        own, own_bias = f"{layer.name}.weight", f"{layer.name}.bias"  # layers may share theirs
        for name, levels, each in ((own, kernels, steps), (own_bias, sums, step * steps)):
            graph.initializer.append(numpy.from_array(levels, f"{name}.levels"))
            zero = np.zeros(len(levels), levels.dtype)
            restored(name, f"{name}.levels", each, zero, axis=0)
        layer.input[:] = [rounded(name) for name in (image, own, own_bias)]

    for node in list(graph.node):
        if node.name in layers:
            in_integers(node)
        elif results.intersection(node.input):
            node.input[:] = [rounded(n) if n in results else n for n in node.input]
        nodes.append(node)
        for name in ranges.keys() & set(node.output):
            low, high = ranges[name]
            step = (high - low) / 255
            restored(name, f"{name}.levels", step, np.asarray(round(-low / step), np.uint8))
    read = {name for node in nodes for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in read]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        copies = [type(value)() for value in values]
        for copy, value in zip(copies, values, strict=True):
            copy.CopyFrom(value)
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(network)
    return bytes(network.SerializeToString())


def _ranges(network: Any, names: list[str], feeds: list[Feed]) -> dict[str, tuple[float, float]]:
    """For each tensor the range, around 0, that rounds what is in it with the least square error.

    What lies outside is clipped. Section 3.1 of M. Nagel et al., "A white paper on neural network
    quantization" (2021). The whole range loses two to four times as many dB.
    """
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(network)
    for name in names:
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    drawn: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    ends = dict.fromkeys(names, (0.0, 0.001))  # of a tensor that is 0 everywhere, too
    for feed in feeds:
        for name, found in zip(names, session.run(names, feed), strict=True):
            low, high = ends[name]
            ends[name] = (min(low, float(found.min())), max(high, float(found.max())))
            values = found.ravel()
            drawn[name].append(values[random.integers(0, values.size, _DRAWN)])
    best = {}
    for name, (low, high) in ends.items():
        values = np.concatenate(drawn[name])

        def error(share: float, low: float = low, high: float = high, x: Any = values) -> float:
            step = share * (high - low) / 255
            levels = np.clip(np.round(x / step), round(share * low / step), share * high / step)
            return float(np.mean(np.square(levels * step - x)))

        share = min(np.arange(0.2, 1.01, 0.05), key=error)
        best[name] = (float(share * low), float(share * high))
    return best

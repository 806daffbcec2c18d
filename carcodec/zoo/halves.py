"""Networks whose weights are stored in float16, in half of a file: they compute in float32.

A Cast stands before what reads such a weight, so that ONNX Runtime needs to know nothing of it.
What looks at weights itself (:func:`network`) sees float32 without Casts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from carcodec.zoo.card import ModelCard, Quantised, Side

__all__ = ["narrowed", "network"]


def network(card: ModelCard, side: Side | Quantised) -> onnx.ModelProto:
    """A side's graph, as it is or in 8 bits, its weights in float32 however they are stored.

    Raises: as :meth:`.ModelCard.weights`.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load_model_from_string(card.weights(side))
    graph = model.graph
    halves = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT16}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in halves]
    named = {cast.output[0]: cast.input[0] for cast in casts}
    for weight in halves.values():
        wide = numpy_helper.to_array(weight).astype("float32")
        weight.CopyFrom(numpy_helper.from_array(wide, weight.name))
    for cast in casts:
        graph.node.remove(cast)
    for node in graph.node:
        node.input[:] = [named.get(name, name) for name in node.input]
    return model


def narrowed(model: onnx.ModelProto) -> None:
    """Store a graph's matrices and kernels in float16, each with a Cast before what reads it.

    Packages are built with this function alone (``setup.py``), before carcodec is installed.
    Nothing is lost of weights that float16 can hold.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    casts, wide = [], {}
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            wide[weight.name] = f"{weight.name}.float32"
            half = numpy_helper.to_array(weight).astype("float16")
            weight.CopyFrom(numpy_helper.from_array(half, weight.name))
            casts.append(
                helper.make_node("Cast", [weight.name], [wide[weight.name]], to=TensorProto.FLOAT)
            )
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = [wide.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model)

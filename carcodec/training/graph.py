"""The networks as ONNX graphs, written node by node so that the file is small and legible.

Initialisers carry the names of the PyTorch parameters they are, so that the same file feeds
every engine. The adaptive resampler is one node, ``carcodec::AdaptiveResample``, with a local
function for a body (see :func:`resample_function`).
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from carcodec.networks import blocks, rsrnet
from carcodec.networks.blocks import PlaneNetwork
from carcodec.networks.car import EDSR, ResamplerNet
from carcodec.networks.plain import BicubicUpscaler, Unscaled

__all__ = ["OPSET", "resample_function", "written"]

OPSET = 17
DOMAIN = "carcodec"


class _Graph:
    """Nodes and initialisers in the making; every method returns the name of its result."""

    def __init__(self, parameters: dict[str, Any] | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.parameters = parameters or {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind.lower()}_{len(self.nodes)}" + "_" * i for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        array = np.asarray(value, dtype)
        return str(self.op("Constant", value=numpy_helper.from_array(array)))

    def parameter(self, name: str) -> str:
        if any(known.name == name for known in self.initialisers):  # a network that recurs
            return name
        array = self.parameters[name].detach().float().cpu().numpy()
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def edges(self, x: str, width: int) -> str:
        """Edge pixels repeated outwards."""
        pads = self.constant([0, 0, width, width] * 2, np.int64)
        return str(self.op("Pad", x, pads, mode="edge"))

    def conv(self, x: str, name: str, stride: int = 1, padding: int = 0) -> str:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        kernel = list(self.parameters[f"{name}.weight"].shape[2:])
        return str(
            self.op(
                "Conv", x, weight, bias,
                kernel_shape=kernel, strides=[stride] * 2, pads=[padding] * 4,
            )
        )  # fmt: skip

    def rounded(self, x: str) -> str:
        """Clamped to [0, 1] and rounded to multiples of 1/255, as 8 bits hold it."""
        level = self.op("Mul", x, self.constant(255))
        level = self.op("Clip", level, self.constant(0), self.constant(255))
        return str(self.op("Mul", self.op("Round", level), self.constant(1 / 255)))

    def linear(self, x: str, name: str) -> str:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return str(self.op("Gemm", x, weight, bias, transB=1))

    def model(
        self,
        name: str,
        sources: list[tuple[str, list[Any]]],
        result: tuple[str, list[Any]],
        functions: list[onnx.FunctionProto],
    ) -> onnx.ModelProto:
        self.nodes[-1].output[0] = result[0]
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in sources],
            [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, result[1])],
            self.initialisers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(DOMAIN, 1)] if functions else []
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            functions=functions,
            producer_name="carcodec",
            ir_version=9,
        )
        onnx.checker.check_model(model)
        return model


def _blocks(
    graph: _Graph,
    x: str,
    count: int,
    activation: str,
    scale: float = 1.0,
    gains: list[str] | None = None,
    names: str = "body.{}",
) -> str:
    attributes: dict[str, Any] = {"alpha": 0.2} if activation == "LeakyRelu" else {}
    for i in range(count):
        name = names.format(i)
        y = graph.conv(x, f"{name}.first", padding=1)
        y = graph.op(activation, y, **attributes)
        y = graph.conv(y, f"{name}.second", padding=1)
        if scale != 1:
            y = graph.op("Mul", y, graph.constant(scale))
        if gains:
            y = graph.op("Mul", y, gains[i])
        x = graph.op("Add", x, y)
    return x


def written(network: nn.Module, side: str, rounded: bool = True) -> onnx.ModelProto:
    """The ONNX graph of a network of ``side`` ``downscaler`` or ``upscaler``.

    A downscaler takes ``hr`` (1, 3, H, W) in [0, 1], sides multiples of 2*s, to ``lr``
    (1, 3, H/s, W/s), clamped and rounded to multiples of 1/255. An upscaler takes ``lr``
    (1, 3, h, w) to ``hr`` (1, 3, s*h, s*w), not clamped; a conditioned one has a second input,
    ``quality`` (1,), in [0, 1]. A step of a network that recurs is not ``rounded``.

    Raises:
        TypeError: not a network that can be written.
    """
    if isinstance(network, PlaneNetwork):
        return _planes_graph(network, side, rounded)
    if isinstance(network, EDSR):
        return _edsr_graph(network)
    if isinstance(network, ResamplerNet):
        return _resampler_graph(network)
    if isinstance(network, Unscaled):
        return _unscaled_graph()
    if isinstance(network, BicubicUpscaler):
        return _bicubic_graph(network)
    raise TypeError(f"{type(network).__name__} cannot be written")


def _planes_graph(network: PlaneNetwork, side: str, rounded: bool) -> onnx.ModelProto:
    """Traced by torch.fx, module by module."""
    tracer = _Tracer()
    graph = _Graph(dict(network.named_parameters()))
    source, target = ("hr", "lr") if side == "downscaler" else ("lr", "hr")
    x = source
    if network.channels == 1:  # planes as a batch
        x = graph.op("Transpose", x, perm=[1, 0, 2, 3])
    values: dict[str, str] = {}

    def value(argument: Any) -> str:
        return values[argument.name] if isinstance(argument, fx.Node) else graph.constant(argument)

    for node in tracer.trace(network).nodes:
        if node.op == "placeholder":
            values[node.name] = x
        elif node.op == "call_module":
            module = network.get_submodule(node.target)
            values[node.name] = _module(graph, module, node.target, value(node.args[0]))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            values[node.name] = graph.op(_FUNCTIONS[node.target], *map(value, node.args))
        elif node.op == "call_function" and node.target is torch.cat:
            parts, axis = node.args
            if len(parts) > 1:
                values[node.name] = graph.op("Concat", *map(value, parts), axis=axis)
            else:
                values[node.name] = value(parts[0])
        elif node.op == "output":
            x = value(node.args[0])
        else:
            raise TypeError(f"{node.op} {node.target} cannot be written")
    if network.channels == 1:
        x = graph.op("Transpose", x, perm=[1, 0, 2, 3])
    if side == "downscaler" and rounded:
        graph.rounded(x)
    dims: dict[str, list[Any]] = {"lr": [1, 3, "h", "w"], "hr": [1, 3, "H", "W"]}
    return graph.model(side, [(source, dims[source])], (target, dims[target]), [])


class _Tracer(fx.Tracer):
    traced_func_name = "core"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


_LEAVES = (blocks.Shortcut, blocks.Reduction, blocks.Luma, blocks.FirstPlane, rsrnet.QBReLU)
_FUNCTIONS: dict[Any, str] = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}


def _module(graph: _Graph, module: nn.Module, name: str, x: str) -> str:
    """One layer; returns its result's name."""
    found: Any
    if isinstance(module, nn.Conv2d):
        found = graph.conv(x, name, module.stride[0], int(module.padding[0]))
    elif isinstance(module, nn.ConvTranspose2d):
        found = graph.op(
            "ConvTranspose", x, graph.parameter(f"{name}.weight"), graph.parameter(f"{name}.bias"),
            kernel_shape=list(module.kernel_size), strides=list(module.stride),
            pads=[int(p) for p in module.padding] * 2,
            output_padding=list(module.output_padding),
        )  # fmt: skip
    elif isinstance(module, nn.LeakyReLU):
        found = graph.op("LeakyRelu", x, alpha=module.negative_slope)
    elif isinstance(module, nn.PReLU):
        slope = graph.parameter(f"{name}.weight")
        shape = graph.constant([-1, 1, 1], np.int64)
        found = graph.op("PRelu", x, graph.op("Reshape", slope, shape))
    elif isinstance(module, nn.PixelShuffle):
        found = graph.op("DepthToSpace", x, blocksize=module.upscale_factor, mode="CRD")
    elif isinstance(module, nn.PixelUnshuffle):
        # SpaceToDepth orders channels otherwise
        found = _unshuffled(graph, x, module.downscale_factor)
    elif isinstance(module, nn.AvgPool2d):
        sides = [int(module.kernel_size)] * 2  # type: ignore[arg-type]
        found = graph.op("AveragePool", x, kernel_shape=sides, strides=sides)
    elif isinstance(module, blocks.Shortcut):
        padded = graph.edges(x, module.padding) if module.padding else x
        found = graph.op("Conv", padded, graph.constant(module.weight.numpy()))
        found = graph.op("DepthToSpace", found, blocksize=module.scale, mode="CRD")
    elif isinstance(module, blocks.Reduction):
        weight = graph.constant(module.weight.numpy())
        padded = graph.edges(x, module.padding)
        sides = [module.scale] * 2
        found = graph.op("Conv", padded, weight, strides=sides, group=module.channels)
    elif isinstance(module, blocks.Luma):
        found = graph.op("Conv", x, graph.constant(module.weight.numpy()))
    elif isinstance(module, blocks.FirstPlane):
        ends = (graph.constant([v], np.int64) for v in (0, 1, 1))
        found = graph.op("Slice", x, *ends)
    elif type(module) in _SIMPLE:
        kind = _SIMPLE[type(module)]
        found = graph.op(kind, x) if kind else x
    else:
        raise TypeError(f"{type(module).__name__} cannot be written")
    return str(found)


# rounding comes at the end of every downscaler's graph
_SIMPLE: dict[type, str] = {
    nn.ReLU: "Relu",
    nn.Sigmoid: "Sigmoid",
    nn.AdaptiveAvgPool2d: "GlobalAveragePool",
    nn.Identity: "",
    rsrnet.QBReLU: "",
}


def _unshuffled(graph: _Graph, x: str, factor: int) -> str:
    """PixelUnshuffle: channel c of pixel (i, j) in a cell becomes channel c*f*f + i*f + j."""
    shape = graph.op("Shape", x)
    two = graph.constant([factor], np.int64)

    def length(axis: int) -> Any:
        at = graph.constant([axis], np.int64)
        return graph.op("Gather", shape, at, axis=0)

    rows, columns = (graph.op("Div", length(axis), two) for axis in (2, 3))
    split = graph.op("Concat", length(0), length(1), rows, two, columns, two, axis=0)
    y = graph.op("Transpose", graph.op("Reshape", x, split), perm=[0, 1, 3, 5, 2, 4])
    channels = graph.op("Mul", length(1), graph.constant([factor**2], np.int64))
    return str(
        graph.op("Reshape", y, graph.op("Concat", length(0), channels, rows, columns, axis=0))
    )


def _bicubic_graph(network: BicubicUpscaler) -> onnx.ModelProto:
    graph = _Graph()
    scales = graph.constant([1, 1, network.scale, network.scale])
    graph.op(
        "Resize", "lr", "", scales, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    return graph.model("upscaler", [("lr", [1, 3, "h", "w"])], ("hr", [1, 3, "H", "W"]), [])


def _edsr_graph(network: EDSR) -> onnx.ModelProto:
    graph = _Graph(dict(network.named_parameters()))
    x = graph.op("Sub", "lr", graph.constant(0.5))
    x = graph.conv(x, "head", network.stride, padding=1)
    first: Any = network.body[0]
    blocks, width = len(network.body), network.head.out_channels
    sources: list[tuple[str, list[Any]]] = [("lr", [1, 3, "h", "w"])]
    gains: list[str] = []
    if network.condition is not None:
        sources.append(("quality", [1]))
        q = graph.op("Reshape", "quality", graph.constant([1, 1], np.int64))
        q = graph.op("Relu", graph.linear(q, "condition.0"))
        q = graph.linear(q, "condition.2")
        q = graph.op("Reshape", q, graph.constant([1, blocks * width, 1, 1], np.int64))
        lengths = graph.constant([width] * blocks, np.int64)
        split = graph.op("Split", q, lengths, axis=1, outputs=blocks)
        gains = [split] if blocks == 1 else split
    y = _blocks(graph, x, blocks, "Relu", first.residual_scale, gains)
    y = graph.conv(graph.op("Add", x, y), "tail", padding=1)
    around = graph.conv(graph.edges("lr", 2), "skip")
    if network.stride == 1:
        y = graph.op("Add", y, around)
        graph.op("DepthToSpace", y, blocksize=network.scale, mode="CRD")
    else:
        y = graph.op("DepthToSpace", y, blocksize=network.scale * network.stride, mode="CRD")
        if network.scale > 1:
            around = graph.op("DepthToSpace", around, blocksize=network.scale, mode="CRD")
        graph.op("Add", y, around)
    return graph.model("upscaler", sources, ("hr", [1, 3, "H", "W"]), [])


def _resampler_graph(network: ResamplerNet) -> onnx.ModelProto:
    graph = _Graph(dict(network.named_parameters()))
    stride = network.cell * network.scale
    x = graph.op("Sub", "hr", graph.constant(0.5))
    x = graph.op("LeakyRelu", graph.conv(x, "head", stride, stride), alpha=0.2)
    if network.context is not None:
        count = len(network.context) - 4
        y = graph.op("LeakyRelu", graph.conv(x, "context.0", 2), alpha=0.2)
        for i in range(count):
            y = _blocks(graph, y, 1, "LeakyRelu", names=f"context.{i + 2}")
        y = graph.conv(y, f"context.{count + 2}")
        x = graph.op("Add", x, graph.op("DepthToSpace", y, blocksize=2, mode="CRD"))
    x = _blocks(graph, x, len(network.body), "LeakyRelu")
    heads = []
    for branch in ("weights", "offsets") if network.offsets is not None else ("weights",):
        y = graph.op("LeakyRelu", graph.conv(x, f"{branch}.0", padding=1), alpha=0.2)
        if network.cell > 1:
            y = graph.conv(y, f"{branch}.2")
            y = graph.op("DepthToSpace", y, blocksize=network.cell, mode="CRD")
            y = graph.op("LeakyRelu", y, alpha=0.2)
        heads.append(graph.conv(y, f"{branch}.{len(getattr(network, branch)) - 1}"))
    if network.offsets is None:
        still = graph.op("Mul", heads[0], graph.constant(0))
        heads.append(graph.op("Concat", still, still, axis=1))
    node = helper.make_node(
        "AdaptiveResample", ["hr", *heads], ["lr"], domain=DOMAIN,
        scale=network.scale, kernel=network.kernel, convex=int(network.convex),
    )  # fmt: skip
    graph.nodes.append(node)
    function = resample_function(network.scale, network.kernel, network.convex)
    return graph.model(
        "downscaler", [("hr", [1, 3, "H", "W"])], ("lr", [1, 3, "h", "w"]), [function]
    )


def _unscaled_graph() -> onnx.ModelProto:
    graph = _Graph()
    graph.rounded("hr")
    return graph.model("downscaler", [("hr", [1, 3, "H", "W"])], ("lr", [1, 3, "H", "W"]), [])


def resample_function(scale: int, kernel: int, convex: bool) -> onnx.FunctionProto:
    """``AdaptiveResample(image, weights, offsets)`` in standard operators.

    ``weights`` and ``offsets`` are the raw heads; the body normalises and bounds them, reads
    the image bilinearly (eq. 1-3), clamps, and rounds to 8 bits. Instead of GridSample, each
    tap gathers its 2×2 neighbourhood from a reflection-padded image by index, and one matrix
    product per LR pixel does both interpolation and weighting: several times faster than
    ONNX Runtime's GridSample, and positions are whole pixels plus small offsets, so that
    the result does not depend on where in an image a tile lies.
    """
    graph = _Graph()
    taps = kernel * kernel
    half = (kernel - scale) // 2  # whole pixels from a cell's corner back to the first tap
    pad = half + scale + 1
    if (kernel - scale) % 2:
        raise ValueError("kernel and scale must both be even or both be odd")

    def dims(name: str, axis: int) -> str:
        shape = graph.op("Shape", name)
        return str(graph.op("Gather", shape, graph.constant(axis, np.int64), axis=0))

    # Kernel and offset heads to (h, w, taps)
    def last(name: str) -> str:
        squeezed = graph.op("Squeeze", name, graph.constant([0], np.int64))
        return str(graph.op("Transpose", squeezed, perm=[1, 2, 0]))

    weights = last("weights")
    if convex:
        weights = graph.op("Max", weights, graph.constant(1e-6))
        weights = graph.op(
            "Div", weights, graph.op("ReduceSum", weights, graph.constant([-1], np.int64))
        )
    else:
        mean = graph.op("ReduceMean", weights, axes=[-1])
        weights = graph.op("Add", weights, graph.op("Sub", graph.constant(1 / taps), mean))
    offsets = graph.op("Mul", graph.op("Tanh", last("offsets")), graph.constant(scale))
    dx, dy = graph.op("Split", offsets, graph.constant([taps, taps], np.int64), axis=-1, outputs=2)
    left, top = graph.op("Floor", dx), graph.op("Floor", dy)
    a, b = graph.op("Sub", dx, left), graph.op("Sub", dy, top)

    # Image to rows of 2×2 neighbourhoods, (H'*W', 12)
    pads = graph.constant([0, 0, pad, pad, 0, 0, pad + 1, pad + 1], np.int64)
    padded = graph.op("Pad", "image", pads, mode="reflect")
    rows = graph.op(
        "Transpose", graph.op("Squeeze", padded, graph.constant([0], np.int64)), perm=[1, 2, 0]
    )
    axes = graph.constant([0, 1], np.int64)
    corners = []
    for y in (0, 1):
        for x in (0, 1):
            begin = graph.constant([y, x], np.int64)
            end = graph.constant([y - 1 or 2**31 - 1, x - 1 or 2**31 - 1], np.int64)
            corners.append(graph.op("Slice", rows, begin, end, axes))
    table = graph.op(
        "Reshape", graph.op("Concat", *corners, axis=-1), graph.constant([-1, 12], np.int64)
    )

    # Row number of each tap's top-left neighbour
    width = graph.op("Add", dims("image", 3), graph.constant(2 * pad, np.int64))
    width = graph.op("Cast", width, to=TensorProto.INT32)
    step = graph.constant(scale, np.int32)

    def cells(axis: int, shape: list[int]) -> str:
        count = graph.op("Cast", dims("weights", axis), to=TensorProto.INT32)
        run = graph.op("Range", graph.constant(0, np.int32), count, graph.constant(1, np.int32))
        return str(graph.op("Reshape", graph.op("Mul", run, step), graph.constant(shape, np.int64)))

    tap = np.arange(kernel) - half + pad
    ky = graph.constant(np.repeat(tap, kernel), np.int32)
    kx = graph.constant(np.tile(tap, kernel), np.int32)
    y = graph.op("Add", cells(2, [-1, 1, 1]), ky)
    x = graph.op("Add", cells(3, [-1, 1]), kx)
    rest = graph.op("Add", graph.op("Mul", y, width), x)
    moved_y = graph.op("Mul", graph.op("Cast", top, to=TensorProto.INT32), width)
    moved = graph.op("Add", moved_y, graph.op("Cast", left, to=TensorProto.INT32))
    read = graph.op("Gather", table, graph.op("Add", rest, moved), axis=0)

    # Coefficients (h, w, 4, taps): weight times bilinear share. One product per LR pixel makes a
    # 4×12 matrix, coefficients by corner against samples by corner, whose diagonal 1×3 blocks are
    # wanted: four times the arithmetic, but no interleaving of long arrays, which costs more.
    wb = graph.op("Mul", weights, b)
    wa = graph.op("Mul", weights, a)
    wab = graph.op("Mul", wb, a)
    lower_left = graph.op("Sub", wb, wab)
    upper_right = graph.op("Sub", wa, wab)
    upper_left = graph.op("Sub", graph.op("Sub", weights, wa), lower_left)
    row = graph.constant([-2], np.int64)
    four = [graph.op("Unsqueeze", c, row) for c in (upper_left, upper_right, lower_left, wab)]
    product = graph.op("MatMul", graph.op("Concat", *four, axis=-2), read)
    blocks = np.kron(np.eye(4), np.ones((1, 3)))
    product = graph.op("Mul", product, graph.constant(blocks))
    corners = graph.op("ReduceSum", product, row, keepdims=0)
    corners = graph.op("Reshape", corners, graph.constant([0, 0, 4, 3], np.int64))
    small = graph.op("ReduceSum", corners, row, keepdims=1)
    small = graph.op("Transpose", small, perm=[2, 3, 0, 1])
    graph.rounded(small)
    graph.nodes[-1].output[0] = "lr"
    return helper.make_function(
        DOMAIN, "AdaptiveResample", ["image", "weights", "offsets"], ["lr"],
        graph.nodes, [helper.make_opsetid("", OPSET)], ["scale", "kernel", "convex"],
    )  # fmt: skip

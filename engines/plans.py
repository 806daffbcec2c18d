"""TensorRT plans: built from a model's ONNX file, kept in the user's cache.

What :mod:`carcodec.engines.tensorrt` and :mod:`carcodec.engines.tensorrt_rtx` share; the two
libraries have one interface. :mod:`carcodec.engines.session` runs them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from carcodec import atomic
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard, halves

__all__ = [
    "Library", "PlanRefusedError", "Profile", "batch", "build", "folder", "graph",
    "halved", "key", "levelled", "may_halve", "plan", "profile",
]  # fmt: skip

Profile = tuple[int, int, int]  # least, usual and largest side of the network's input
RESAMPLER = "AdaptiveResample"
_BATCH_PIXELS = 2**22  # HR pixels that go through a network at once, if there are tiles enough,
_BATCH = 8  # but no more tiles than this


class PlanRefusedError(EngineError):
    """A plan does not compute what the network does."""


class Library:
    """One of the two TensorRTs.

    Attributes:
        name: the engine's.
        module: the package, imported.
        plugin: whether it takes our CUDA kernel for the resampler; else the function is inlined.
        timing: whether building times kernels, which a timing cache saves the next time.
    """

    def __init__(self, name: str, module: Any, plugin: bool, timing: bool) -> None:
        self.name, self.module, self.plugin, self.timing = name, module, plugin, timing
        self.logger = module.Logger(module.Logger.ERROR)

    @property
    def version(self) -> str:
        return str(self.module.__version__)


def folder() -> Path:
    """Where plans are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("carcodec", False)) / "plans"


def profile(card: ModelCard, side: str) -> Profile:
    """Sides of the tiles that the codec gives a network (:mod:`carcodec.codec`)."""
    if side == "upscaler":
        least = card.upscaler.stride
        usual = card.window(side)
        return least, usual, usual
    usual = card.window(side) * card.scale
    return 4 * card.scale, usual, usual


def batch(card: ModelCard, side: str, plugin: bool) -> int:
    """How many tiles a plan takes at once."""
    if side == "downscaler" and card.downscaler.family == "car" and not plugin:
        return 1  # the resampler's function is written for one photo
    usual = profile(card, side)[1] * (card.scale if side == "upscaler" else 1)
    return int(min(max(1, _BATCH_PIXELS // usual**2), _BATCH))


def may_halve(card: ModelCard, side: str) -> bool:
    """Whether half precision is for that side: what a downscaler makes is kept for good."""
    return side == "upscaler" and card.upscaler.family != "bicubic"


def graph(
    card: ModelCard, side: str, plugin: bool, half: bool = False, levels: bool = False
) -> onnx.ModelProto:
    """The ONNX graph that a parser is handed.

    With ``plugin`` the resampler's node loses its local function, so that the parser finds our
    plugin; without, the function is inlined. ``half`` turns an upscaler to float16. ``levels``
    makes images ``(n, h, w, 3)`` uint8. They come in batches wherever :func:`batch` is more than 1.
    """
    model = halves.network(card, getattr(card, side))
    if plugin:
        del model.functions[:]
        for node in model.graph.node:
            if node.op_type == RESAMPLER:
                node.attribute.append(helper.make_attribute("plugin_namespace", "carcodec"))
                node.attribute.append(helper.make_attribute("plugin_version", "1"))
    elif model.functions:
        model = inliner.inline_local_functions(model)
    if batch(card, side, plugin) > 1:
        for value in (*model.graph.input, *model.graph.output):
            if len(value.type.tensor_type.shape.dim) == 4:
                value.type.tensor_type.shape.dim[0].dim_param = "n"
    if half and side == "upscaler":
        model = halved(model)
    return _of_levels(model) if levels else model


def _of_levels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph between images in [0, 1] as one between levels: bytes are copied, not floats."""
    graph = model.graph
    image, result = graph.input[0], graph.output[0]
    names = [image.name, result.name]
    constants = {"peak": np.float32(255), "half": np.float32(0.5), "none": np.float32(0)}
    graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    first = [
        helper.make_node("Cast", [f"{names[0]}_levels"], ["levels_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["levels_float"], ["levels_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["levels_planes", "peak"], [names[0]]),
    ]
    last = [
        helper.make_node("Mul", [names[1], "peak"], ["result_scaled"]),
        helper.make_node("Add", ["result_scaled", "half"], ["result_shifted"]),
        helper.make_node("Clip", ["result_shifted", "none", "peak"], ["result_clipped"]),
        # whole numbers, however a builder's cast rounds
        helper.make_node("Floor", ["result_clipped"], ["result_whole"]),
        helper.make_node("Transpose", ["result_whole"], ["result_rows"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["result_rows"], [f"{names[1]}_levels"], to=TensorProto.UINT8),
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (image, result):
        n, channels, height, width = value.type.tensor_type.shape.dim
        dims = [d.dim_param or d.dim_value for d in (n, height, width, channels)]
        made = helper.make_tensor_value_info(f"{value.name}_levels", TensorProto.UINT8, dims)
        value.CopyFrom(made)
    onnx.checker.check_model(model)
    return model


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of float32 in float16, between casts at its ends: networks are strongly typed."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        _halve(tensor)
    for node in found.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                _halve(attribute.t)
    source, target = [i.name for i in found.graph.input], found.graph.output[0].name
    renamed = {name: f"{name}_half" for name in [*source, target]}
    for node in found.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    into = [helper.make_node("Cast", [n], [renamed[n]], to=TensorProto.FLOAT16) for n in source]
    out = helper.make_node("Cast", [renamed[target]], [target], to=TensorProto.FLOAT)
    nodes = [*into, *found.graph.node, out]
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    onnx.checker.check_model(found)
    return found


def _halve(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))


def levelled(card: ModelCard, side: str) -> bool:
    """Whether plans of that side are between levels: not where a network recurs."""
    return bool(getattr(card, side).steps == 1)


def key(
    library: Library, card: ModelCard, side: str, precision: str, device: str, levels: bool = False
) -> str:
    """What a plan is good for; another of any of it needs another plan."""
    parts = [
        library.name, library.version, card.digest, side, precision, device, profile(card, side),
        batch(card, side, library.plugin), library.plugin, levels,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    return f"{card.name}-v{card.version}-{side}-{precision}-{digest}.plan"


def build(
    library: Library,
    card: ModelCard,
    side: str,
    precision: str = "fp32",
    device: str = "",
    levels: bool = False,
) -> bytes:
    """Build a plan for every tile size of the codec.

    What was timed for one plan is not timed again for the next: see :func:`_timings`.

    Raises:
        EngineError: the parser or the builder refused; says the first reason.
    """
    trt = library.module
    builder = trt.Builder(library.logger)
    description = builder.create_network()
    parser = trt.OnnxParser(description, library.logger)
    model = graph(card, side, library.plugin, precision == "fp16", levels)
    if not parser.parse(model.SerializeToString()):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EngineError(f"{library.name} cannot read the {side} of {card.name}: {reason}")
    configuration = builder.create_builder_config()
    optimisation = builder.create_optimization_profile()
    image = description.get_input(0).name
    least, usual, most = profile(card, side)
    count = batch(card, side, library.plugin)
    sizes = (1, least), (count, usual), (count, most)
    optimisation.set_shape(image, *((n, s, s, 3) if levels else (n, 3, s, s) for n, s in sizes))
    for i in range(1, description.num_inputs):
        optimisation.set_shape(description.get_input(i).name, (1,), (1,), (1,))
    configuration.add_optimization_profile(optimisation)
    kept = _timings(library, device)
    if library.timing:
        timed = kept.read_bytes() if kept.exists() else b""
        configuration.set_timing_cache(configuration.create_timing_cache(timed), False)
    plan = builder.build_serialized_network(description, configuration)
    if plan is None:
        raise EngineError(f"{library.name} cannot build the {side} of {card.name}")
    if library.timing:
        with contextlib.suppress(OSError):  # it only saves time
            atomic.write(kept, bytes(memoryview(configuration.get_timing_cache().serialize())))
    return bytes(memoryview(plan))


def _timings(library: Library, device: str) -> Path:
    """Where the builder's timings are kept, for one TensorRT on one GPU."""
    parts = json.dumps([library.name, library.version, device])
    return folder() / f"{library.name}-{hashlib.sha256(parts.encode()).hexdigest()[:20]}.timings"


def plan(
    library: Library, card: ModelCard, side: str, precision: str, device: str,
    building: Callable[[], None] = lambda: None,
    refusal: Callable[[bytes], str] = lambda data: "", levels: bool = False,
) -> bytes:  # fmt: skip
    """The plan from the cache, or a new one that is kept there, of which ``building`` hears.

    ``refusal`` says what is wrong with a new plan, "" for nothing; the verdict is kept, too.

    Raises:
        PlanRefusedError: so it said, now or earlier.
        EngineError: it cannot be built or kept.
    """
    path = folder() / key(library, card, side, precision, device, levels)
    verdict = path.with_suffix(".refused")
    try:
        return path.read_bytes()
    except OSError:
        if verdict.exists():
            raise PlanRefusedError(verdict.read_text("utf-8")) from None
        building()
    data = build(library, card, side, precision, device, levels)
    reason = refusal(data)
    if reason:
        reason = f"{library.name} {precision}, the {side} of {card.name}: {reason}"
    try:
        atomic.write(verdict if reason else path, reason.encode() or data)
    except OSError as error:
        raise EngineError(
            f"the plan cannot be kept in {path.parent}: {error.strerror}; free some space there"
        ) from error
    if reason:
        raise PlanRefusedError(reason)
    return data

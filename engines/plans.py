"""TensorRT plans: built from a model's ONNX file, kept in the user's cache, run on a GPU.

What :mod:`carcodec.engines.tensorrt` and :mod:`carcodec.engines.tensorrt_rtx` share; the two
libraries have one interface.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from carcodec import atomic
from carcodec.engines import Network
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = [
    "Library", "Profile", "build", "device_name", "folder", "graph", "halved", "key", "network",
    "plan", "profile",
]  # fmt: skip

Profile = tuple[int, int, int]  # least, usual and largest side of the network's input
RESAMPLER = "AdaptiveResample"


class Library:
    """One of the two TensorRTs.

    Attributes:
        name: the engine's.
        module: the package, imported.
        plugin: whether it takes our CUDA kernel for the resampler; else the function is inlined.
    """

    def __init__(self, name: str, module: Any, plugin: bool) -> None:
        self.name, self.module, self.plugin = name, module, plugin
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
        least = int(card.upscaler.options.get("stride", 1))
        return least, 512, max(512, 2 * card.upscaler.halo + 2)
    scale, halo = card.scale, card.downscaler.halo
    usual = max(64, halo * (16 if scale <= 2 else 12), 2 * halo + 4)
    return 4 * scale, usual * scale, usual * scale


def graph(card: ModelCard, side: str, plugin: bool, half: bool = False) -> onnx.ModelProto:
    """The ONNX graph that a parser is handed.

    With ``plugin`` the resampler's node loses its local function, so that the parser finds our
    plugin; without, the function is inlined. ``half`` turns an upscaler to float16.
    """
    model = onnx.load_model_from_string(card.weights(getattr(card, side)))
    if plugin:
        del model.functions[:]
        for node in model.graph.node:
            if node.op_type == RESAMPLER:
                node.attribute.append(helper.make_attribute("plugin_namespace", "carcodec"))
                node.attribute.append(helper.make_attribute("plugin_version", "1"))
    elif model.functions:
        model = inliner.inline_local_functions(model)
    return halved(model) if half and side == "upscaler" else model


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


def key(library: Library, card: ModelCard, side: str, precision: str, device: str) -> str:
    """What a plan is good for; another of any of it needs another plan."""
    parts = [
        library.name, library.version, card.digest, side, precision, device, profile(card, side),
        library.plugin,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    return f"{card.name}-v{card.version}-{side}-{precision}-{digest}.plan"


def build(library: Library, card: ModelCard, side: str, precision: str = "fp32") -> bytes:
    """Build a plan for every tile size of the codec.

    Raises:
        EngineError: the parser or the builder refused; says the first reason.
    """
    trt = library.module
    builder = trt.Builder(library.logger)
    description = builder.create_network()
    parser = trt.OnnxParser(description, library.logger)
    model = graph(card, side, library.plugin, precision == "fp16")
    if not parser.parse(model.SerializeToString()):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EngineError(f"{library.name} cannot read the {side} of {card.name}: {reason}")
    configuration = builder.create_builder_config()
    optimisation = builder.create_optimization_profile()
    image = description.get_input(0).name
    optimisation.set_shape(image, *((1, 3, s, s) for s in profile(card, side)))
    for i in range(1, description.num_inputs):
        optimisation.set_shape(description.get_input(i).name, (1,), (1,), (1,))
    configuration.add_optimization_profile(optimisation)
    plan = builder.build_serialized_network(description, configuration)
    if plan is None:
        raise EngineError(f"{library.name} cannot build the {side} of {card.name}")
    return bytes(memoryview(plan))


def plan(
    library: Library, card: ModelCard, side: str, precision: str, device: str,
    building: Callable[[], None] = lambda: None,
) -> bytes:  # fmt: skip
    """The plan from the cache, or a new one that is kept there, of which ``building`` hears."""
    path = folder() / key(library, card, side, precision, device)
    try:
        return path.read_bytes()
    except OSError:
        building()
    data = build(library, card, side, precision)
    try:
        atomic.write(path, data)
    except OSError as error:
        raise EngineError(
            f"the plan cannot be kept in {path.parent}: {error.strerror}; free some space there"
        ) from error
    return data


class _Device:
    """The first GPU: its name, its primary context, memory and a stream."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.driver: Any = driver
        try:
            self.done(driver.cuInit(0))
            self.handle = self.done(driver.cuDeviceGet(0))
            self.context = self.done(driver.cuDevicePrimaryCtxRetain(self.handle))
        except RuntimeError as error:
            raise EngineError(f"there is no NVIDIA GPU to run on: {error}") from error
        name: bytes = self.done(driver.cuDeviceGetName(100, self.handle))
        self.name: str = name.split(b"\0")[0].decode()

    def done(self, result: tuple[Any, ...]) -> Any:
        status, *rest = result
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise EngineError(f"the NVIDIA driver failed: {status.name}")
        return rest[0] if rest else None

    def enter(self) -> None:
        """Make the context that of this thread."""
        self.done(self.driver.cuCtxSetCurrent(self.context))


class _Session:
    """A plan, loaded; one caller at a time."""

    def __init__(self, library: Library, device: _Device, data: bytes) -> None:
        self.device, self.lock = device, threading.Lock()
        device.enter()
        self.runtime = library.module.Runtime(library.logger)
        self.engine = self.runtime.deserialize_cuda_engine(data)
        self.context = self.engine and self.engine.create_execution_context()
        if self.context is None:
            raise EngineError(f"{library.name} cannot load its plan on {device.name}")
        kinds = library.module.TensorIOMode
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == kinds.INPUT]
        (self.output,) = (name for name in names if modes[name] == kinds.OUTPUT)
        self.stream = device.done(device.driver.cuStreamCreate(0))
        self.memory: dict[str, tuple[Any, int]] = {}

    def _room(self, name: str, size: int) -> Any:
        address, have = self.memory.get(name, (None, 0))
        if have < size:
            driver = self.device.driver
            if address is not None:
                self.device.done(driver.cuMemFree(address))
            address = self.device.done(driver.cuMemAlloc(size))
            self.memory[name] = (address, size)
        self.context.set_tensor_address(name, int(address))
        return address

    def run(self, given: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        driver, done = self.device.driver, self.device.done
        with self.lock:
            self.device.enter()
            for name in self.inputs:
                array = np.ascontiguousarray(given[name], np.float32)
                address = self._room(name, array.nbytes)
                copy = driver.cuMemcpyHtoDAsync(
                    address, array.ctypes.data, array.nbytes, self.stream
                )
                done(copy)
                if not self.context.set_input_shape(name, array.shape):
                    raise EngineError(f"a tile of {array.shape} is outside the plan's profile")
            result = np.empty(tuple(self.context.get_tensor_shape(self.output)), np.float32)
            address = self._room(self.output, result.nbytes)
            if not self.context.execute_async_v3(int(self.stream)):
                raise EngineError("TensorRT failed to run the network")
            done(driver.cuMemcpyDtoHAsync(result.ctypes.data, address, result.nbytes, self.stream))
            done(driver.cuStreamSynchronize(self.stream))
            return result


_DEVICE: list[_Device] = []


def device_name() -> str:
    """The GPU's name, which plans are kept under; "" without one."""
    if not _DEVICE:
        try:
            _DEVICE.append(_Device())
        except EngineError:
            return ""
    return _DEVICE[0].name


def network(library: Library, card: ModelCard, side: str) -> Network:
    """A network that runs on the GPU; its plan is built where the cache has none.

    Raises:
        EngineError: no GPU, or TensorRT refused.
    """
    if not _DEVICE:
        _DEVICE.append(_Device())
    data = plan(library, card, side, "fp32", _DEVICE[0].name)
    session = _Session(library, _DEVICE[0], data)
    source = session.inputs[0]

    def run(image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]:
        return session.run({source: image, "quality": np.array([quality], np.float32)})

    return run

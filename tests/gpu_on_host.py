"""Stands in for a GPU: the driver's calls on the CPU's own memory, plans run by ONNX Runtime.

Work waits on its stream until somebody must have it, as late as CUDA may do it: what reads memory
too early, or writes where a copy is still to come from, gets the wrong pixels.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Result = tuple[Any, ...]
OK = SimpleNamespace(name="CUDA_SUCCESS")


class Stream:
    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def finish(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.work[self.done - 1]()


class Event:
    stream, until = Stream(), 0


class Driver:
    """``cuda.bindings.driver``, as far as :mod:`carcodec.engines.session` uses it.

    Attributes:
        most: bytes of device memory that were held at once.
    """

    CUresult = SimpleNamespace(CUDA_SUCCESS=OK)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.held = self.most = 0
        self.lock = threading.RLock()  # a device does one thing at a time here

    def cuInit(self, flags: int) -> Result:
        return (OK,)

    def cuDeviceGet(self, index: int) -> Result:
        return OK, 0

    def cuDevicePrimaryCtxRetain(self, device: int) -> Result:
        return OK, "context"

    def cuDeviceGetName(self, length: int, device: int) -> Result:
        return OK, b"Host\0\0"

    def cuCtxSetCurrent(self, context: str) -> Result:
        assert context == "context"
        return (OK,)

    def cuStreamCreate(self, flags: int) -> Result:
        number = 1000 + len(self.streams)
        self.streams[number] = Stream()
        return OK, number

    def cuStreamSynchronize(self, stream: int) -> Result:
        with self.lock:
            self.streams[stream].finish(len(self.streams[stream].work))
        return (OK,)

    def cuEventCreate(self, flags: int) -> Result:
        return OK, Event()

    def cuEventRecord(self, event: Event, stream: int) -> Result:
        event.stream = self.streams[stream]
        event.until = len(event.stream.work)
        return (OK,)

    def cuStreamWaitEvent(self, stream: int, event: Event, flags: int) -> Result:
        source, until = event.stream, event.until
        self.streams[stream].work.append(lambda: source.finish(until))
        return (OK,)

    def cuMemAlloc(self, size: int) -> Result:
        self.held += size
        self.most = max(self.most, self.held)
        return self.cuMemHostAlloc(size, 0)

    def cuMemHostAlloc(self, size: int, flags: int) -> Result:
        buffer = (ctypes.c_ubyte * size)(*b"\x7f" * min(size, 4))
        self.memory[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cuMemFree(self, address: int) -> Result:
        self.held -= len(self.memory[address])
        return self.cuMemFreeHost(address)

    def cuMemFreeHost(self, address: int) -> Result:
        with self.lock:
            for stream in self.streams.values():  # freeing waits for all that runs
                stream.finish(len(stream.work))
        del self.memory[address]
        return (OK,)

    def _copy(self, to: int, source: int, size: int, stream: int) -> Result:
        self.streams[stream].work.append(lambda: ctypes.memmove(to, source, size))
        return (OK,)

    cuMemcpyHtoDAsync = cuMemcpyDtoHAsync = _copy


def seen(address: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    size = np.dtype(kind).itemsize * int(np.prod(shape))
    memory = (ctypes.c_ubyte * size).from_address(address)
    return np.ctypeslib.as_array(memory).view(kind).reshape(shape)


_KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Context:
    """An execution context: shapes and addresses count as they are when work is put on a stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= self.engine.most

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        given = {n: np.zeros(s, self.engine.kinds[n]) for n, s in self.shapes.items()}
        return tuple(self.engine.session.run(None, given)[0].shape)

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def run() -> None:
            kinds, last = self.engine.kinds, self.engine.names[-1]
            given = {n: seen(addresses[n], shape, kinds[n]) for n, shape in shapes.items()}
            result = self.engine.session.run(None, given)[0]
            with np.errstate(invalid="ignore"):
                gained = result * np.float32(self.engine.library.gain)
                seen(addresses[last], result.shape, kinds[last])[:] = gained.astype(kinds[last])

        self.engine.library.driver.streams[stream].work.append(run)
        return True


class Engine:
    """A plan, which here is the ONNX graph."""

    def __init__(self, library: Library, data: bytes) -> None:
        self.library, self.most = library, library.most
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        ends = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.kinds = {e.name: _KINDS[e.type] for e in ends}
        self.names = [*self.inputs, self.session.get_outputs()[0].name]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def create_execution_context(self) -> Context:
        return Context(self)


class Library:
    """Stands for :class:`carcodec.engines.plans.Library`.

    Attributes:
        gain: what float16 plans' results are multiplied by, to be wrong.
    """

    name, version, plugin, logger = "host", "1", False, None
    most = 8
    gain = 1.0

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.module = SimpleNamespace(
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            Runtime=lambda logger: SimpleNamespace(
                deserialize_cuda_engine=lambda data: Engine(self, data)
            ),
        )

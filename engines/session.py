"""Running TensorRT plans: tiles in batches, copies beside computing, memory that tiles bound.

A batch of tiles waits in pinned memory, is copied on its slot's stream, computed on the session's,
and copied back on the slot's: while one batch is computed, another is on its way in and a third on
its way out.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carcodec.engines import Network, batches, guard, log, plans
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["Device", "Levels", "Session", "asked", "device_name", "load", "network", "planned"]

Block = NDArray[np.float32]
_ON_THE_WAY = 2  # batches of one caller,
_SLOTS = 4  # and of all callers together
_APART, _UNTIMED = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING


class Device:
    """The first GPU: its name, its primary context, and calls that raise.

    Raises:
        EngineError: there is none.
    """

    def __init__(self, driver: Any = None) -> None:
        if driver is None:
            from cuda.bindings import driver as installed

            driver = installed
        self.driver = driver
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


class _Slot:
    """Room for one batch on its way: pinned and device memory, a stream, two events."""

    def __init__(self, device: Device) -> None:
        self.device, driver = device, device.driver
        self.stream = device.done(driver.cuStreamCreate(_APART))
        self.copied = device.done(driver.cuEventCreate(_UNTIMED))
        self.computed = device.done(driver.cuEventCreate(_UNTIMED))
        self.rooms: dict[str, tuple[Any, Any, int]] = {}

    def room(self, name: str, shape: tuple[int, ...], kind: Any) -> tuple[NDArray[Any], int]:
        """Pinned memory as an array, and the address of as much on the device."""
        driver, done = self.device.driver, self.device.done
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        pinned, there, have = self.rooms.get(name, (None, None, 0))
        if have < size:
            if have:
                done(driver.cuMemFreeHost(pinned))
                done(driver.cuMemFree(there))
            pinned, there = done(driver.cuMemHostAlloc(size, 0)), done(driver.cuMemAlloc(size))
            self.rooms[name] = (pinned, there, size)
        memory = (ctypes.c_ubyte * size).from_address(int(pinned))
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape), int(there)


class Session:
    """A plan, loaded; any number of threads may call it.

    Attributes:
        batch: how many tiles are computed at once.
        kind: of images: float32 ``(n, 3, h, w)``, or uint8 ``(n, h, w, 3)``.
    """

    def __init__(
        self,
        library: plans.Library,
        device: Device,
        data: bytes,
        batch: int,
        kind: Any = np.float32,
    ) -> None:
        self.device, self.batch, self.kind, self.lock = device, batch, kind, threading.Lock()
        device.enter()
        self.runtime = library.module.Runtime(library.logger)
        self.engine = self.runtime.deserialize_cuda_engine(data)
        self.context = self.engine and self.engine.create_execution_context()
        if self.context is None:
            raise EngineError(f"{library.name} cannot load its plan on {device.name}")
        kinds = library.module.TensorIOMode
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.image, *self.numbers = (name for name in names if modes[name] == kinds.INPUT)
        (self.output,) = (name for name in names if modes[name] == kinds.OUTPUT)
        driver = device.driver
        self.computing = device.done(driver.cuStreamCreate(_APART))
        self.slots: queue.LifoQueue[_Slot] = queue.LifoQueue()  # the one that has room already
        for _ in range(_SLOTS):
            self.slots.put(_Slot(device))

    def __call__(self, image: NDArray[Any], quality: float = 1.0) -> NDArray[Any]:
        return np.array(next(self.stream([image], quality)))

    def stream(self, tiles: Iterable[NDArray[Any]], quality: float = 1.0) -> Iterator[NDArray[Any]]:
        """See :class:`carcodec.engines.Pipelined`; a result is good until the next is asked for."""
        waiting: deque[tuple[_Slot, NDArray[Any]]] = deque()
        try:
            for tiled in batches(tiles, self.batch):
                slot = None
                while slot is None:
                    if len(waiting) >= _ON_THE_WAY:
                        yield from self._finished(*waiting.popleft())
                    slot = self._slot(wait=not waiting)
                    if slot is None:  # others have them all
                        yield from self._finished(*waiting.popleft())
                waiting.append((slot, self._started(slot, tiled, quality)))
            while waiting:
                yield from self._finished(*waiting.popleft())
        finally:  # also where the caller stops early
            for slot, _ in waiting:
                self.device.done(self.device.driver.cuStreamSynchronize(slot.stream))
                self.slots.put(slot)

    def _slot(self, wait: bool) -> _Slot | None:
        try:
            return self.slots.get(block=wait)
        except queue.Empty:
            return None

    def _started(self, slot: _Slot, tiled: list[NDArray[Any]], quality: float) -> NDArray[Any]:
        """Send a batch on its way; returns where its results will be."""
        driver, done = self.device.driver, self.device.done
        self.device.enter()
        shape = (len(tiled), *tiled[0].shape[1:])
        given = [(self.image, shape), *((name, (1,)) for name in self.numbers)]
        addresses = {}
        for name, sides in given:
            kind = self.kind if name == self.image else np.float32
            pinned, addresses[name] = slot.room(name, sides, kind)
            if name == self.image:
                np.concatenate(tiled, out=pinned)
            else:
                pinned[:] = quality
            copy = driver.cuMemcpyHtoDAsync(
                addresses[name], pinned.ctypes.data, pinned.nbytes, slot.stream
            )
            done(copy)
        done(driver.cuEventRecord(slot.copied, slot.stream))
        with self.lock:  # the context's shapes and addresses are those of this call until it starts
            for name, sides in given:
                if not self.context.set_input_shape(name, sides):
                    raise EngineError(f"a tile of {sides} is outside the plan's profile")
            result = tuple(self.context.get_tensor_shape(self.output))
            found, addresses[self.output] = slot.room(self.output, result, self.kind)
            for name, address in addresses.items():
                self.context.set_tensor_address(name, address)
            done(driver.cuStreamWaitEvent(self.computing, slot.copied, 0))
            if not self.context.execute_async_v3(int(self.computing)):
                raise EngineError("TensorRT failed to run the network")
            done(driver.cuEventRecord(slot.computed, self.computing))
        done(driver.cuStreamWaitEvent(slot.stream, slot.computed, 0))
        done(
            driver.cuMemcpyDtoHAsync(
                found.ctypes.data, addresses[self.output], found.nbytes, slot.stream
            )
        )
        return found

    def _finished(self, slot: _Slot, found: NDArray[Any]) -> Iterator[NDArray[Any]]:
        self.device.enter()
        try:
            self.device.done(self.device.driver.cuStreamSynchronize(slot.stream))
            for i in range(len(found)):
                yield found[i : i + 1]
        finally:
            self.slots.put(slot)


class Levels:
    """A network by its plan between levels of 8 bits, and by one between floats for what is not.

    The second is made where it is needed: for photos of 16 bits or grey, and callers with floats.
    """

    def __init__(self, session: Session, floats: Callable[[], Session]) -> None:
        self.session, self._made = session, floats
        self._floats: Session | None = None
        self._lock = threading.Lock()

    @property
    def floats(self) -> Session:
        with self._lock:
            if self._floats is None:
                self._floats = self._made()
            return self._floats

    def __call__(self, image: Block, quality: float = 1.0) -> Block:
        return self.floats(image, quality)

    def stream(self, tiles: Iterable[Block], quality: float = 1.0) -> Iterator[Block]:
        """See :class:`carcodec.engines.Pipelined`."""
        return self.floats.stream(tiles, quality)

    def takes(self, tile: NDArray[Any], peak: int = 255, channels: int = 3) -> bool:
        """See :class:`carcodec.engines.Levelled`."""
        return tile.dtype == np.uint8 and tile.ndim == 3 and (peak, channels) == (255, 3)

    def levels(
        self,
        tiles: Iterable[NDArray[Any]],
        quality: float = 1.0,
        peak: int = 255,
        channels: int = 3,
    ) -> Iterator[NDArray[Any]]:
        """See :class:`carcodec.engines.Levelled`; a result is good until the next is asked for."""
        given = (np.ascontiguousarray(tile)[None] for tile in tiles)
        return (result[0] for result in self.session.stream(given, quality))


def _as_floats(session: Session) -> Network:
    """A plan between levels as the guard looks at networks: given an image of 8 bits, in [0, 1]."""

    def run(image: Block, quality: float = 1.0) -> Block:
        levels = np.rint(image * np.float32(255)).astype(np.uint8)
        found = session(np.ascontiguousarray(levels.transpose(0, 2, 3, 1)), quality)
        return found.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)

    return run


_DEVICE: list[Device] = []


def device_name() -> str:
    """The GPU's name, which plans are kept under; "" without one."""
    if not _DEVICE:
        try:
            _DEVICE.append(Device())
        except EngineError:
            return ""
    return _DEVICE[0].name


def planned(
    library: plans.Library, card: ModelCard, side: str, precision: str = "", levels: bool = False
) -> tuple[str, bytes]:
    """The precision and the plan that a network runs with; built where the cache has none.

    ``precision`` is ``fp32``, ``fp16``, or left out: then an upscaler is float16 unless
    :mod:`carcodec.engines.guard` refuses that. What a downscaler makes is kept for good, and stays
    float32. Without a GPU there is no guard, and the plan serves no GPU: it only shows that
    TensorRT builds it.

    Raises:
        EngineError: TensorRT refused.
        PlanRefusedError: the precision asked for does not compute what the network does.
    """
    device = device_name()
    count = plans.batch(card, side, library.plugin)

    def refusal(data: bytes) -> str:
        if not device:
            return ""
        session = Session(library, _DEVICE[0], data, count, np.uint8 if levels else np.float32)
        return guard.refusal(_as_floats(session) if levels else session, card, side)

    usual = ["fp16", "fp32"] if plans.may_halve(card, side) else ["fp32"]
    first, *others = [precision] if precision else usual
    try:
        found = plans.plan(library, card, side, first, device, refusal=refusal, levels=levels)
        return first, found
    except plans.PlanRefusedError as error:
        if not others:
            raise
        log.warning("float32 is taken: %s", error)
    (last,) = others
    return last, plans.plan(library, card, side, last, device, refusal=refusal, levels=levels)


def asked(card: ModelCard, side: str, options: tuple[str, ...]) -> str:
    """The precision that an engine's options ask for, for what may have one; "" leaves it open."""
    return "".join(options) if plans.may_halve(card, side) else "fp32"


def load(
    library: plans.Library, card: ModelCard, side: str, options: tuple[str, ...]
) -> Session | Levels:
    """:func:`network` with an engine's options."""
    return network(library, card, side, asked(card, side, options))


def network(
    library: plans.Library, card: ModelCard, side: str, precision: str = ""
) -> Session | Levels:
    """A network that runs on the GPU, by :func:`planned`; between levels where it does not recur.

    Raises: as that, and
        EngineError: there is no GPU.
    """
    if not _DEVICE:
        _DEVICE.append(Device())
    count = plans.batch(card, side, library.plugin)

    def floats() -> Session:
        _, data = planned(library, card, side, precision)
        return Session(library, _DEVICE[0], data, count)

    if not plans.levelled(card, side):
        return floats()
    _, data = planned(library, card, side, precision, levels=True)
    return Levels(Session(library, _DEVICE[0], data, count, np.uint8), floats)

"""PyTorch: the reference engine on a CPU; on an NVIDIA GPU with our kernel for the resampler.

Weights come from the ONNX initialisers.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from carcodec.engines import Network, batches, guard, log, plans
from carcodec.engines.folded import Folded
from carcodec.errors import EngineError, RecipeError
from carcodec.networks import car, families, plain
from carcodec.plugins.compiling import CompilingError
from carcodec.plugins.convolution import pytorch as convolution
from carcodec.plugins.driver import DriverError
from carcodec.zoo import ModelCard, halves

__all__ = ["Pipeline", "fused", "load", "network"]

Block = NDArray[np.float32]
_ON_THE_WAY = 2  # batches


def network(card: ModelCard, side: str) -> torch.nn.Module:
    """The PyTorch network of one side with its trained weights, in evaluation mode.

    Raises:
        EngineError: the file's parameters are not those of the card's architecture.
    """
    described = getattr(card, side)
    try:
        module: torch.nn.Module = families.build(
            side, described.family, card.scale, described.options
        )
        model = halves.network(card, described)
        weights = {
            i.name: torch.from_numpy(numpy_helper.to_array(i).copy())
            for i in model.graph.initializer
        }
        module.load_state_dict(weights)
    except (RecipeError, RuntimeError) as error:
        raise EngineError(f"PyTorch cannot build the {side} of {card.name}: {error}") from error
    return module.eval()


def load(card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()) -> Network:
    """See :class:`carcodec.engines.Engine`. The number of threads is PyTorch's, process-wide.

    An upscaler computes in the precision that is asked for, on a GPU in float16 if none is, unless
    :mod:`carcodec.engines.guard` refuses that. ``compile`` has torch.compile make the networks'
    kernels, which takes a minute and a C++ compiler, and is no other network for it.
    """
    module = network(card, side)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    asked = [_PRECISIONS[o] for o in options if o in _PRECISIONS]
    precision = asked[0] if asked and plans.may_halve(card, side) else None
    if "compile" in options:
        _compile(module)
    if torch.cuda.is_available():
        here = torch.device("cuda", torch.cuda.current_device())
        return _on_gpu(module, card, side, precision, here)
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(image: Block, quality: float = 1.0) -> Block:
        source = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
        if isinstance(module, plain.Unscaled):
            return np.asarray(np.rint(image * 255) / 255, np.float32)
        if side == "upscaler":
            with _autocast(torch.device("cpu"), precision):
                restored = module(source, torch.tensor([quality]))
            return np.ascontiguousarray(restored.float().numpy())
        if not isinstance(module, car.ResamplerNet):
            small = module(source)
            if card.downscaler.steps == 1:
                small = _rounded(small)
            return np.ascontiguousarray(small.numpy())
        # grid_sample takes positions relative to the whole input: float32 would let the
        # place of a tile show in the last bits.
        weights, offsets = (part.double() for part in module.kernels(source))
        result = car.adaptive_resample(source.double(), weights, offsets, card.scale)
        return np.ascontiguousarray(_rounded(result).float().numpy())

    if precision not in (None, torch.float32):
        _check(run, card, side, precision)
    return run


def _rounded(small: Tensor) -> Tensor:
    return small.clamp(0, 1).mul(255).round().div(255)


_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    lower = precision not in (None, torch.float32)
    return torch.autocast(device.type, precision if lower else torch.bfloat16, enabled=lower)


def _compile(module: torch.nn.Module) -> None:
    """Tiles come in several sizes: one kernel for all of them."""
    if isinstance(module, car.ResamplerNet):  # the resampler is a kernel already
        module.heads = torch.compile(module.heads, dynamic=True)  # type: ignore[method-assign]
    elif not isinstance(module, plain.Unscaled):
        module.compile(dynamic=True)


def _compiled(module: torch.nn.Module) -> bool:
    return module._compiled_call_impl is not None


def _check(run: Network, card: ModelCard, side: str, precision: torch.dtype | None) -> None:
    """Refuse a precision that was asked for."""
    if reason := guard.refusal(run, card, side):
        name = str(precision).removeprefix("torch.")
        raise EngineError(f"PyTorch in {name}, the {side} of {card.name}: {reason}")


def _on_gpu(
    module: torch.nn.Module,
    card: ModelCard,
    side: str,
    precision: torch.dtype | None,
    device: torch.device,
) -> Network:
    count = plans.batch(card, side, plugin=True)
    make = functools.partial(Pipeline, module, device, side, count)
    try:
        if precision not in (None, torch.float16):
            asked = make(precision)
            _check(asked, card, side, precision)
            return asked
        if plans.may_halve(card, side):
            right, known = [], guard.reference(card, side)
            for half, kind in fused(make, module, device):
                if reason := _wrong(half, card, side, known):
                    log.warning(_NOT_TAKEN, kind, side, card.name, reason)
                else:
                    right.append((half, kind))
            if right:
                best, kind = min(right, key=lambda way: _seconds(way[0])) if right[1:] else right[0]
                log.info("float16%s is taken for the %s of %s", kind, side, card.name)
                return best
            plain = make(torch.float16)
            if precision is not None:
                _check(plain, card, side, precision)
                return plain
            if not (reason := _wrong(plain, card, side, known)):
                return plain
            log.warning(_NOT_TAKEN, "", side, card.name, reason)
        whole = make(rounded=card.downscaler.steps == 1)
        if reason := guard.refusal(whole, card, side):
            raise EngineError(f"PyTorch on {device}, the {side} of {card.name}: {reason}")
    except RuntimeError as error:  # not even the weights fit
        text = " ".join(str(error).split())
        raise EngineError(f"PyTorch cannot run {card.name} on {device}: {text}") from error
    return whole


_NOT_TAKEN = "float16%s is not taken for the %s of %s: %s"


def fused(
    make: Callable[..., Pipeline], module: torch.nn.Module, device: torch.device
) -> Iterator[tuple[Pipeline, str]]:
    """An upscaler in float16 with fewer passes over its features: not every GPU has all it takes.

    Beside each, how the log calls it.
    """
    if not isinstance(module, car.EDSR) or _compiled(module):
        return
    if (kernel := _kernel(len(module.head.weight), device)) is not None:
        yield make(torch.float16, folded=True, kernel=kernel), " with carcodec's own kernel"
    yield make(torch.float16, folded=True), " with fused kernels"


def _kernel(features: int, device: torch.device) -> convolution.Kernel | None:
    if device.type != "cuda":
        return None
    try:
        return convolution.kernel(features, device)
    except (DriverError, CompilingError) as error:
        log.info("cuDNN computes the upscaler's convolutions: %s", error)
        return None


def _wrong(run: Network, card: ModelCard, side: str, known: guard.Pair) -> str:
    try:
        return guard.refusal(run, card, side, known)
    except EngineError as error:
        return str(error)


def _seconds(pipeline: Pipeline, side: int = 768) -> float:
    """How long three tiles take, so that what is fastest on this GPU is taken."""
    batch = torch.full((1, 3, side, side), 0.5, device=pipeline.device)
    found = []
    for _ in range(3):  # the first is to warm up
        start = time.perf_counter()
        for _ in range(3):
            pipeline.computed(batch, 0.5)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)
        found.append(time.perf_counter() - start)
    return min(found)


class Pipeline:
    """A network on a device: tiles in batches, copies on streams of their own.

    While a batch is computed, the one before is copied back and the one behind is copied there,
    from and to pinned memory.

    Args:
        module: either side's network.
        device: a GPU; a CPU does it all in turn.
        side: ``downscaler``, whose LR is rounded to 8 bits, or ``upscaler``.
        batch: how many tiles are computed at once.
        precision: what an upscaler computes in.
        rounded: ``False`` for a step of a downscaler that recurs: it leaves LR as it is.
        folded: run an EDSR as :mod:`carcodec.engines.folded` does,
        kernel: with that for its blocks.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        side: str,
        batch: int,
        precision: torch.dtype = torch.float32,
        rounded: bool = True,
        folded: bool = False,
        kernel: convolution.Kernel | None = None,
    ) -> None:
        self.module, self.device, self.side = module.to(device), device, side
        self.batch, self.precision, self.rounded = batch, precision, rounded
        self.folded: Folded | None = None
        if folded and isinstance(module, car.EDSR):
            self.folded = Folded(module, precision, kernel)

    def __call__(self, image: Block, quality: float = 1.0) -> Block:
        return next(self.stream([image], quality))

    @torch.inference_mode()
    def computed(self, given: Tensor, quality: float) -> Tensor:
        """The network's results for a batch on the device, float32."""
        if self.folded is not None:
            return self.folded(given, quality).float()
        given = given.contiguous(memory_format=torch.channels_last)
        with _autocast(self.device, self.precision):
            if self.side == "upscaler":
                told = torch.full((1,), quality, device=self.device)
                return self.module(given, told).float()  # type: ignore[no-any-return]
            if isinstance(self.module, car.ResamplerNet):
                return self.module.resampled(given, self.module.heads(given), quantise=True)
            small = self.module(given)
        return _rounded(small) if self.rounded else small

    def stream(self, tiles: Iterable[Block], quality: float = 1.0) -> Iterator[Block]:
        """See :class:`carcodec.engines.Pipelined`."""
        return self._all(tiles, lambda given: self.computed(given, quality))

    def takes(self, tile: NDArray[Any], peak: int = 255, channels: int = 3) -> bool:
        """See :class:`carcodec.engines.Levelled`."""
        return True

    def levels(
        self,
        tiles: Iterable[NDArray[Any]],
        quality: float = 1.0,
        peak: int = 255,
        channels: int = 3,
    ) -> Iterator[NDArray[Any]]:
        """See :class:`carcodec.engines.Levelled`."""

        def computed(given: Tensor) -> Tensor:
            planes = given[:, None] if given.ndim == 3 else given.permute(0, 3, 1, 2)
            most = 65535 if given.dtype == torch.uint16 else 255
            image = planes.float().div_(most).expand(-1, 3, -1, -1)
            found = self.computed(image, quality)
            found = found.mean(1, keepdim=True) if channels == 1 else found
            if self.side == "downscaler":  # halves to even, as numpy does
                found = found.clamp_(0, 1).mul_(255).round_()
            else:
                found = found.mul_(peak).add_(0.5).clamp_(0, peak)
            kind = torch.uint16 if self.side == "upscaler" and peak > 255 else torch.uint8
            return found.to(kind).permute(0, 2, 3, 1)

        return (tile[0] for tile in self._all((t[None] for t in tiles), computed))

    def _all(
        self, tiles: Iterable[NDArray[Any]], compute: Callable[[Tensor], Tensor]
    ) -> Iterator[NDArray[Any]]:
        waiting: deque[Future[tuple[Tensor, Any]]] = deque()
        for together in batches(tiles, self.batch):
            waiting.append(_worker().submit(self._started, together, compute))
            if len(waiting) > _ON_THE_WAY:
                yield from self._finished(waiting.popleft())
        while waiting:
            yield from self._finished(waiting.popleft())

    def _finished(self, started: Future[tuple[Tensor, Any]]) -> Iterator[NDArray[Any]]:
        try:
            found, done = started.result()
            if done is not None:
                done.synchronize()
        except RuntimeError as error:  # the GPU is full, or fails
            text = " ".join(str(error).split())
            raise EngineError(f"PyTorch failed on {self.device}: {text}") from error
        for result in found.numpy():
            yield result[None]

    @functools.cached_property
    def _streams(self) -> tuple[Any, Any]:
        """For what goes there, and for what comes back."""
        if self.device.type != "cuda":
            return None, None
        stream: Any = torch.cuda.Stream
        return stream(self.device), stream(self.device)

    @torch.inference_mode()
    def _started(
        self, together: list[NDArray[Any]], compute: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Any]:
        """Results on their way to the CPU, and the event that says when they are there."""
        there, back = self._streams
        apart = there is not None
        if apart:
            torch.cuda.set_device(self.device)  # of this thread
        given = torch.from_numpy(np.concatenate(together))
        with torch.cuda.stream(there) if apart else contextlib.nullcontext():
            source = (given.pin_memory() if apart else given).to(self.device, non_blocking=True)
        if apart:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(there)
            source.record_stream(now)
        result = compute(source).contiguous(memory_format=torch.contiguous_format)
        if not apart:
            return result, None
        back.wait_stream(now)
        with torch.cuda.stream(back):
            found = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            found.copy_(result, non_blocking=True)
            result.record_stream(back)
            event: Any = torch.cuda.Event
            done = event()
            done.record(back)
        return found, done


@functools.cache
def _worker() -> ThreadPoolExecutor:
    """The thread that starts all work: cuDNN makes its plans for each thread anew."""
    return ThreadPoolExecutor(1, "carcodec-gpu")

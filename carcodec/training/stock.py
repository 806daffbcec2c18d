"""Photos as the storage codec gives them back, coded in the background and drawn from many times.

A storage codec takes longer than the networks: JPEG 2000 told its step takes 0.3 s for 384×384
pixels, and a GPU trains on ten times as many meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from carcodec.training import coding

__all__ = ["Stock", "cut", "lost", "rooms"]

_FIRST = 0.1  # of the stock, before anything is drawn from it
_EACH = 2  # begun with every draw at most: handing them out takes the training's own time
_GRID = 2  # LR pixels: a network of stride 2 wants even sides


class Stock:
    """Parts of photos beside what the storage codec made of them, the oldest replaced by new ones.

    What is drawn when depends on how fast the processes are: two trainings are alike, not the same.

    Args:
        size: how many are held, on ``device``, three bytes a pixel for HR and LR.
        wholes: draws that many HR parts, ``(n, 3, H, H)`` in [0, 1] on ``device``.
        shrunk: their LR.
        qualities: draws that many qualities of the storage codec.
        codec: its name.
        told: see :attr:`.recipe.Schedule.told`.
        random: draws patches.
        processes: that code; one for each core but one, or two where a GPU is to be kept busy, if
            it is left out.
        often: qualities that LR of a part is coded at, as making it takes the training's own time.
        teacher: a model whose restorations are drawn instead of the photos.
    """

    def __init__(
        self,
        size: int,
        wholes: Callable[[int], Tensor],
        shrunk: Callable[[Tensor], Tensor],
        qualities: Callable[[int], Tensor],
        codec: str,
        told: str,
        random: np.random.Generator,
        device: torch.device,
        processes: int = 0,
        often: int = 1,
        teacher: str = "",
    ) -> None:
        self.size, self.codec, self.told, self.often = size, codec, told, often
        self.teacher = teacher
        self.wholes, self.shrunk, self.qualities = wholes, shrunk, qualities
        self.random, self.device = random, device
        self.coded = 0  # so far
        kept = 2 if device.type == "cuda" else 1  # one tells it what to do, one of gradients
        self._processes = processes or max(1, _cores() - kept)
        # not forked: the parent's threads, CUDA's too, would not be there
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._processes, context, coding.begin)
        # of its own: copies from plain memory wait for all that their stream has to do
        stream: Any = torch.cuda.Stream
        self._stream = stream(device) if device.type == "cuda" else None
        self._waiting: dict[Future[Any], Tensor] = {}
        self._held: list[Tensor] = []  # as drawn; allocated when sizes are known

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self, count: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches of HR and of stored LR in [0, 1], what the upscaler is told, and what is lost.

        That is in [0, 1], and this the MSE of the part that the patch is from (:func:`lost`).

        Args:
            count: how many.
            side: of the LR patches, in pixels.

        Raises:
            StorageError: from a process that codes.
        """
        self._refill(block=False)
        while self.coded < max(1, _FIRST * self.size):
            self._refill(block=True)
        high, low, told, missed = self._held
        draw, room = self.random.integers, rooms(low, side)
        drawn = np.stack([draw(n, size=count) for n in (min(self.coded, self.size), room, room)])
        with torch.cuda.stream(self._stream):  # nothing where it is None
            places = torch.from_numpy(drawn).to(self.device)
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            places.record_stream(current)
        image, small = (part.float().div(255) for part in cut(high, low, places, side))
        return image, small, told[places[0]], missed[places[0]]

    def _refill(self, block: bool) -> None:
        """Put in what has been coded, and have as much coded as the processes can take."""
        with torch.cuda.stream(self._stream):
            # no more at a time than training keeps up with
            wanted = 2 * self._processes - len(self._waiting)
            wanted = wanted if block else min(wanted, _EACH)
            if wanted > 0:
                self._start(-(-wanted // self.often))
            done, _ = wait(self._waiting, None if block else 0, FIRST_COMPLETED)
            for future in done:
                high = self._waiting.pop(future)
                low, told, *restored = future.result()
                planes = [torch.from_numpy(image).permute(2, 0, 1) for image in (low, *restored)]
                self._put(high, planes, told / 100)

    @torch.no_grad()
    def _start(self, count: int) -> None:
        wholes = self.wholes(count)
        small = self.shrunk(wholes).clamp(0, 1).mul(255).round().byte()
        levels = small.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        high = wholes.mul(255).round().byte()
        qualities = self.qualities(self.often * count).round().int().tolist()
        for i, quality in enumerate(qualities):
            given = self.codec, levels[i % count], quality, self.told
            if self.teacher:
                future: Future[Any] = self._pool.submit(coding.taught, *given, self.teacher)
            else:
                future = self._pool.submit(coding.stored, *given)
            self._waiting[future] = high[i % count]

    def _put(self, high: Tensor, coded: list[Tensor], told: float) -> None:
        low, *restored = (image.to(self.device) for image in coded)
        missed = lost(high[None].float() / 255, low[None].float() / 255)[0]
        high = restored[0] if restored else high
        given = (high, low, torch.tensor(told, device=self.device), missed)
        if not self._held:
            self._held = [g.new_empty((self.size, *g.shape)) for g in given]
        for held, one in zip(self._held, given, strict=True):
            held[self.coded % self.size] = one
        self.coded += 1


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rooms(low: Tensor, side: int) -> int:
    """How many places a side :func:`cut` has for patches of ``side`` LR pixels."""
    return (low.shape[-1] - side) // _GRID + 1


def cut(high: Tensor, low: Tensor, places: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Patches of HR and, where they lie, of LR, ``side`` LR pixels a side.

    Args:
        high, low: ``(N, 3, H, H)`` and ``(N, 3, h, h)``.
        places: ``(3, count)``: which of the N, and the rows and columns of :func:`rooms`.
    """
    pick, top, left = places
    found = []
    for held, step in ((high, high.shape[-1] // low.shape[-1]), (low, 1)):
        run = torch.arange(side * step, device=held.device)
        rows = _GRID * step * top[:, None] + run
        columns = _GRID * step * left[:, None] + run
        # indices around a slice: their axes come first, channels last
        part = held[pick[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        found.append(part.permute(0, 3, 1, 2))
    return found[0], found[1]


def lost(image: Tensor, small: Tensor) -> Tensor:
    """MSE ``(N,)`` of plain bicubic upscaling of what was stored, at least that of one level."""
    scale = image.shape[-1] // small.shape[-1]
    if scale > 1:
        small = functional.interpolate(small, scale_factor=scale, mode="bicubic")
    return (small - image).square().mean((1, 2, 3)).clamp_min(1 / 255**2)

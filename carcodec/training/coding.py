"""LR through the storage codec itself, without PyTorch: what processes of their own can do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import numpy as np
from numpy.typing import NDArray

from carcodec import coarseness, codec, storage, zoo

__all__ = ["begin", "stored", "taught"]

_EFFORT = 2  # of the storage codec


def begin() -> None:
    """In a process for this alone: it ends with the one that started it, also if that is killed.

    An interruption from the keyboard is that one's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def stored(
    name: str, image: NDArray[np.uint8], quality: int, told: str
) -> tuple[NDArray[np.uint8], int]:
    """LR ``(h, w, 3)`` encoded and decoded, and what the upscaler is told of it, 0…100.

    With less effort than photos get: what is lost is much the same, and AVIF's speed 5 would take
    longer than the networks.
    """
    chosen = storage.by_name(name)
    data = chosen.encode(image, quality, 1, _EFFORT)
    found = chosen.decode(data, (image.shape[1], image.shape[0]), 3, 1)
    return found, coarseness.told(told, chosen, image, quality, data, 1)


def taught(
    name: str, image: NDArray[np.uint8], quality: int, told: str, teacher: str
) -> tuple[NDArray[np.uint8], int, NDArray[np.uint8]]:
    """As :func:`stored`, and what a model restores of it, ``(H, W, 3)``."""
    found, says = stored(name, image, quality, told)
    card = zoo.find(teacher)
    size = (card.scale * image.shape[1], card.scale * image.shape[0])
    restored = codec.upscale(found, size, 8, card, "onnxruntime", 1, quality=says)
    return found, says, restored.astype(np.uint8, copy=False)

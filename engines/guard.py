"""Whether an engine computes what the network does: seen on a photo, before it is believed.

Half precision overflows in some networks, and a wrong tactic or driver gives black or noise.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec.engines import Network, plans
from carcodec.zoo import ModelCard

__all__ = ["LEAST", "WORST", "photo", "reference", "refusal"]

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

LEAST = 50.0  # dB between an engine's result and the reference's: a third of a level
WORST = 32  # levels: where results are bytes, what was not finite is some other level
_QUALITY = 0.5


@functools.cache
def photo() -> NDArray[np.float32]:
    """``(1, 3, 144, 240)`` in [0, 1]: towers at night, black beside lights (taipei.png, CC0)."""
    with Image.open(Path(__file__).with_name("guard.webp")) as image:
        levels = np.asarray(image.convert("RGB"), np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None] / np.float32(255))


def reference(card: ModelCard, side: str) -> Pair:
    """A photo, and what one side of a model makes of it.

    By ONNX Runtime in float32, which is always installed and agrees with PyTorch
    (``tests/test_engines.py``).
    """
    from carcodec.engines import onnxruntime

    most = plans.profile(card, side)[1] // 48 * 48  # a multiple of what any scale needs
    given = np.ascontiguousarray(photo()[:, :, :most, :most])
    return given, onnxruntime.load(card, side, 0, ("fp32",))(given, _QUALITY)


def refusal(network: Network, card: ModelCard, side: str, known: Pair | None = None) -> str:
    """What is wrong with ``network`` for one side of a model, "" for nothing.

    ``known`` is the :func:`reference`, where there are several to be held against it.
    """
    given, wanted = known or reference(card, side)
    found = network(given, _QUALITY)
    if found.shape != wanted.shape:
        return f"its result has the shape {found.shape} instead of {wanted.shape}"
    if not np.isfinite(found).all():
        return "its result is not finite"
    if float(found.std()) < 0.1 * float(wanted.std()):
        return "its result is one colour"
    error = np.abs(found.clip(0, 1) - wanted.clip(0, 1))
    psnr = -10 * np.log10(max(float(np.mean(np.square(error))), 1e-12))
    if psnr < LEAST:
        return f"its result is {psnr:.1f} dB from the network's"
    worst = 255 * float(error.max())
    return (
        "" if worst <= WORST else f"its result is {worst:.0f} levels from the network's in places"
    )

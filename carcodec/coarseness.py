"""How coarsely a storage codec had to quantise an image: what some upscalers are told.

JPEG 2000's quality is a PSNR of the whole image. The same PSNR takes fine steps where a photo is
full of detail and coarse ones where it is smooth, and what the upscaler has to restore depends on
the step: of two photos at 31 dB one may have lost 2 levels of an edge, the other 20. So models
trained with ``told = "step"`` are told the step instead of the quality.

OpenJPEG cuts every code block where a bit buys the same, so the whole image has one slope of
distortion against bits. That slope, measured between two real encodes, gives the step: a fine
uniform quantiser of step s has D = s²/12 and dD/dR = -2 ln(2) D for each bit of a coefficient.
"""

from __future__ import annotations

import math

from carcodec import metrics, storage

__all__ = ["told", "told_of_step"]

_APART = (2.5, 10, 40)  # of quality: 1, 4 and 16 dB for JPEG 2000
_LOWEST, _EACH = 5.0, 0.5  # dB: what 0 stands for, and how much a unit is


def told(
    kind: str,
    codec: storage.StorageCodec,
    image: storage.Pixels,
    quality: float,
    data: bytes | None = None,
    threads: int = 0,
) -> int:
    """What an upscaler is told of ``image`` stored as ``data`` at ``quality``: 0 (coarse) … 100.

    Args:
        kind: ``quality``, the codec's own, or ``step`` (:attr:`.zoo.ModelCard.told`).
        image: LR ``(h, w)`` or ``(h, w, 3)`` uint8, as it was before storing.
        data: as the default effort stores it; ``None`` has it stored here, where it is needed.

    Raises:
        StorageError: as :meth:`.storage.StorageCodec.encode` and ``decode``.
    """
    if kind == "quality":
        return round(quality)
    if data is None:
        data = codec.encode(image, quality, threads)
    error = _error(codec, image, data, threads)
    for apart in _APART:  # the nearest quality that is another file
        other = quality - apart if quality >= apart else min(quality + apart, 100)
        stored = codec.encode(image, other, threads)
        bought = abs(_error(codec, image, stored, threads) - error)
        if bought:
            # where both are of one length, they differ by less than bytes tell
            slope = bought / max(8 * abs(len(stored) - len(data)), 1)
            return told_of_step(math.sqrt(6 * slope / math.log(2)))
    return 100  # nothing that bits could buy


def told_of_step(step: float) -> int:
    """0…100 for a step in levels: in half decibels of the noise, step²/12, that it would make."""
    noise = 10 * math.log10(12 * 255**2 / step**2)
    return min(max(round((noise - _LOWEST) / _EACH), 0), 100)


def _error(codec: storage.StorageCodec, image: storage.Pixels, data: bytes, threads: int) -> float:
    """Sum over pixels of the squared error, the mean of the channels."""
    channels = image.shape[2] if image.ndim == 3 else 1
    restored = codec.decode(data, (image.shape[1], image.shape[0]), channels, threads)
    return metrics.squared_error(image, restored) / channels

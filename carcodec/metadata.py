"""EXIF, XMP and ICC profile in few bytes: the ``mETA`` chunk (docs/FORMAT.md).

Cameras and editors write metadata at length: makers' notes full of zeros, XML with kilobytes of
padding. That can be several per cent of a file. Together in one Brotli stream (RFC 7932, whose
dictionary knows XML) it takes a third to a half of the bytes. Colour profiles that hold curves as
tables of 16-bit numbers, as the most common sRGB profile does, have these as differences.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator

import numpy as np

from carcodec import leb128
from carcodec.errors import ContainerError, MissingDependencyError

__all__ = ["MOST", "Parts", "pack", "unpack"]

Parts = tuple[bytes | None, bytes | None, bytes | None]

MOST = 2**26  # bytes of all parts: a damaged or hostile chunk must not fill the memory
_SLOW = 2**17  # bytes from which Brotli's highest level takes too long


@functools.lru_cache(maxsize=4)  # a search for a target writes the same photo many times
def pack(exif: bytes | None, xmp: bytes | None, icc: bytes | None) -> bytes | None:
    """The chunk's payload; ``None`` where the parts are better written by themselves.

    They are where one is empty but there, which the payload cannot say, where all are together more
    than :data:`MOST`, or where Brotli is missing.
    """
    parts = [exif or b"", xmp or b"", _with_differences(icc or b"")]
    whole = b"".join(parts)
    if not whole or len(whole) > MOST or b"" in (exif, xmp, icc):
        return None
    import imagecodecs

    try:
        packed = imagecodecs.brotli_encode(whole, level=11 if len(whole) < _SLOW else 9)
    except Exception as error:
        if _missing(error):
            return None
        raise
    return b"".join(leb128.written(len(part)) for part in parts) + bytes(packed)


def unpack(payload: bytes) -> Parts:
    """EXIF, XMP and ICC profile of a payload, ``None`` where there is none.

    Raises:
        ContainerError: damaged, or more than :data:`MOST` bytes.
        MissingDependencyError: the installed imagecodecs has no Brotli.
    """
    lengths, at = [], 0
    try:
        for _ in range(3):
            length, at = leb128.read(payload, at)
            lengths.append(length)
    except ValueError as error:
        raise ContainerError("the metadata chunk is damaged") from error
    if sum(lengths) > MOST:
        raise ContainerError(f"the metadata chunk holds more than {MOST // 2**20} MiB")
    whole = _expanded(payload[at:], sum(lengths))
    first, second = lengths[0], lengths[0] + lengths[1]
    icc = _with_curves(whole[second:])
    return whole[:first] or None, whole[first:second] or None, icc or None


def _with_differences(icc: bytes) -> bytes:
    """A profile whose curves are second differences, their high bytes before their low ones."""
    found = bytearray(icc)
    for start, count in _tables(icc):
        curve = np.frombuffer(icc, ">u2", count, start).astype(np.int64)
        bent = np.diff(curve, 2, prepend=(0, 0)) & 65535
        near = np.where(bent >> 15, 2 * (65536 - bent) - 1, 2 * bent)  # small whichever the sign
        high_and_low = np.concatenate((near >> 8, near & 255))
        found[start : start + 2 * count] = high_and_low.astype(np.uint8).tobytes()
    return bytes(found)


def _with_curves(icc: bytes) -> bytes:
    """The profile of which :func:`_with_differences` made this."""
    found = bytearray(icc)
    for start, count in _tables(icc):
        high, low = np.frombuffer(icc, np.uint8, 2 * count, start).astype(np.int64).reshape(2, -1)
        near = high << 8 | low
        bent = near >> 1 ^ -(near & 1)
        curve = np.cumsum(np.cumsum(bent) & 65535) & 65535
        found[start : start + 2 * count] = curve.astype(">u2").tobytes()
    return bytes(found)


def _tables(icc: bytes) -> Iterator[tuple[int, int]]:
    """Where tables of curves begin in a profile, and how many numbers they have.

    The same before and after these change: none reaches into what says where another is.
    Source: ICC.1:2022, 7.3 (tag table) and 10.6 (curveType).
    """
    if len(icc) < 132:
        return
    tags = min(int.from_bytes(icc[128:132]), (len(icc) - 132) // 12)
    end = 132 + 12 * tags
    places = {struct.unpack_from(">I", icc, 136 + 12 * i)[0] for i in range(tags)}
    for at in sorted(places):
        if at < end or icc[at : at + 4] != b"curv" or at + 12 > len(icc):
            continue
        count = int.from_bytes(icc[at + 8 : at + 12])
        if at + 12 + 2 * count <= len(icc):
            end = at + 12 + 2 * count
            yield at + 12, count


def _expanded(packed: bytes, length: int) -> bytes:
    import imagecodecs

    try:
        whole = bytes(imagecodecs.brotli_decode(packed, out=length))
    except Exception as error:
        if _missing(error):
            raise MissingDependencyError(
                "this imagecodecs has no Brotli, which the metadata is packed with: "
                "pip install --upgrade imagecodecs"
            ) from error
        raise ContainerError("the metadata chunk is damaged") from error
    if len(whole) != length:
        raise ContainerError("the metadata chunk is damaged")
    return whole


def _missing(error: Exception) -> bool:
    return type(error).__name__ == "DelayedImportError"

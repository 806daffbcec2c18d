"""Whole numbers in as few bytes as they need: LEB128, as AV1 has it (section 4.10.5).

Seven bits a byte, the lowest first; the eighth says that more follow.
"""

from __future__ import annotations

__all__ = ["read", "written"]


def written(value: int) -> bytes:
    """A number, 0 or more, in one byte for each seven bits."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def read(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends.

    Raises:
        ValueError: it is cut off, or has more than five bytes.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 28:
            raise ValueError("a number is cut off")
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            return value, at

"""Irreversible JPEG 2000 codestreams with and without their headers.

The headers of a codestream of one tile are about 120 bytes, a tenth of a small image at low rates,
and where the encoder is OpenJPEG with its own settings they follow from its size, its channels and
the number of wavelet levels. So .carimg keeps these and the packets, and the headers are made again
for the decoder.

Source: ISO/IEC 15444-1, annex A (markers); table of step sizes from the 9/7 filters' norms, as
OpenJPEG rounds them.
"""

from __future__ import annotations

import struct

from carcodec import leb128

__all__ = ["bare", "codestream", "described", "size", "steps"]

_SOC, _SIZ, _COD, _QCD, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF5C, 0xFF90, 0xFF93, 0xFFD9
_RGB = 8  # beside the levels, in the first byte

# Quantisation steps (A.6.4: exponent and mantissa) of the lowest band by the number of levels, and
# of HL, LH and HH from the coarsest level down to the finest.
_LOWEST = (0x4000, 0x4824, 0x5F52, 0x6738, 0x6F20, 0x7720, 0x7F20)
_BANDS = (
    0x7EE0, 0x7EE0, 0x7EA0, 0x76F0, 0x76F0, 0x76C0, 0x6F00, 0x6F00, 0x6EE0, 0x6750, 0x6750, 0x6768,
    0x5005, 0x5005, 0x5047, 0x57D3, 0x57D3, 0x5762,
)  # fmt: skip


def codestream(payload: bytes) -> bytes:
    """The codestream of what :func:`bare` returned.

    Raises:
        ValueError: that cannot be what it returned.
    """
    if _complete(payload):
        return payload
    levels, channels, width, height, at = described(payload)
    packets = payload[at:]
    tile = struct.pack(">HHHIBBH", _SOT, 10, 0, 14 + len(packets), 0, 1, _SOD)
    headers = _headers(width, height, channels, levels)
    return headers + tile + packets + struct.pack(">H", _EOC)


def size(payload: bytes) -> tuple[int, int]:
    """Width and height in pixels of what :func:`bare` returned.

    Raises:
        ValueError, struct.error: that cannot be what it returned.
    """
    if not _complete(payload):
        _, _, width, height, _ = described(payload)
        return width, height
    right, bottom, left, top = struct.unpack_from(">4I", payload, 8)  # SIZ, A.5.1
    return right - left, bottom - top


def steps(levels: int) -> list[list[float]]:
    """Quantisation steps of the bands of each resolution from the lowest: LL, then HL, LH, HH.

    In units of 9-7 coefficients as the standard scales them (equation E-3, 8 bits).
    """
    bands = _BANDS[len(_BANDS) - 3 * levels :]
    rows = zip(bands[::3], bands[1::3], bands[2::3], strict=True)
    details = [
        [_step(code, gain) for code, gain in zip(row, (1, 1, 2), strict=True)] for row in rows
    ]
    return [[_step(_LOWEST[levels], 0)], *details]


def _step(code: int, gain: int) -> float:
    return 2.0 ** (8 + gain - (code >> 11)) * (1 + (code & 2047) / 2048)


def bare(stream: bytes) -> bytes:
    """A codestream without its headers, if they can be made again; else all of it."""
    if len(stream) < 42 or not _complete(stream):
        return stream
    width, height = struct.unpack_from(">2I", stream, 8)
    (channels,) = struct.unpack_from(">H", stream, 40)
    for levels in range(len(_LOWEST)):
        headers = _headers(width, height, channels, levels)
        if stream.startswith(headers):
            first = levels | (_RGB if channels == 3 else 0)
            packets = stream[len(headers) + 14 : -2]  # between SOT and SOD, 14 bytes, and EOC
            payload = bytes([first]) + leb128.written(width) + leb128.written(height) + packets
            return payload if codestream(payload) == stream else stream
    return stream


def _complete(data: bytes) -> bool:
    return data[:2] == b"\xff\x4f"  # SOC; a first byte of levels is below 16


def _headers(width: int, height: int, channels: int, levels: int) -> bytes:
    """SOC, SIZ, COD and QCD: one tile, 8 bits, 64×64 code blocks, one layer, no precincts."""
    steps = _LOWEST[levels], *_BANDS[len(_BANDS) - 3 * levels :]
    return b"".join(
        (
            struct.pack(">HHHH", _SOC, _SIZ, 38 + 3 * channels, 0),
            struct.pack(">8I", width, height, 0, 0, width, height, 0, 0),
            struct.pack(">H", channels) + bytes((7, 1, 1)) * channels,
            struct.pack(">HHBBHBBBBBB", _COD, 12, 0, 0, 1, channels == 3, levels, 4, 4, 0, 0),
            struct.pack(f">HHB{len(steps)}H", _QCD, 3 + 2 * len(steps), 0x42, *steps),
        )
    )


def described(payload: bytes) -> tuple[int, int, int, int, int]:
    """Levels, channels, width, height, and where the packets begin.

    Raises:
        ValueError: this is no codestream without its headers.
    """
    levels = payload[0] & 7 if payload else 8
    if levels >= len(_LOWEST) or payload[0] >= 16:
        raise ValueError("no such number of levels")
    width, at = leb128.read(payload, 1)
    height, at = leb128.read(payload, at)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise ValueError("no such size")
    return levels, 3 if payload[0] & _RGB else 1, width, height, at

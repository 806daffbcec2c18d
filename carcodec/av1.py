"""AV1 still pictures with and without their AVIF container.

A container of one picture is about 275 bytes: more than a tenth of a small image at low rates, and
all of it follows from the AV1 sequence header. So .carimg keeps the bare OBUs, and the container is
made again for the decoder.

Sources: AV1 Bitstream & Decoding Process Specification, sections 5.3 to 5.5; AVIF 1.1; AV1-ISOBMFF
(the av1C box); ISO/IEC 14496-12 and 23008-12 (boxes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from carcodec import leb128

__all__ = ["SequenceHeader", "bare", "in_avif", "sequence_header"]

_SEQUENCE_HEADER, _TEMPORAL_DELIMITER = 1, 2  # OBU types
_SRGB_IDENTITY = (1, 13, 0)  # implies full range and 4:4:4


@dataclass(frozen=True)
class SequenceHeader:
    """What a still picture's reduced sequence header says (section 5.5).

    Attributes:
        width, height: in pixels.
        profile, level: seq_profile and seq_level_idx.
        high, twelve: high_bitdepth and twelve_bit.
        mono: no chroma.
        subsampling: of chroma, x and y.
        position: chroma_sample_position.
        colour: primaries, transfer, matrix (2 is unspecified).
        full: full range.
    """

    width: int
    height: int
    profile: int
    level: int
    high: bool
    twelve: bool
    mono: bool
    subsampling: tuple[int, int]
    position: int
    colour: tuple[int, int, int]
    full: bool

    @property
    def configuration(self) -> bytes:
        """Payload of the av1C box."""
        x, y = self.subsampling
        flags = self.high << 6 | self.twelve << 5 | self.mono << 4 | x << 3 | y << 2 | self.position
        return bytes((0x81, self.profile << 5 | self.level, flags, 0))


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("the sequence header is cut off")
        return self.value >> self.left & (1 << count) - 1


def _obus(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, start, start of the payload and end of each OBU."""
    at = 0
    while at < len(data):
        start, first = at, data[at]
        if first & 0x81 or not first & 2:
            raise ValueError("not an OBU with a size")
        at += 2 if first & 4 else 1  # an extension follows
        size, at = leb128.read(data, at)
        if at + size > len(data):
            raise ValueError("an OBU is cut off")
        yield first >> 3 & 15, start, at, at + size
        at += size


def sequence_header(obus: bytes) -> SequenceHeader:
    """The header with which bare OBUs begin.

    Raises:
        ValueError: they do not begin with the reduced sequence header of a still picture.
    """
    kind, _, start, end = next(_obus(obus), (0, 0, 0, 0))
    if kind != _SEQUENCE_HEADER:
        raise ValueError("no AV1 sequence header")
    bits = _Bits(obus[start:end])
    profile, still, reduced = bits.take(3), bits.take(1), bits.take(1)
    if not (still and reduced) or profile > 2:
        raise ValueError("not the reduced header of a still picture")
    level = bits.take(5)
    lengths = bits.take(4) + 1, bits.take(4) + 1
    width, height = (bits.take(length) + 1 for length in lengths)
    bits.take(6)  # superblocks and filters
    high = bool(bits.take(1))
    twelve = bool(profile == 2 and high and bits.take(1))
    mono = bool(profile != 1 and bits.take(1))
    described = bits.take(1)
    colour = (bits.take(8), bits.take(8), bits.take(8)) if described else (2, 2, 2)
    subsampling, position, full = (1, 1), 0, True
    if mono:
        full = bool(bits.take(1))
    elif colour == _SRGB_IDENTITY:
        subsampling = (0, 0)
    else:
        full = bool(bits.take(1))
        if profile == 1:
            subsampling = (0, 0)
        elif profile == 2:
            x = bits.take(1) if twelve else 1
            subsampling = (x, bits.take(1) if x and twelve else 0)
        if subsampling == (1, 1):
            position = bits.take(2)
    return SequenceHeader(
        width, height, profile, level, high, twelve, mono, subsampling, position, colour, full
    )


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", 8 + len(payload)) + kind + payload


def _properties(header: SequenceHeader) -> dict[bytes, bytes]:
    """What an AVIF file says of the picture: box types and payloads."""
    planes = 1 if header.mono else 3
    depth = 12 if header.twelve else 10 if header.high else 8
    return {
        b"ispe": struct.pack(">III", 0, header.width, header.height),
        b"pixi": struct.pack(">IB", 0, planes) + bytes([depth] * planes),
        b"av1C": header.configuration,
        b"colr": struct.pack(">4sHHHB", b"nclx", *header.colour, header.full << 7),
    }


def in_avif(obus: bytes) -> bytes:
    """An AVIF file of bare OBUs; a file that is one already stays as it is.

    Raises:
        ValueError: see :func:`sequence_header`.
    """
    if obus[4:8] == b"ftyp":
        return obus
    ipco = b"".join(_box(*one) for one in _properties(sequence_header(obus)).items())
    ipma = struct.pack(">IIHB4B", 0, 1, 1, 4, 1, 2, 0x80 | 3, 4)
    properties = _box(b"ipco", ipco) + _box(b"ipma", ipma)
    item = _box(b"infe", struct.pack(">IHH4sB", 2 << 24, 1, 0, b"av01", 0))

    def meta(at: int) -> bytes:
        return _box(
            b"meta",
            bytes(4)
            + _box(b"hdlr", struct.pack(">II4s12sB", 0, 0, b"pict", bytes(12), 0))
            + _box(b"pitm", struct.pack(">IH", 0, 1))
            + _box(b"iloc", struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, at, len(obus)))
            + _box(b"iinf", struct.pack(">IH", 0, 1) + item)
            + _box(b"iprp", properties),
        )

    kind = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
    return kind + meta(len(kind) + len(meta(0)) + 8) + _box(b"mdat", obus)


def bare(avif: bytes) -> bytes:
    """The OBUs of an AVIF file of one picture, if its container says no more than they do.

    Else, the file as it is: one with alpha, metadata, or properties that the sequence header does
    not have. The temporal delimiter, which says nothing, is left out.
    """
    try:
        return _bare(avif)
    except (ValueError, KeyError, struct.error):
        return avif


def _bare(avif: bytes) -> bytes:
    top = dict(_boxes(avif))
    meta = _unique(top[b"meta"][4:])
    if set(meta) - {b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp"}:
        raise ValueError("more than a picture")
    sizes, base, count = struct.unpack_from(">BBH", meta[b"iloc"], 4)
    if meta[b"iloc"][0] or sizes != 0x44 or base or count != 1:
        raise ValueError("a location of another form")
    _, _, extents, at, length = struct.unpack_from(">HHHII", meta[b"iloc"], 8)
    data = avif[at : at + length]
    if extents != 1 or len(data) != length:
        raise ValueError("not in one piece")
    parts = [(kind, start, end) for kind, start, _, end in _obus(data)]
    obus = b"".join(data[s:e] for kind, s, e in parts if kind != _TEMPORAL_DELIMITER)
    # what the container says must be what is said of them where it is made again
    wanted = _properties(sequence_header(obus))
    found = _unique(_unique(meta[b"iprp"])[b"ipco"])
    if any(wanted.get(kind) != payload for kind, payload in found.items()):
        raise ValueError("properties of its own")
    return obus


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            raise ValueError("a box is cut off")
        yield kind, data[at + 8 : at + size]
        at += size


def _unique(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for kind, payload in _boxes(data):
        if kind in found:
            raise ValueError("two boxes of a kind")
        found[kind] = payload
    return found

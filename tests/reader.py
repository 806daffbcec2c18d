"""A reader of .carimg written from docs/FORMAT.md alone; it imports nothing of carcodec."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np

MODES = [("L", 1, 0), ("LA", 1, 1), ("RGB", 3, 0), ("RGBA", 3, 1)]
MODES += [("1", 1, 0), ("I;16", 1, 0), ("RGB;16", 3, 0), ("RGBA;16", 3, 1)]


def codestream(number: int, data: bytes, width: int, height: int, channels: int) -> Any:
    names = {1: "png", 2: "jpegls", 3: "jpeg2k", 4: "jpegxl", 5: "avif", 6: "webp"}
    names |= {7: "avif", 8: "jpeg2k"}
    options = {"hasalpha": False} if number == 6 else {}
    if number == 7 and data[4:8] != b"ftyp":
        data = avif(data, width, height)
    if number == 8 and data[0] != 0xFF:
        data = jpeg2000(data)
    image = getattr(imagecodecs, names[number] + "_decode")(data, **options)
    if channels == 1 and image.ndim == 3 and number in (5, 6, 7):
        image = image[..., 1]
    if number == 2 and channels == 3:
        green, red, blue = image[..., 0], image[..., 1], image[..., 2]
        image = np.stack([red + green, green, blue + green], -1)
    assert image.shape == ((height, width) if channels == 1 else (height, width, channels))
    return image


def jpeg2000(data: bytes) -> bytes:
    """A codestream of the packets of storage 8."""
    levels, channels = data[0] & 7, 3 if data[0] & 8 else 1
    sides, at = numbers(data, 1, 2)
    size = struct.pack(">II", *sides)
    lowest = ["4000", "4824", "5F52", "6738", "6F20", "7720", "7F20"][levels]
    bands = [
        "7EE07EE07EA0",
        "76F076F076C0",
        "6F006F006EE0",
        "675067506768",
        "500550055047",
        "57D357D35762",
    ]
    steps = lowest + "".join(bands[6 - levels :])
    return b"".join(
        (
            bytes.fromhex("FF4F FF51"), struct.pack(">HH", 38 + 3 * channels, 0),
            size, bytes(8), size, bytes(8), struct.pack(">H", channels), b"\7\1\1" * channels,
            bytes.fromhex("FF52 000C 00 00 0001"), bytes((channels == 3, levels, 4, 4, 0, 0)),
            bytes.fromhex("FF5C"), struct.pack(">H", 5 + 6 * levels), bytes.fromhex("42" + steps),
            bytes.fromhex("FF90 000A 0000"), struct.pack(">I", 14 + len(data) - at), b"\0\1",
            bytes.fromhex("FF93"), data[at:], bytes.fromhex("FFD9"),
        )
    )  # fmt: skip


def avif(obus: bytes, width: int, height: int) -> bytes:
    """8-bit AV1 as an AVIF file with as little as decoders accept."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        payload = b"".join(parts)
        return struct.pack(">I", 8 + len(payload)) + kind + payload

    profile = obus[2] >> 5  # the OBU has a size of one byte
    # level, sizes, tools, then high_bitdepth and, unless in profile 1, mono_chrome
    bits = "".join(f"{byte:08b}" for byte in obus[2 : 2 + obus[1]])
    at = 10 + 8 + sum(int(bits[i : i + 4], 2) + 1 for i in (10, 14)) + 6
    mono = profile == 0 and bits[at + 1] == "1"
    flags = 0 if profile == 1 else 0b00011100 if mono else 0b00001100
    properties = box(
        b"ipco",
        box(b"ispe", struct.pack(">III", 0, width, height)),
        box(b"pixi", bytes(4), b"\1\x08" if mono else b"\3\x08\x08\x08"),
        box(b"av1C", bytes((0x81, profile << 5 | int(bits[5:10], 2), flags, 0))),
    )
    parts = (
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, 1), box(b"infe", b"\2\0\0\0\0\1\0\0av01\0")),
        box(b"iprp", properties, box(b"ipma", struct.pack(">IIHB3B", 0, 1, 1, 3, 1, 2, 0x83))),
    )
    kind = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    offset = len(kind) + 8 + sum(map(len, parts)) + 30 + 8
    place = struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, offset, len(obus))
    return kind + box(b"meta", *parts, box(b"iloc", place)) + box(b"mdat", obus)


def numbers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    found: list[int] = []
    while len(found) < count:
        end = next(i for i in range(at, len(data)) if data[i] < 128) + 1
        found.append(sum((data[i] & 127) << 7 * (i - at) for i in range(at, end)))
        at = end
    return found, at


def metadata(chunks: dict[bytes, bytes]) -> dict[str, bytes | None]:
    plain = {"icc": b"iCCP", "exif": b"eXIF", "xmp": b"xMPD"}
    if b"mETA" not in chunks:
        return {name: chunks.get(kind) for name, kind in plain.items()}
    assert not set(plain.values()) & set(chunks)
    lengths, at = numbers(chunks[b"mETA"], 0, 3)
    whole = imagecodecs.brotli_decode(chunks[b"mETA"][at:])
    assert len(whole) == sum(lengths)
    found: dict[str, bytes | None] = {}
    for name, length in zip(("exif", "xmp", "icc"), lengths, strict=True):
        found[name], whole = whole[:length] or None, whole[length:]
    return found | {"icc": profile(found["icc"])}


def profile(icc: bytes | None) -> bytes | None:
    if icc is None or len(icc) < 132:
        return icc
    data = bytearray(icc)
    tags = min(struct.unpack_from(">I", icc, 128)[0], (len(icc) - 132) // 12)
    end = 132 + 12 * tags
    for at in sorted({struct.unpack_from(">I", icc, 136 + 12 * i)[0] for i in range(tags)}):
        if at < end or at + 12 > len(icc) or icc[at : at + 4] != b"curv":
            continue
        (n,) = struct.unpack_from(">I", icc, at + 8)
        start = at + 12
        if start + 2 * n > len(icc):
            continue
        end = start + 2 * n
        last = before = 0
        for i in range(n):
            stored = icc[start + i] << 8 | icc[start + n + i]
            d = stored // 2 if stored % 2 == 0 else -(stored + 1) // 2
            last, before = (d + 2 * last - before) % 65536, last
            struct.pack_into(">H", data, start + 2 * i, last)
    return bytes(data)


def read(data: bytes) -> dict[str, Any]:
    """Header fields, ``lr``, ``alpha`` and metadata of a file."""
    assert data[:8] == bytes.fromhex("894341520d0a1a0a")
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        payload = data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        assert crc == zlib.crc32(kind + payload)
        assert kind not in chunks
        chunks[kind] = payload
        at += 12 + length
    assert [kind for kind in chunks if kind != b"pREV"][:2] == [b"HEAD", b"LRIM"]
    assert list(chunks)[-1] == b"DONE"
    head = chunks[b"HEAD"]
    version, mode, scale, storage, quality, flags = head[:6]
    assert version == 1
    assert flags == 0
    width, height = struct.unpack_from(">II", head, 6)
    name, channels, has_alpha = MODES[mode]
    lr_width, lr_height = -(-width // scale), -(-height // scale)
    alpha = None
    if b"ALPH" in chunks:
        assert has_alpha
        packed = chunks[b"ALPH"]
        alpha = codestream(packed[0], packed[2:], width, height, 1)
    preview = None
    if b"pREV" in chunks:
        number, *size = struct.unpack_from(">BHH", chunks[b"pREV"])
        preview = codestream(number, chunks[b"pREV"][5:], *size, channels)
    return {
        "preview": preview, "mode": name, "scale": scale, "storage": storage, "quality": quality,
        "width": width, "height": height, "digest": head[14:20],
        "version": struct.unpack_from(">H", head, 20)[0], "model": head[22:].decode(),
        "lr": codestream(storage, chunks[b"LRIM"], lr_width, lr_height, channels),
        "alpha": alpha, **metadata(chunks),
    }  # fmt: skip

"""The byte format: every rule of docs/FORMAT.md has a test that breaks it."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import reader
from hypothesis import given
from hypothesis import strategies as st

from carcodec import container, leb128, metadata
from carcodec.container import Carimg, Header, Preview
from carcodec.errors import (
    CarcodecError,
    ContainerError,
    DigestMismatchError,
    MissingDependencyError,
    NotACarimgError,
    TruncatedError,
    UnsupportedError,
)

HEADER = Header(5, 4, 2, 2, 1, 255, "tiny-x2", 3, b"abcdef")
FILE = Carimg(HEADER, b"codestream", None, 0, 255, b"icc", b"Exif\0\0x", b"<x/>")

headers = st.builds(
    Header,
    width=st.integers(1, 2**31 - 1),
    height=st.integers(1, 2**31 - 1),
    scale=st.integers(1, 128),
    mode=st.sampled_from(sorted(container.MODES)),
    storage=st.integers(0, 255),
    quality=st.integers(0, 100) | st.just(255),
    model=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True),
    model_version=st.integers(0, 65535),
    model_digest=st.binary(min_size=6, max_size=6),
)
kinds = st.from_regex(rb"[a-z][A-Za-z]{3}", fullmatch=True).filter(
    lambda kind: kind not in (b"pREV", b"mETA", b"iCCP", b"eXIF", b"xMPD")
)


def previews(header: Header) -> st.SearchStrategy[Preview | None]:
    width, height = (st.integers(1, min(side, 65535)) for side in header.lr_size)
    return st.none() | st.builds(
        Preview, st.integers(0, 255), width, height, st.binary(min_size=1, max_size=30)
    )


@st.composite
def files(draw: Any) -> Carimg:
    header = draw(headers)
    some = st.binary(max_size=40)
    maybe = st.none() | some | st.tuples(some, st.integers(2, 500)).map(lambda p: p[0] * p[1])
    alpha = draw(st.none() | st.binary(min_size=1, max_size=40)) if header.has_alpha else None
    quality = draw(st.integers(0, 100) | st.just(255)) if alpha is not None else 255
    unknown = draw(st.lists(st.tuples(kinds, st.binary(max_size=9)), max_size=3))
    return Carimg(
        header, draw(st.binary(max_size=60)), alpha, 4 if alpha is not None else 0, quality,
        draw(maybe), draw(maybe), draw(maybe), draw(previews(header)), tuple(unknown),
    )  # fmt: skip


def chunk(kind: bytes, payload: bytes) -> bytes:
    crc = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)


def header_chunk(**changes: int | bytes) -> bytes:
    fields: dict[str, Any] = {
        "version": 1, "mode": 2, "scale": 2, "storage": 1, "quality": 255, "flags": 0,
        "width": 5, "height": 4, "digest": b"abcdef", "model_version": 3, "name": b"tiny-x2",
    }  # fmt: skip
    fields |= changes
    name = fields.pop("name")
    return chunk(b"HEAD", struct.pack(">BBBBBBII6sH", *fields.values()) + name)


def assemble(*chunks: bytes) -> bytes:
    return container.SIGNATURE + b"".join(chunks)


def packed(metadata: bytes) -> bytes:
    return assemble(header_chunk(), LRIM, chunk(b"mETA", metadata), DONE)


PREV = chunk(b"pREV", b"\6\0\2\0\1x")
STREAM = bytes(imagecodecs.brotli_encode(b"hello"))
META = chunk(b"mETA", b"\5\0\0" + STREAM)
LRIM, DONE = chunk(b"LRIM", b"codestream"), chunk(b"DONE", b"")


@given(files())
def test_everything_written_reads_back(file: Carimg) -> None:
    assert container.read(container.write(file)) == file


@given(files())
def test_header_needs_only_a_prefix(file: Carimg) -> None:
    data = container.write(file)
    assert container.read_header(data[: 42 + len(file.header.model)]) == file.header


def test_header_and_framing_are_under_80_bytes() -> None:
    empty = Carimg(Header(9, 9, 2, 2, 1, 255, "car-x2-bicubic"[:13], 1, b"abcdef"), b"")
    assert len(container.write(empty)) < 80


def test_truncated_at_every_byte() -> None:
    data = container.write(FILE)
    for end in range(len(data)):
        with pytest.raises(CarcodecError) as caught:
            container.read(data[:end])
        expected = NotACarimgError if end == 0 else TruncatedError
        assert isinstance(caught.value, expected), end


def test_one_bit_flipped_anywhere() -> None:
    data = container.write(FILE)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CarcodecError):
            container.read(bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_at_all(data: bytes) -> None:
    for prefix in (b"", container.SIGNATURE, container.SIGNATURE + header_chunk()):
        with pytest.raises(CarcodecError):
            container.read(prefix + data[:-1] + b"\0")


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), NotACarimgError, "signature"),
        (b"\x89CAR\n\x1a\n" + bytes(99), ContainerError, "text-mode"),
        (assemble(LRIM, header_chunk(), DONE), ContainerError, "first chunk"),
        (assemble(header_chunk(), DONE), ContainerError, "before LRIM"),
        (assemble(header_chunk(), header_chunk(), LRIM, DONE), ContainerError, "two HEAD"),
        (assemble(header_chunk(), LRIM, LRIM, DONE), ContainerError, "two LRIM"),
        (assemble(header_chunk(), LRIM, DONE, b"x"), ContainerError, "stray"),
        (assemble(header_chunk(), LRIM, chunk(b"DONE", b"x")), ContainerError, "not empty"),
        (assemble(header_chunk(), chunk(b"iCCP", b"x"), LRIM, DONE), ContainerError, "before LRIM"),
        (assemble(header_chunk(), LRIM, chunk(b"NEWS", b""), DONE), UnsupportedError, "NEWS"),
        (assemble(header_chunk(), LRIM, chunk(b"AL?H", b""), DONE), ContainerError, "four letters"),
        (assemble(header_chunk(), LRIM, chunk(b"ALPH", b"\1\xffx"), DONE), ContainerError, "alpha"),
        (assemble(header_chunk(mode=3), LRIM, chunk(b"ALPH", b"x"), DONE), ContainerError, "alpha"),
        (assemble(header_chunk(), chunk(b"pREV", bytes(5)), LRIM, DONE), ContainerError, "preview"),
        (assemble(header_chunk(width=2), PREV, LRIM, DONE), ContainerError, "larger"),
        (assemble(header_chunk(), LRIM, PREV, DONE), ContainerError, "after LRIM"),
        (assemble(header_chunk(), META, LRIM, DONE), ContainerError, "before LRIM"),
        (assemble(header_chunk(), LRIM, META, META, DONE), ContainerError, "two mETA"),
        (assemble(header_chunk(), LRIM, META, chunk(b"xMPD", b"x"), DONE), ContainerError, "both"),
        (packed(b""), ContainerError, "metadata chunk is damaged"),
        (packed(b"\5\0"), ContainerError, "metadata chunk is damaged"),
        (packed(b"\5\0\0"), ContainerError, "metadata chunk is damaged"),
        (packed(b"\5\0\0" + STREAM[:-1]), ContainerError, "metadata chunk is damaged"),
        (packed(b"\4\0\0" + STREAM), ContainerError, "metadata chunk is damaged"),
        (packed(b"\3\2\1" + STREAM), ContainerError, "metadata chunk is damaged"),
        (packed(b"\xff\xff\xff\xff\x7f\0\0" + STREAM), ContainerError, "64 MiB"),
        (assemble(header_chunk(version=2), LRIM, DONE), UnsupportedError, "version 2"),
        (assemble(header_chunk(mode=77), LRIM, DONE), UnsupportedError, "mode 77"),
        (assemble(header_chunk(flags=4), LRIM, DONE), UnsupportedError, "flags 0x04"),
        (assemble(header_chunk(flags=2), LRIM, DONE), ContainerError, "colour photo's"),
        (assemble(header_chunk(flags=1, mode=0), LRIM, DONE), ContainerError, "grey photo's"),
        (assemble(header_chunk(scale=0), LRIM, DONE), ContainerError, "scale"),
        (assemble(header_chunk(scale=129), LRIM, DONE), ContainerError, "scale"),
        (assemble(header_chunk(quality=101), LRIM, DONE), ContainerError, "quality"),
        (assemble(header_chunk(width=0), LRIM, DONE), ContainerError, "size"),
        (assemble(header_chunk(height=2**31), LRIM, DONE), ContainerError, "size"),
        (assemble(header_chunk(name=b""), LRIM, DONE), ContainerError, "length"),
        (assemble(header_chunk(name=b"../evil"), LRIM, DONE), ContainerError, "name"),
        (assemble(header_chunk(name=b"\xff"), LRIM, DONE), ContainerError, "name"),
        (assemble(header_chunk(name=b"a" * 64), LRIM, DONE), ContainerError, "length"),
        (assemble(header_chunk(), b"\x80\0\0\0LRIM"), TruncatedError, "cut off"),
        (assemble(header_chunk(), b"\xff\xff\xff\xffLRIM" + bytes(9)), ContainerError, "length"),
    ],
)  # fmt: skip
def test_broken_rules(data: bytes, error: type[CarcodecError], words: str) -> None:
    with pytest.raises(error, match=words):
        container.read(data)


def test_checksums_name_the_chunk() -> None:
    data = bytearray(assemble(header_chunk(), LRIM, DONE))
    data[-14] ^= 1
    with pytest.raises(DigestMismatchError, match="LRIM"):
        container.read(bytes(data))


def test_unknown_ancillary_chunks_are_kept() -> None:
    data = assemble(header_chunk(), chunk(b"noTe", b"hello"), LRIM, DONE)
    file = container.read(data)
    assert file.unknown == ((b"noTe", b"hello"),)
    assert container.read(container.write(file)).unknown == file.unknown


def test_metadata_takes_the_fewest_bytes_there_are() -> None:
    def taken(exif: bytes | None, xmp: bytes | None, icc: bytes | None) -> tuple[bytes, int]:
        file = replace(FILE, exif=exif, xmp=xmp, icc=icc)
        data = container.write(file)
        assert container.read(data) == file
        return data, len(data) - len(container.write(Carimg(HEADER, b"codestream")))

    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF>" + b" " * 2048 + b"</x:xmpmeta>"
    data, size = taken(b"Exif\0\0MM" + bytes(1000), xmp, bytes(range(256)))
    assert b"mETA" in data
    assert b"eXIF" not in data
    assert size < 500
    assert container.metadata_bytes(data) == size - 12
    for parts in ((b"short", None, None), (None, b"", bytes(999)), (None, None, os.urandom(99))):
        data, size = taken(*parts)  # not worth it, or not possible
        assert b"mETA" not in data
        assert size == sum(12 + len(p) for p in parts if p is not None)
    assert container.metadata_bytes(container.write(Carimg(HEADER, b""))) == 0


@st.composite
def profiles(draw: Any) -> bytes:
    """What could be a colour profile, curves wherever: over each other, cut off, before the end."""
    data = bytearray(draw(st.binary(min_size=132, max_size=500)))
    tags = draw(st.integers(0, 6))
    data[128:132] = struct.pack(">I", tags)
    for i in range(min(tags, (len(data) - 132) // 12)):
        at = draw(st.integers(100, len(data)))
        data[136 + 12 * i : 140 + 12 * i] = struct.pack(">I", at)
        if at + 12 <= len(data):
            data[at : at + 4] = b"curv"
            data[at + 8 : at + 12] = struct.pack(">I", draw(st.integers(0, 120)))
    return bytes(data)


@given(profiles() | st.binary(max_size=140))
def test_curves_of_profiles_come_back(icc: bytes) -> None:
    packed = metadata.pack(None, None, icc)
    if not icc:
        assert packed is None
    else:
        assert packed is not None
        assert metadata.unpack(packed) == (None, None, icc)
        assert reader.metadata({b"mETA": packed})["icc"] == icc


def test_curves_of_profiles_take_few_bytes() -> None:
    x = np.linspace(0, 1, 1024)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)  # sRGB's
    table = (65535 * curve).round().astype(">u2").tobytes()
    tag = b"curv" + struct.pack(">II", 0, 1024) + table
    icc = bytes(128) + struct.pack(">I4sII", 1, b"rTRC", 144, len(tag)) + tag
    packed = metadata.pack(None, None, icc)
    assert packed is not None
    assert len(packed) < 320 < len(imagecodecs.brotli_encode(icc, level=11)) // 5


def test_packed_metadata_may_not_fill_the_memory() -> None:
    most = metadata.MOST
    assert metadata.pack(None, None, bytes(most + 1)) is None
    stream = bytes(imagecodecs.brotli_encode(bytes(most + 1), level=1))
    assert len(stream) < 2**14
    with pytest.raises(ContainerError, match="64 MiB"):
        metadata.unpack(leb128.written(most + 1) + b"\0\0" + stream)
    with pytest.raises(ContainerError, match="damaged"):  # says less than there is
        metadata.unpack(b"\1\0\0" + stream)


def test_without_brotli_metadata_is_plain_and_packed_metadata_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = container.write(replace(FILE, icc=bytes(999)))

    def missing(*args: Any, **options: Any) -> bytes:
        raise imagecodecs.DelayedImportError("brotli")

    monkeypatch.setattr(imagecodecs, "brotli_encode", missing)
    monkeypatch.setattr(imagecodecs, "brotli_decode", missing)
    assert container.read(container.write(replace(FILE, icc=bytes(998)))).icc == bytes(998)
    with pytest.raises(MissingDependencyError, match="pip install --upgrade imagecodecs"):
        container.read(data)


@given(st.integers(0, 2**35 - 1), st.binary(max_size=3))
def test_numbers_take_a_byte_for_seven_bits(value: int, behind: bytes) -> None:
    data = leb128.written(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert leb128.read(data + behind, 0) == (value, len(data))
    with pytest.raises(ValueError, match="cut off"):
        leb128.read(data[:-1], 0)


def test_nothing_invalid_is_written() -> None:
    for bad in (
        Header(0, 1, 2, 2, 1, 255, "m", 1, b"abcdef"),
        Header(1, 1, 2, 2, 1, 150, "m", 1, b"abcdef"),
        Header(1, 1, 2, 2, 1, 255, "No Name", 1, b"abcdef"),
    ):
        with pytest.raises(ContainerError):
            container.write(Carimg(bad, b""))
    with pytest.raises(ContainerError, match="alpha"):
        container.write(Carimg(HEADER, b"", b"alpha"))

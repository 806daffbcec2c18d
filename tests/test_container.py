"""The byte format: every rule of docs/FORMAT.md has a test that breaks it."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carcodec import container
from carcodec.container import Carimg, Header, Preview
from carcodec.errors import (
    CarcodecError,
    ContainerError,
    DigestMismatchError,
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
    lambda kind: kind not in (b"iCCP", b"eXIF", b"xMPD")
)


def previews(header: Header) -> st.SearchStrategy[Preview | None]:
    width, height = (st.integers(1, min(side, 65535)) for side in header.lr_size)
    return st.none() | st.builds(
        Preview, st.integers(0, 255), width, height, st.binary(min_size=1, max_size=30)
    )


@st.composite
def files(draw: Any) -> Carimg:
    header = draw(headers)
    maybe = st.none() | st.binary(max_size=40)
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


PREV = chunk(b"pREV", b"\6\0\2\0\1x")
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

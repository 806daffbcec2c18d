"""The .carimg byte format (docs/FORMAT.md): read and write, nothing else.

A file is a signature, then chunks of length, type, payload and CRC-32. Whatever a reader
is told by the bytes is checked against everything else they say before it is used.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from carcodec import metadata
from carcodec.errors import (
    ContainerError,
    DigestMismatchError,
    LimitError,
    NotACarimgError,
    TruncatedError,
    UnsupportedError,
)

__all__ = [
    "MODES",
    "SIGNATURE",
    "Carimg",
    "Header",
    "Preview",
    "ceil_div",
    "metadata_bytes",
    "read",
    "read_header",
    "write",
]

SIGNATURE = b"\x89CAR\r\n\x1a\n"
FORMAT_VERSION = 1
MAX_SIDE = 2**31 - 1
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")

# Mode number in the header -> name, (colour channels of LR, has alpha, bits per sample)
MODES: dict[int, tuple[str, int, bool, int]] = {
    0: ("L", 1, False, 8),
    1: ("LA", 1, True, 8),
    2: ("RGB", 3, False, 8),
    3: ("RGBA", 3, True, 8),
    4: ("1", 1, False, 1),
    5: ("I;16", 1, False, 16),
    6: ("RGB;16", 3, False, 16),
    7: ("RGBA;16", 3, True, 16),
}

_METADATA = (b"mETA", b"iCCP", b"eXIF", b"xMPD")
_KNOWN = (b"HEAD", b"pREV", b"LRIM", b"ALPH", *_METADATA, b"DONE")
_GREY_LR, _COLOUR_LR = 1, 2  # flags
_FIXED = struct.Struct(">BBBBBBII6sH")  # everything in HEAD but the model's name
_FRAME = struct.Struct(">I4s")
_PREVIEW = struct.Struct(">BHH")


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Header:
    """The HEAD chunk.

    Attributes:
        width, height: HR size in pixels.
        scale: HR pixels per LR pixel, 1…128; LR is ``ceil(width/scale) × ceil(height/scale)``.
        mode: key of :data:`MODES`.
        storage: number of the LR image's storage codec (docs/FORMAT.md lists them).
        quality: the codec's quality, 0…100, or 255 for lossless.
        model: the model's name.
        model_version: the model's version.
        model_digest: first six bytes of the model's digest.
        grey_lr: LR of a colour photo is one grey plane.
        colour_lr: LR of a grey photo is RGB.
    """

    width: int
    height: int
    scale: int
    mode: int
    storage: int
    quality: int
    model: str
    model_version: int
    model_digest: bytes
    grey_lr: bool = False
    colour_lr: bool = False

    @property
    def lr_size(self) -> tuple[int, int]:
        """LR ``(width, height)``."""
        return ceil_div(self.width, self.scale), ceil_div(self.height, self.scale)

    @property
    def mode_name(self) -> str:
        return MODES[self.mode][0]

    @property
    def lr_channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return 1 if self.grey_lr else 3 if self.colour_lr else MODES[self.mode][1]

    @property
    def photo_channels(self) -> int:
        """1 (grey) or 3 (RGB), alpha left out."""
        return MODES[self.mode][1]

    @property
    def has_alpha(self) -> bool:
        return MODES[self.mode][2]

    @property
    def bits(self) -> int:
        """Bits per sample of the photo: 1, 8 or 16. LR always has 8."""
        return MODES[self.mode][3]

    @property
    def lossless_lr(self) -> bool:
        return self.quality == 255


@dataclass(frozen=True)
class Preview:
    """A still smaller image for large photos, so that their thumbnail is instant.

    ``storage`` numbers the codec of ``data``, whose image is ``width × height`` pixels with as
    many channels as LR.
    """

    storage: int
    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class Carimg:
    """A whole file: header, LR codestream and what travels with it.

    ``alpha`` is the ALPH payload without its two leading bytes, which are ``alpha_storage`` and
    ``alpha_quality``; an image with alpha and no ALPH chunk is opaque. ``unknown`` keeps
    ancillary chunks this version does not know, as (type, payload), in file order.
    """

    header: Header
    lr: bytes
    alpha: bytes | None = None
    alpha_storage: int = 0
    alpha_quality: int = 255
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    preview: Preview | None = None
    unknown: tuple[tuple[bytes, bytes], ...] = field(default=())


def _check(header: Header) -> None:
    if not 1 <= header.width <= MAX_SIDE or not 1 <= header.height <= MAX_SIDE:
        raise ContainerError(
            f"the header gives an impossible size, {header.width}×{header.height} pixels"
        )
    if not 1 <= header.scale <= 128:
        raise ContainerError(f"the header gives an impossible scale, {header.scale}")
    if header.mode not in MODES:
        raise UnsupportedError(
            f"the file has colour mode {header.mode}, unknown to this version: upgrade carcodec"
        )
    if header.grey_lr and MODES[header.mode][1] == 1:
        raise ContainerError("the header says that a grey photo's small image is grey")
    if header.colour_lr and MODES[header.mode][1] == 3:
        raise ContainerError("the header says that a colour photo's small image is in colour")
    if not (header.quality <= 100 or header.quality == 255):
        raise ContainerError(f"the header gives an impossible quality, {header.quality}")
    if not NAME.fullmatch(header.model):
        raise ContainerError("the header's model name is not a valid name")


def _pack_header(header: Header) -> bytes:
    _check(header)
    fixed = _FIXED.pack(
        FORMAT_VERSION,
        header.mode,
        header.scale,
        header.storage,
        header.quality,
        _GREY_LR * header.grey_lr + _COLOUR_LR * header.colour_lr,
        header.width,
        header.height,
        header.model_digest,
        header.model_version,
    )
    return fixed + header.model.encode("ascii")


def _unpack_header(payload: bytes) -> Header:
    if payload and payload[0] != FORMAT_VERSION:
        raise UnsupportedError(
            f"the file uses format version {payload[0]}, this carcodec reads version "
            f"{FORMAT_VERSION}: upgrade carcodec"
        )
    if not _FIXED.size < len(payload) <= _FIXED.size + 63:
        raise ContainerError(f"the header chunk has a wrong length, {len(payload)} bytes")
    _, mode, scale, storage, quality, flags, width, height, digest, version = _FIXED.unpack_from(
        payload
    )
    if flags & ~(_GREY_LR | _COLOUR_LR):
        raise UnsupportedError(
            f"the file sets header flags {flags:#04x}, unknown to this version: upgrade carcodec"
        )
    try:
        model = payload[_FIXED.size :].decode("ascii")
    except UnicodeDecodeError as error:
        raise ContainerError("the header's model name is not a valid name") from error
    grey, coloured = bool(flags & _GREY_LR), bool(flags & _COLOUR_LR)
    header = Header(
        width, height, scale, mode, storage, quality, model, version, digest, grey, coloured
    )
    _check(header)
    return header


def _pack_preview(preview: Preview) -> bytes:
    return _PREVIEW.pack(preview.storage, preview.width, preview.height) + preview.data


def _unpack_preview(payload: bytes, header: Header) -> Preview:
    if len(payload) <= _PREVIEW.size:
        raise ContainerError("the preview chunk is damaged")
    number, across, down = _PREVIEW.unpack_from(payload)
    preview = Preview(number, across, down, payload[_PREVIEW.size :])
    width, height = header.lr_size
    if not (1 <= preview.width <= width and 1 <= preview.height <= height):
        raise ContainerError("the preview chunk is larger than the image it previews")
    return preview


def _chunk(kind: bytes, payload: bytes) -> bytes:
    if len(payload) > MAX_SIDE:
        raise LimitError(f"a {kind.decode()} chunk cannot hold {len(payload)} bytes")
    crc = zlib.crc32(payload, zlib.crc32(kind))
    return _FRAME.pack(len(payload), kind) + payload + struct.pack(">I", crc)


def write(image: Carimg) -> bytes:
    """The file's bytes.

    Raises:
        ContainerError: the header breaks the format's rules.
        LimitError: a payload is too large for a chunk.
    """
    parts: list[tuple[bytes, bytes | None]] = [
        (b"HEAD", _pack_header(image.header)),
        (b"pREV", None if image.preview is None else _pack_preview(image.preview)),
        (b"LRIM", image.lr),
        (b"ALPH", None if image.alpha is None else _pack_alpha(image, image.alpha)),
        *_metadata(image),
        *image.unknown,
        (b"DONE", b""),
    ]
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts if data is not None)


def _pack_alpha(image: Carimg, alpha: bytes) -> bytes:
    if not image.header.has_alpha:
        raise ContainerError("an alpha plane was given for a mode without alpha")
    return bytes([image.alpha_storage, image.alpha_quality]) + alpha


def _metadata(image: Carimg) -> list[tuple[bytes, bytes]]:
    """One chunk for all, or one for each, whichever is shorter."""
    each = ((b"iCCP", image.icc), (b"eXIF", image.exif), (b"xMPD", image.xmp))
    plain = [(kind, part) for kind, part in each if part is not None]
    packed = metadata.pack(image.exif, image.xmp, image.icc)
    framed = sum(_FRAME.size + 4 + len(part) for _, part in plain)
    if packed is None or _FRAME.size + 4 + len(packed) >= framed:
        return plain
    return [(b"mETA", packed)]


def _chunks(data: bytes | memoryview) -> Iterable[tuple[bytes, bytes]]:
    """Yield (type, payload) up to and including DONE, each CRC checked."""
    if bytes(data[:8]) != SIGNATURE:
        if bytes(data[:8]) and SIGNATURE.startswith(bytes(data[:8])):
            raise TruncatedError("the file is cut off inside its signature")
        if bytes(data[:4]) == SIGNATURE[:4]:
            raise ContainerError(
                "the file was damaged by a text-mode transfer (line ends were changed): "
                "copy it again in binary mode"
            )
        raise NotACarimgError("not a .carimg file: the signature is missing")
    at, total = 8, len(data)
    while True:
        if at + 12 > total:
            raise TruncatedError(f"the file is cut off at byte {total}: its end chunk is missing")
        length, kind = _FRAME.unpack_from(data, at)
        if not all(65 <= c <= 90 or 97 <= c <= 122 for c in kind):
            raise ContainerError(f"damaged chunk at byte {at}: its type is not four letters")
        if length > MAX_SIDE:
            raise ContainerError(f"damaged chunk at byte {at}: impossible length {length}")
        if at + 12 + length > total:
            raise TruncatedError(
                f"the file is cut off: its {kind.decode()} chunk at byte {at} needs "
                f"{length} bytes, {max(0, total - at - 12)} are there"
            )
        payload = bytes(data[at + 8 : at + 8 + length])
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        if crc != zlib.crc32(payload, zlib.crc32(kind)):
            raise DigestMismatchError(
                f"the {kind.decode()} chunk at byte {at} is damaged: its checksum does not match"
            )
        yield kind, payload
        at += 12 + length
        if kind == b"DONE":
            if at != total:
                raise ContainerError(f"{total - at} stray bytes follow the end chunk")
            return


def read_header(data: bytes | memoryview) -> Header:
    """The header alone; ``data`` may stop anywhere after the first chunk.

    Raises:
        ContainerError, DigestMismatchError: see :func:`read`.
    """
    for kind, payload in _chunks(data):
        if kind != b"HEAD":
            raise ContainerError("the first chunk is not HEAD")
        return _unpack_header(payload)
    raise TruncatedError("the file holds no chunk")


def metadata_bytes(data: bytes | memoryview) -> int:
    """What EXIF, XMP and ICC profile take in a file, framing left out.

    Raises: as :func:`read`.
    """
    return sum(len(payload) for kind, payload in _chunks(data) if kind in _METADATA)


def read(data: bytes | memoryview) -> Carimg:
    """Parse a whole file.

    Raises:
        NotACarimgError: no signature.
        TruncatedError: it stops before its end chunk.
        DigestMismatchError: a chunk's CRC-32 does not match.
        UnsupportedError: a newer version, mode, flag or critical chunk.
        ContainerError: any other broken rule.
        MissingDependencyError: its metadata is packed, and the installed imagecodecs has no Brotli.
    """
    known: dict[bytes, bytes] = {}
    unknown: list[tuple[bytes, bytes]] = []
    header: Header | None = None
    for kind, payload in _chunks(data):
        if header is None:
            if kind != b"HEAD":
                raise ContainerError("the first chunk is not HEAD")
            header = _unpack_header(payload)
        if kind in _KNOWN:
            if kind in known:
                raise ContainerError(f"the file has two {kind.decode()} chunks")
            if kind not in (b"HEAD", b"pREV", b"LRIM") and b"LRIM" not in known:
                raise ContainerError(f"the {kind.decode()} chunk comes before LRIM")
            if kind == b"pREV" and b"LRIM" in known:
                raise ContainerError("the pREV chunk comes after LRIM")
            known[kind] = payload
        elif kind[:1].isupper():
            raise UnsupportedError(
                f"the file needs the {kind.decode()} chunk, unknown to this version: "
                "upgrade carcodec"
            )
        else:
            unknown.append((kind, payload))
    assert header is not None  # _chunks yields at least one chunk or raises
    if known[b"DONE"]:
        raise ContainerError("the end chunk is not empty")
    alpha = known.get(b"ALPH")
    if alpha is not None and not header.has_alpha:
        raise ContainerError("the file has an alpha plane but its mode has no alpha")
    if alpha is not None and (len(alpha) < 3 or not (alpha[1] <= 100 or alpha[1] == 255)):
        raise ContainerError("the alpha chunk is damaged")
    exif, xmp, icc = (known.get(kind) for kind in (b"eXIF", b"xMPD", b"iCCP"))
    if (packed := known.get(b"mETA")) is not None:
        if not (exif is xmp is icc is None):
            raise ContainerError("the file has metadata both packed and plain")
        exif, xmp, icc = metadata.unpack(packed)
    return Carimg(
        header,
        known[b"LRIM"],
        None if alpha is None else alpha[2:],
        alpha[0] if alpha else 0,
        alpha[1] if alpha else 255,
        icc,
        exif,
        xmp,
        _unpack_preview(known[b"pREV"], header) if b"pREV" in known else None,
        tuple(unknown),
    )

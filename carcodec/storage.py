"""Storage codecs: the LR image to and from a standard codestream.

Through imagecodecs, but for lossy AVIF and JPEG 2000, which Pillow writes.

Images are uint8 arrays, ``(h, w)`` grey or ``(h, w, 3)`` RGB. ``quality`` is 0…100, higher
is better, on each codec's own scale; ``None`` means lossless, which is bit-exact. JPEG 2000 and
JPEG XL take fractions, AVIF and WebP round them.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec import av1, j2k, packets
from carcodec.errors import MissingDependencyError, StorageError

__all__ = [
    "DEFAULT_EFFORT", "STORAGES", "StorageCodec", "avif_file", "by_name", "by_number",
    "jpeg2000_stream",
]  # fmt: skip

Pixels = NDArray[np.uint8]

DEFAULT_EFFORT = 3


@dataclass(frozen=True)
class StorageCodec:
    """One codec: what it is called, what it can do, and its two directions.

    Attributes:
        name: as the command line knows it.
        number: as the .carimg header knows it; never reused.
        older: the numbers that earlier versions wrote for it, where its form was another.
        extension: of a file that any viewer of that format opens, or "" if there is none.
        title: for people.
        lossy: takes a quality; every codec here can be lossless.
        max_side: largest width or height the codec stores, in pixels.
        whole: its qualities are whole numbers; fractions are rounded.
        paced: it takes its time by the effort.
        wavelet: what it keeps is a wavelet transform, and not blocks.
    """

    name: str
    number: int
    title: str
    lossy: bool
    max_side: int
    _encode: Callable[[Any, Pixels, float | None, int, int], bytes]
    _decode: Callable[[Any, bytes, Pixels, int], Pixels]
    _size: Callable[[bytes], tuple[int, int] | None] = lambda data: None
    whole: bool = False
    paced: bool = False
    wavelet: bool = False
    older: tuple[int, ...] = ()
    extension: str = ""
    _file: Callable[[bytes], bytes] = lambda data: data

    def in_file(self, data: bytes) -> bytes:
        """A codestream as a file of :attr:`extension`, nothing coded again.

        Raises:
            StorageError: it has none, or the codestream is damaged.
        """
        if not self.extension:
            raise StorageError(f"{self.title} as it is stored is no file that others open")
        try:
            return self._file(data)
        except ValueError as error:
            raise StorageError(f"the {self.title} codestream is damaged") from error

    def encode(
        self,
        image: Pixels,
        quality: float | None = None,
        threads: int = 0,
        effort: int = DEFAULT_EFFORT,
    ) -> bytes:
        """The codestream of ``image``, the same for any number of threads; 0 is all cores.

        ``effort`` 0…9 trades time for bytes, where the codec can: AVIF, JPEG XL, and JPEG 2000
        from 4 on.

        Raises:
            StorageError: the codec has no lossy mode, the image is too large for it, or it failed.
        """
        if quality is not None:
            if not self.lossy:
                raise StorageError(
                    f"{self.title} is lossless only: leave the quality out, or choose one of "
                    f"{', '.join(c.name for c in STORAGES if c.lossy)}"
                )
            if not 0 <= quality <= 100:
                raise StorageError(f"quality must be from 0 to 100, not {quality}")
        if max(image.shape[:2]) > self.max_side:
            raise StorageError(
                f"{self.title} stores at most {self.max_side} pixels a side and the small image "
                f"is {image.shape[1]}×{image.shape[0]}: choose another storage or a larger scale"
            )
        codecs = _imagecodecs()
        try:
            return bytes(
                self._encode(
                    codecs, np.ascontiguousarray(image), quality, threads or _CORES, effort
                )
            )
        except Exception as error:
            raise self._failure("encode", error) from error

    def decode(self, data: bytes, size: tuple[int, int], channels: int, threads: int = 0) -> Pixels:
        """The image of a codestream that must be ``size`` (width, height) with 1 or 3 channels.

        The codestream's own idea of its size is compared before anything is allocated.

        Raises:
            StorageError: damaged, or of another size.
        """
        width, height = size
        try:
            actual = self._size(data)
        except (struct.error, IndexError, ValueError) as error:
            raise StorageError(f"the {self.title} codestream is damaged") from error
        if actual not in (None, size):
            raise StorageError(
                f"the {self.title} codestream is {actual[0]}×{actual[1]} pixels, "
                f"the header says {width}×{height}"
            )
        shape = (height, width) if channels == 1 else (height, width, channels)
        codecs = _imagecodecs()
        if max(size) > self.max_side:
            raise StorageError(f"{self.title} cannot hold {width}×{height} pixels")
        try:
            # A preallocated output makes the codec compare sizes before it decodes; an
            # untouched np.empty costs address space, not memory.
            image = self._decode(codecs, data, np.empty(shape, np.uint8), threads or _CORES)
        except Exception as error:
            raise self._failure("decode", error) from error
        if image.shape != shape or image.dtype != np.uint8:
            raise StorageError(
                f"the {self.title} codestream holds {image.shape} {image.dtype}, "
                f"the header promises {shape} uint8"
            )
        return image

    def _failure(self, action: str, error: Exception) -> StorageError:
        if type(error).__name__ == "DelayedImportError":
            return MissingDependencyError(
                f"this imagecodecs has no {self.title}: pip install --upgrade imagecodecs"
            )
        text = " ".join(str(error).split()) or type(error).__name__
        return StorageError(f"{self.title} could not {action} the image: {text}")


_CORES = os.cpu_count() or 1


def _imagecodecs() -> Any:
    import imagecodecs

    return imagecodecs


def _subtract_green(image: Pixels) -> Pixels:
    """(R, G, B) to (G, R-G, B-G) modulo 256; about a fifth off JPEG-LS's size."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return np.stack((green, red - green, blue - green), -1)


def _add_green(planes: Pixels) -> Pixels:
    green, red, blue = planes[..., 0], planes[..., 1], planes[..., 2]
    return np.stack((red + green, green, blue + green), -1)


def _as_rgb(image: Pixels) -> Pixels:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)


def _through_rgb(decode: Callable[[Pixels], Any], out: Pixels) -> Pixels:
    """Decode a codec without grey: grey travels as RGB and comes back from its green."""
    if out.ndim == 3:
        return np.asarray(decode(out))
    rgb = np.asarray(decode(np.empty((*out.shape, 3), np.uint8)))
    return np.ascontiguousarray(rgb[..., 1])


def _png_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    return bytes(codecs.png_encode(image, level=9))


def _jpegls_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    room = 2 * image.size + 1024  # noise takes more than it is, which its own estimate lacks
    planes = _subtract_green(image) if image.ndim == 3 else image
    return bytes(codecs.jpegls_encode(planes, out=room))


def _jpegls_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    planes = codecs.jpegls_decode(data, out=out)
    return _add_green(planes) if planes.ndim == 3 else planes


def _jpegls_size(data: bytes) -> tuple[int, int]:
    # CharLS spends eight seconds on a stream that is cut off: look for its end marker first.
    if data[-2:] != b"\xff\xd9":
        raise IndexError("no end marker")
    height, width = struct.unpack_from(">HH", data, data.index(b"\xff\xf7") + 5)  # SOF55
    return width, height


def _jpeg2k_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    # small images cannot carry all the wavelet levels
    resolutions = max(1, min(image.shape[:2]).bit_length() - 1)
    if quality is not None:
        # OpenJPEG's lossy quality is a target PSNR in dB: 0…100 is 20…60 dB.
        level = 20 + 0.4 * quality
        # imagecodecs cuts each level into precincts of 256 pixels; without them, and with one level
        # more, 0.1 to 0.5 bits per pixel are 2 % fewer. Pillow can be told so.
        try:
            whole = jpeg2000_stream(image, level, num_resolutions=min(7, resolutions))
        except (KeyError, ValueError):  # a Pillow without JPEG 2000
            pass
        else:
            whole = _without_comments(whole)
            bare = j2k.bare(whole)
            if effort <= DEFAULT_EFFORT or bare == whole:
                return bare
            return packets.shortened(
                bare,
                image,
                lambda data: _jpeg2k_decode(codecs, data, np.empty_like(image), threads),
            )
    data = codecs.jpeg2k_encode(
        image,
        level=0 if quality is None else level,
        reversible=quality is None,
        codecformat="j2k",
        resolutions=min(6, resolutions),
        numthreads=threads,
    )
    return _without_comments(bytes(data))


def jpeg2000_stream(image: Pixels, level: float, **options: Any) -> bytes:
    """An irreversible codestream of that PSNR in dB: OpenJPEG's own settings but ``options``.

    Raises:
        KeyError: this Pillow has no JPEG 2000.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(
        buffer,
        "JPEG2000",
        no_jp2=True,
        irreversible=True,
        mct=int(image.ndim == 3),
        quality_mode="dB",
        quality_layers=[level],
        **options,
    )
    return buffer.getvalue()


def _without_comments(data: bytes) -> bytes:
    """A JPEG 2000 codestream without COM segments: OpenJPEG leaves its name, 39 bytes."""
    kept, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\x90":  # SOT: the main header ends
        marker, length = struct.unpack_from(">HH", data, at)
        if marker != 0xFF64:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join((*kept, data[at:]))


def _jpeg2k_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    return np.asarray(codecs.jpeg2k_decode(j2k.codestream(data), numthreads=threads, out=out))


def _jpegxl_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    options: dict[str, Any] = {"usecontainer": False, "numthreads": threads}
    if quality is None:
        # On LR images effort 6 is within 1 % of effort 7's size in 0.7 of its time.
        level = (3, 4, 5, 6, 6, 7, 7, 8, 8, 9)[effort]
        return bytes(codecs.jpegxl_encode(image, lossless=True, effort=level, **options))
    level = (3, 4, 5, 7, 7, 7, 8, 8, 9, 9)[effort]
    return bytes(
        codecs.jpegxl_encode(image, level=quality, lossless=False, effort=level, **options)
    )


def _jpegxl_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    return np.asarray(codecs.jpegxl_decode(data, numthreads=threads, out=out))


def _avif_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    return av1.bare(_avif_file(codecs, image, quality, threads, effort))


def avif_file(image: Pixels, quality: float) -> bytes:
    """The whole AVIF file of what ``avif`` stores, at libavif's own speed, 6: to compare with."""
    return _avif_file(_imagecodecs(), image, quality, 1, effort=2)


def _avif_file(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    # more than one thread always: the encoder's bytes tell one from several, not several from more
    threads = max(threads, 2)
    speed = (9, 7, 6, 5, 4, 3, 3, 3, 2, 1)[effort]
    if quality is None:
        return bytes(codecs.avif_encode(image, level=100, speed=speed, numthreads=threads))
    # imagecodecs stores grey AVIF losslessly whatever the level, and level 100 means lossless
    level = min(round(quality), 99)
    rgb = _as_rgb(image)
    # libavif tunes still images for how they look at full size; LR is seen through a network that
    # was trained for MSE, and tune=ssim takes a tenth off its bytes at the same PSNR (and loses
    # nothing in SSIM). Pillow's libavif can be told so, imagecodecs' cannot. From speed 4 down
    # libaom would have the decoder filter what it restores. The network does that better, and at
    # the same quality behind it files without such filters are 1 % smaller.
    buffer = io.BytesIO()
    try:
        Image.fromarray(rgb).save(
            buffer,
            "AVIF",
            quality=level,
            speed=speed,
            subsampling="4:4:4",
            codec="aom",
            max_threads=threads,
            autotiling=False,
            advanced={"tune": "ssim", "enable-restoration": "0"},
        )
    except (KeyError, ValueError):  # a Pillow without AVIF or without libaom
        return bytes(
            codecs.avif_encode(rgb, level=level, pixelformat="444", speed=speed, numthreads=threads)
        )
    return buffer.getvalue()


def _avif_size(data: bytes) -> tuple[int, int] | None:
    if data[4:8] != b"ftyp":
        header = av1.sequence_header(data)
        return header.width, header.height
    at = data.find(b"ispe")
    if at < 0:
        raise IndexError("no size property")
    width, height = struct.unpack_from(">II", data, at + 8)
    return width, height


def _avif_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    data = av1.in_avif(data)
    if out.ndim == 3:
        return np.asarray(codecs.avif_decode(data, numthreads=threads, out=out))
    image = np.asarray(codecs.avif_decode(data, numthreads=threads))
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 1])


def _webp_encode(
    codecs: Any, image: Pixels, quality: float | None, threads: int, effort: int
) -> bytes:
    rgb = _as_rgb(image)
    if quality is None:
        return bytes(codecs.webp_encode(rgb, lossless=True, method=6))
    return bytes(codecs.webp_encode(rgb, level=round(quality), lossless=False, method=6))


def _png_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    return np.asarray(codecs.png_decode(data, out=out))


def _webp_decode(codecs: Any, data: bytes, out: Pixels, threads: int) -> Pixels:
    return _through_rgb(lambda rgb: codecs.webp_decode(data, hasalpha=False, out=rgb), out)


STORAGES: tuple[StorageCodec, ...] = (
    StorageCodec("png", 1, "PNG", False, 2**31 - 1, _png_encode, _png_decode, extension=".png"),
    StorageCodec(
        "jpegls", 2, "JPEG-LS", False, 65535, _jpegls_encode, _jpegls_decode, _jpegls_size
    ),
    StorageCodec(
        "jpeg2000", 8, "JPEG 2000", True, 2**31 - 1, _jpeg2k_encode, _jpeg2k_decode, j2k.size,
        wavelet=True, older=(3,), extension=".j2k", _file=j2k.codestream,
    ),
    StorageCodec(
        "jpegxl", 4, "JPEG XL", True, 2**30 - 1, _jpegxl_encode, _jpegxl_decode, paced=True,
        extension=".jxl",
    ),
    StorageCodec(
        "avif", 7, "AVIF", True, 32768, _avif_encode, _avif_decode, _avif_size, whole=True,
        paced=True, older=(5,), extension=".avif", _file=av1.in_avif,
    ),
    StorageCodec(
        "webp", 6, "WebP", True, 16383, _webp_encode, _webp_decode, whole=True, extension=".webp"
    ),
)  # fmt: skip


def by_name(name: str) -> StorageCodec:
    """The codec called ``name``.

    Raises:
        StorageError: there is none.
    """
    for codec in STORAGES:
        if codec.name == name.lower():
            return codec
    raise StorageError(
        f"unknown storage codec {name!r}: choose one of {', '.join(c.name for c in STORAGES)}"
    )


def by_number(number: int) -> StorageCodec:
    """The codec a header names.

    Raises:
        StorageError: this version knows no such codec.
    """
    for codec in STORAGES:
        if number == codec.number or number in codec.older:
            return codec
    raise StorageError(
        f"the file stores its image with codec {number}, unknown to this version: upgrade carcodec"
    )

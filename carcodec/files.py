"""Files in and out for the command line: photos, folders, streams, atomic writes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import sys
import warnings
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from carcodec import atomic, codec, pixels
from carcodec.errors import CarcodecError, ImageError, LimitError, MissingDependencyError

__all__ = [
    "PICTURES",
    "OutputError",
    "check_output",
    "image_bytes",
    "inputs",
    "output_paths",
    "read_bytes",
    "read_photo",
    "within",
    "write_bytes",
]

# what a folder is searched for
PICTURES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif",
    ".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".tga", ".heic", ".heif", ".hif",
}  # fmt: skip

_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")  # brands

# Many are TIFF, in which Pillow finds the camera's thumbnail and calls it the picture
_RAW = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".mrw", ".nef", ".nrw",
    ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f",
}  # fmt: skip


class OutputError(CarcodecError):
    """A result cannot be written where it was asked for."""


def inputs(given: list[str], suffixes: set[str]) -> list[tuple[str, Path]]:
    """Expand folders (recursively, by suffix); ``-`` and files stay as they are.

    Returns:
        (path, path relative to the folder it was found in) pairs.

    Raises:
        ImageError: a folder holds nothing suitable.
    """
    found: list[tuple[str, Path]] = []
    for name in given:
        path = Path(name)
        if name != "-" and path.is_dir():
            inside = within(path, suffixes)
            if not inside:
                raise ImageError(
                    f"{path} holds no {'photos' if len(suffixes) > 1 else '.carimg files'}"
                )
            found += [(str(p), p.relative_to(path)) for p in inside]
        else:
            found.append((name, Path(path.name)))
    return found


def within(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Files anywhere under a folder that have one of the suffixes, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not path.name.startswith("._")  # what macOS leaves beside files on other disks
        and not path.is_dir()
    )


def output_paths(
    found: list[tuple[str, Path]], output: str | None, many: bool, suffix: str
) -> list[str]:
    """Where the results of ``found`` go, which :func:`inputs` returned.

    ``output`` may be ``-``, a file, a folder (existing, ending in a separator, or needed because
    there are several inputs), or None for beside the source. ``suffix`` replaces the source's, and
    follows it where two would have the same name: a.jpg and a.heic become a.jpg.carimg and
    a.heic.carimg, whatever has been encoded before.
    """

    def named(ending: Callable[[Path], str]) -> list[str]:
        return [_output_path(s, r, output, many, ending(r)) for s, r in found]

    short = named(lambda relative: suffix)
    long = named(lambda relative: relative.suffix + suffix)
    alike: dict[str, list[str]] = {}
    for one, other in zip(short, long, strict=True):
        alike.setdefault(one, []).append(other)
    return [
        other if len(alike[one]) == len(set(alike[one])) > 1 else one
        for one, other in zip(short, long, strict=True)
    ]


def _output_path(source: str, relative: Path, output: str | None, many: bool, suffix: str) -> str:
    if output == "-" or (output is None and source == "-"):
        return "-"
    if output is None:
        return str(Path(source).with_suffix(suffix))
    if many or output.endswith(("/", os.sep)) or Path(output).is_dir():
        name = Path("photo") if source == "-" else relative
        return str(Path(output) / name.with_suffix(suffix))
    return output


def read_bytes(source: str) -> bytes:
    """A whole file, or standard input for ``-``.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {source}: {_reason(error)}") from error


def read_photo(source: str) -> pixels.Photo:
    """Open a photo in any format Pillow reads, or HEIC; 16-bit colour PNG keeps its 16 bits.

    Raises:
        ImageError: not a picture, damaged, of an unsupported mode, or a camera's raw data.
        LimitError: too many pixels.
        MissingDependencyError: HEIC, without the heif extra.
    """
    name = "standard input" if source == "-" else source
    if Path(source).suffix.lower() in _RAW:
        raise ImageError(f"{name} is a camera's raw data: develop it to TIFF, PNG or JPEG first")
    data = read_bytes(source)
    if not data:
        raise ImageError(f"{name} is empty")
    try:
        with _no_bomb_check(), _opened(data, name) as image:
            if image.width * image.height > codec.MAX_PIXELS:
                raise LimitError(
                    f"{name} has {image.width}×{image.height} pixels, more than "
                    f"{codec.MAX_PIXELS // 2**20} megapixels"
                )
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            plain = pixels.from_image(image)  # first: counting seeks, and may end at a broken one
            plain = dataclasses.replace(plain, count=_count(image))
            if not (image.format == "PNG" and data[24] == 16 and data[25] in (2, 6)):
                return plain
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture in a format that can be read: "
            "convert it to PNG, TIFF, JPEG or WebP first"
        ) from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    import imagecodecs

    try:
        exact = pixels.from_array(_upright(imagecodecs.png_decode(data), orientation))
    except Exception as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    return dataclasses.replace(plain, mode=exact.mode, colour=exact.colour, alpha=exact.alpha)


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        brands = data[8 : int.from_bytes(data[:4])]
        if data[4:8] != b"ftyp" or not any(brand in brands for brand in _HEIF):
            raise
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MissingDependencyError(
            f'{name} is HEIC: pip install "carcodec[heif]" reads it'
        ) from error
    # By itself: registered, it would change what every program's Image.open() does
    image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return image


def _count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # the first may be whole where a later one is not
        return 1


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels upright by their EXIF orientation, 1…8; others are left as they are."""
    if orientation in (5, 6, 7, 8):  # stored on its side
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


@contextlib.contextmanager
def _no_bomb_check() -> Iterator[None]:
    """Our own limit is checked instead of Pillow's, which stops at 179 megapixels."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def image_bytes(photo: pixels.Photo, suffix: str) -> bytes:
    """Encode a photo in the format its file extension says, with its metadata.

    16-bit colour stays so in PNG; other formats get 8 bits of it.

    Raises:
        OutputError: unknown extension, or a mode or size the format cannot hold.
    """
    suffix = suffix.lower()
    Image.init()
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        raise OutputError(
            f"cannot write pictures with the extension {suffix or '(none)'}: "
            "use .png, .jpg, .webp, .tif, .avif or another that Pillow writes"
        )
    if kind == "CARIMG":
        raise OutputError("the result is a full-size picture: choose an extension such as .png")
    options: dict[str, Any] = {}
    if photo.icc:
        options["icc_profile"] = photo.icc
    if photo.exif:
        options["exif"] = photo.exif
    if photo.xmp:
        options["xmp"] = photo.xmp
    if kind == "PNG":
        options["compress_level"] = 4  # Pillow's 6 takes twice as long for 3 % fewer bytes
        if photo.xmp:
            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode("utf-8", "replace"))
            options["pnginfo"] = info
        if photo.mode in ("RGB;16", "RGBA;16"):
            return _deep_png(photo, options)
    elif kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif kind == "WEBP":
        # of lossless WebP it is the effort: Pillow's 80 takes twice as long for 1 % fewer bytes
        options |= {"lossless": True, "quality": 20}
    elif kind == "TIFF" and photo.xmp:
        exif = Image.Exif()
        exif.load(photo.exif or b"")
        exif[700] = options.pop("xmp")
        options["exif"] = exif.tobytes()  # given the object, Pillow loses the inner folders
    buffer = io.BytesIO()
    image = pixels.to_image(photo)
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise OutputError(f"{kind} cannot hold this picture: {error}") from error
    return buffer.getvalue()


def _deep_png(photo: pixels.Photo, options: dict[str, Any]) -> bytes:
    """16-bit colour PNG: imagecodecs' writer takes no metadata and Pillow's no 16-bit colour, so
    the metadata chunks of a one-pixel PNG by Pillow go behind imagecodecs' header chunk.
    """
    import imagecodecs

    pixels_only = bytes(imagecodecs.png_encode(pixels.to_array(photo), level=3))
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG", **options)
    donor = buffer.getvalue()
    header_end = 8 + 12 + 13  # signature, chunk framing, IHDR
    metadata, at = b"", header_end
    while at < len(donor):
        end = at + 12 + int.from_bytes(donor[at : at + 4], "big")
        if donor[at + 4 : at + 8] in (b"iCCP", b"iTXt", b"eXIf"):
            metadata += donor[at:end]
        at = end
    return pixels_only[:header_end] + metadata + pixels_only[header_end:]


def write_bytes(target: str, data: bytes, overwrite: bool) -> None:
    """Write a file so that it appears whole or not at all; ``-`` is standard output.

    Raises:
        OutputError: it exists and ``overwrite`` is not set, or it cannot be written.
    """
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    check_output(target, overwrite)
    try:
        atomic.write(path, data)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {_reason(error)}") from error


def check_output(target: str, overwrite: bool) -> None:
    """Refuse early what :func:`write_bytes` would refuse late.

    Raises:
        OutputError: the target exists and ``overwrite`` is not set, or is a folder.
    """
    path = Path(target)
    if target == "-":
        return
    if path.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder")
    if path.exists() and not overwrite:
        raise OutputError(f"{target} exists already: add --overwrite to replace it")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

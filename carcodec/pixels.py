"""Pictures to planes and back: modes, bit depth, alpha, ICC, EXIF orientation, XMP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from carcodec.errors import ImageError

__all__ = [
    "Photo", "from_any", "from_array", "from_image", "to_array", "to_image", "without_maker_note",
]  # fmt: skip

Plane = NDArray[np.uint8] | NDArray[np.uint16]

# Tags that describe how a TIFF file is laid out, not the photo; they must not travel.
_TIFF_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 318, 319}
_TIFF_LAYOUT |= {320, 322, 323, 324, 325, 330, 338, 339, 347, 529, 530, 531, 532, 700, 34675}


@dataclass(frozen=True)
class Photo:
    """A photo as the codec sees it, upright.

    Attributes:
        mode: ``L, LA, RGB, RGBA, 1, I;16, RGB;16`` or ``RGBA;16``.
        colour: ``(H, W)`` grey or ``(H, W, 3)`` RGB; uint16 for the ``16`` modes, else uint8
            (mode ``1`` as 0 and 255).
        alpha: ``(H, W)`` uint8, present exactly where the mode has it; 255 is opaque.
        icc, exif, xmp: raw metadata, EXIF beginning with ``Exif\\0\\0`` and without orientation.
        count: how many pictures its file holds; this is the main one, or the first.
    """

    mode: str
    colour: Plane
    alpha: NDArray[np.uint8] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    count: int = 1


def from_any(photo: Image.Image | NDArray[Any] | Photo) -> Photo:
    """Whatever of the three it is, as a :class:`Photo`. Raises: as the other two."""
    if isinstance(photo, Image.Image):
        return from_image(photo)
    return photo if isinstance(photo, Photo) else from_array(photo)


def from_image(image: Image.Image) -> Photo:
    """Take a Pillow image apart.

    The EXIF orientation is applied to the pixels and taken out of the metadata. ``1``,
    ``L``, ``LA``, ``RGB``, ``RGBA`` and ``I;16`` keep their mode. Converted: ``P`` to RGB or
    RGBA (grey palettes too), ``CMYK`` to RGB (through its ICC profile where there is one),
    ``YCbCr``, ``LAB``, ``HSV`` and ``RGBX`` to RGB, ``La`` and ``RGBa`` to straight alpha,
    ``I`` to ``I;16`` where its values fit. A colour given as transparent becomes alpha.

    Raises:
        ImageError: unreadable pixels, or a mode that cannot be kept (``F``, negative ``I``).
    """
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:
        raise ImageError(f"the picture cannot be read: {error}") from error
    icc = upright.info.get("icc_profile") or None
    # Pillow's copy knows no EXIF that is not in info, and XMP that is not; TIFF has neither there.
    exif, xmp = _exif(image), _xmp(upright) or _xmp(image)
    image = upright
    if image.mode == "CMYK":
        image, icc = _cmyk_to_rgb(image, icc), None
    elif image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode in ("P", "PA"):
        has_alpha = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    elif image.mode in ("YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode in ("RGB", "L") and "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    data = np.asarray(image)
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        if data.min() < 0 or data.max() > 65535:
            raise ImageError(
                "32-bit integer pictures are only accepted with values from 0 to 65535"
            )
        mode, data = "I;16", data.astype(np.uint16)
    elif mode == "1":
        data = data.astype(np.uint8) * np.uint8(255)
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageError(
            f"pictures of mode {mode} are not supported: convert it to L, RGB or RGBA first"
        )
    if mode in ("LA", "RGBA"):
        alpha = np.ascontiguousarray(data[..., -1])
        colour = data[..., 0] if mode == "LA" else data[..., :3]
        return Photo(mode, np.ascontiguousarray(colour), alpha, icc, exif, xmp)
    return Photo(mode, data, None, icc, exif, xmp)


def from_array(array: NDArray[Any]) -> Photo:
    """Take a uint8 or uint16 array ``(H, W)``, ``(H, W, 1…4)`` as grey, grey+alpha, RGB, RGBA.

    The alpha of 16-bit arrays is reduced to 8 bits; 16-bit grey with alpha is refused.

    Raises:
        ImageError: another dtype, shape or an empty array.
    """
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"arrays must be uint8 or uint16, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 2, 3, 4) or array.size == 0:
        raise ImageError(
            f"arrays must be (H, W) or (H, W, 1 to 4) and not empty, not {array.shape}"
        )
    deep = array.dtype == np.uint16
    modes = ("I;16", None, "RGB;16", "RGBA;16") if deep else ("L", "LA", "RGB", "RGBA")
    mode = modes[channels - 1]
    if mode is None:
        raise ImageError("16-bit grey with alpha is not supported: use RGBA")
    if channels in (1, 3):
        return Photo(mode, np.ascontiguousarray(array))
    alpha = array[..., -1]
    if deep:
        alpha = (alpha.astype(np.uint32) * 255 + 32767) // 65535
    colour = array[..., 0] if channels == 2 else array[..., :3]
    return Photo(mode, np.ascontiguousarray(colour), np.ascontiguousarray(alpha, np.uint8))


def to_array(photo: Photo) -> NDArray[Any]:
    """The array :func:`from_array` takes; mode ``1`` as 0 and 255."""
    if photo.alpha is None:
        return photo.colour
    alpha: NDArray[Any] = photo.alpha
    if photo.colour.dtype == np.uint16:
        alpha = alpha.astype(np.uint16) * np.uint16(257)
    colour = photo.colour if photo.colour.ndim == 3 else photo.colour[..., None]
    return np.concatenate((colour, alpha[..., None]), -1)


def to_image(photo: Photo) -> Image.Image:
    """A Pillow image with its metadata in ``info``; Pillow has no 16-bit colour, it becomes 8."""
    if photo.mode == "1":
        image = Image.fromarray(photo.colour).point(lambda level: 255 * (level >= 128), "1")
    elif photo.mode in ("RGB;16", "RGBA;16"):
        eight = ((photo.colour.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        image = Image.fromarray(eight)
        if photo.alpha is not None:
            image.putalpha(Image.fromarray(photo.alpha))
    else:
        image = Image.fromarray(photo.colour)
        if photo.alpha is not None:
            image.putalpha(Image.fromarray(photo.alpha))
    for key, value in (("icc_profile", photo.icc), ("exif", photo.exif), ("xmp", photo.xmp)):
        if value:
            image.info[key] = value
    return image


@contextlib.contextmanager
def _copying_exif() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises what struct or its TIFF writer raise
        raise ImageError(f"the picture's EXIF data cannot be copied: {error}") from error


def _exif(image: Image.Image) -> bytes | None:
    if not len(image.getexif()):
        return None
    exif = Image.Exif()  # a copy: the caller's picture keeps its own
    with _copying_exif():
        exif.load(image.getexif().tobytes())
        for tag in _TIFF_LAYOUT | {ExifTags.Base.Orientation}:
            if tag in exif:
                del exif[tag]
        data = exif.tobytes()
    if not len(exif):
        return None
    return data if data.startswith(b"Exif\x00\x00") else b"Exif\x00\x00" + data


def without_maker_note(photo: Photo) -> Photo:
    """The photo without the maker's note in its EXIF (tag 37500); all other tags stay.

    Some cameras' take 15 kB even packed, a third of a small file, and their makers' programs alone
    read all of them.

    Raises:
        ImageError: the EXIF data cannot be written again.
    """
    if not photo.exif:
        return photo
    exif = Image.Exif()
    with _copying_exif():
        exif.load(photo.exif)
        inner = dict(exif.get_ifd(ExifTags.IFD.Exif))
        if inner.pop(ExifTags.Base.MakerNote, None) is None:
            return photo
        if interoperability := exif.get_ifd(ExifTags.IFD.Interop):
            inner[ExifTags.IFD.Interop] = dict(interoperability)
        exif[ExifTags.IFD.Exif] = inner
        return replace(photo, exif=exif.tobytes())


def _xmp(image: Image.Image) -> bytes | None:
    for key in ("xmp", "XML:com.adobe.xmp"):
        value = image.info.get(key)
        if value:
            return value.encode("utf-8") if isinstance(value, str) else bytes(value)
    tags = getattr(image, "tag_v2", {})
    value = tags.get(700) if tags else None
    return bytes(value) if value else None


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc:
        import io

        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")

"""Modes, metadata and orientation: what goes in comes out, or is refused in words."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

import carcodec
from carcodec import pixels
from carcodec.errors import ImageError

MODEL = "tiny-x2"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_modes_survive_a_round_trip(mode: str, photo: Image.Image) -> None:
    image = _in_mode(photo, mode)
    restored = carcodec.decode(carcodec.encode(image, model=MODEL).data)
    assert restored.mode == mode
    assert restored.size == image.size
    a, b = (np.asarray(i.convert("L") if mode == "1" else i, float) for i in (image, restored))
    peak = 65535 if mode == "I;16" else 255
    colours = slice(0, -1) if mode in ("LA", "RGBA") else slice(None)
    error = (a[..., colours] - b[..., colours]) if a.ndim == 3 else a - b
    assert 10 * np.log10(peak**2 / (error**2).mean()) > (8 if mode == "1" else 20)
    if mode in ("LA", "RGBA"):
        assert np.array_equal(a[..., -1], b[..., -1])


def _in_mode(photo: Image.Image, mode: str) -> Image.Image:
    if mode in ("LA", "RGBA"):
        image = photo.convert(mode)
        alpha = np.arange(photo.width * photo.height, dtype=np.uint32) * 7 % 256
        image.putalpha(Image.fromarray(alpha.astype(np.uint8).reshape(photo.height, -1)))
        return image
    if mode == "1":
        return photo.convert("1", dither=Image.Dither.NONE)
    if mode == "I;16":
        return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    return photo.convert(mode)


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB"), ("LAB", "RGB")],
)
def test_other_modes_are_converted(mode: str, becomes: str, photo: Image.Image) -> None:
    image = photo.convert(mode) if mode != "LAB" else Image.new("LAB", photo.size, (90, 128, 128))
    assert carcodec.decode(carcodec.encode(image, model=MODEL).data).mode == becomes


def test_transparent_palettes_and_colours_become_alpha(photo: Image.Image) -> None:
    palette = photo.convert("P")
    palette.info["transparency"] = 3
    keyed = photo.copy()
    keyed.putpixel((0, 0), (1, 2, 3))
    keyed.info["transparency"] = (1, 2, 3)
    for image in (palette, keyed):
        restored = carcodec.decode(carcodec.encode(image, model=MODEL).data)
        assert restored.mode == "RGBA"
        expected = np.asarray(image.convert("RGBA"))[..., 3]
        assert np.array_equal(np.asarray(restored)[..., 3], expected)


def test_i_becomes_i16_where_it_fits() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8) * 1000)
    assert pixels.from_image(image).mode == "I;16"
    for bad in (-1, 65536):
        with pytest.raises(ImageError, match="0 to 65535"):
            pixels.from_image(Image.fromarray(np.full((4, 4), bad, np.int32)))


def test_floats_are_refused_in_words() -> None:
    with pytest.raises(ImageError, match="mode F"):
        carcodec.encode(Image.new("F", (4, 4)), model=MODEL)
    with pytest.raises(ImageError, match="float64"):
        carcodec.encode(np.zeros((4, 4)), model=MODEL)
    with pytest.raises(ImageError, match=r"\(2, 2, 5\)"):
        carcodec.encode(np.zeros((2, 2, 5), np.uint8), model=MODEL)
    with pytest.raises(ImageError, match="not empty"):
        carcodec.encode(np.zeros((0, 2), np.uint8), model=MODEL)
    with pytest.raises(ImageError, match="16-bit grey"):
        carcodec.encode(np.zeros((2, 2, 2), np.uint16), model=MODEL)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_arrays_keep_shape_and_depth(dtype: type, channels: int, photo: Image.Image) -> None:
    source = np.asarray(photo.convert("L" if channels == 0 else "RGB" if channels == 3 else "RGBA"))
    source = source.astype(dtype) * dtype(257 if dtype is np.uint16 else 1)
    restored = carcodec.decode_array(carcodec.encode(source, model=MODEL).data)
    assert restored.dtype == dtype
    assert restored.shape == source.shape
    peak = np.iinfo(dtype).max
    assert 10 * np.log10(peak**2 / ((source - restored.astype(float)) ** 2).mean()) > 20


def test_sixteen_bits_are_more_than_eight(photo: Image.Image) -> None:
    source = np.asarray(photo).astype(np.uint16) * 257
    restored = carcodec.decode_array(carcodec.encode(source, model=MODEL).data)
    assert len(np.unique(restored)) > 2000


def test_opaque_alpha_costs_nothing(photo: Image.Image) -> None:
    plain = carcodec.encode(photo, model=MODEL).data
    opaque = carcodec.encode(photo.convert("RGBA"), model=MODEL).data
    assert len(opaque) == len(plain)
    assert np.asarray(carcodec.decode(opaque))[..., 3].min() == 255


def test_alpha_is_lossy_only_when_asked(taipei: Image.Image) -> None:
    image = taipei.crop((0, 0, 200, 150))
    image.putalpha(taipei.convert("L").crop((200, 300, 400, 450)))
    exact = carcodec.encode(image, model=MODEL).data
    lossy = carcodec.encode(image, model=MODEL, alpha_quality=30).data
    alpha = [
        np.asarray(i, float)[..., 3]
        for i in (image, carcodec.decode(exact), carcodec.decode(lossy))
    ]
    assert np.array_equal(alpha[0], alpha[1])
    assert 0 < np.abs(alpha[0] - alpha[2]).mean() < 20
    assert len(lossy) < len(exact)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_handled_once(orientation: int, photo: Image.Image) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Carcodec"
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as stored:
        restored = carcodec.decode(carcodec.encode(stored, model=MODEL).data)
        upright = ImageOps.exif_transpose(stored)
    assert restored.size == upright.size
    error = np.asarray(restored, float) - np.asarray(upright.convert("RGB"), float)
    assert (error**2).mean() < 650  # 20 dB: any wrong turn of this crop is far worse
    kept = restored.getexif()
    assert ExifTags.Base.Orientation not in kept
    assert kept[ExifTags.Base.Make] == "Carcodec"
    again = ImageOps.exif_transpose(restored)
    assert again.size == restored.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_metadata_survives_from_every_format(kind: str, photo: Image.Image) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>caf\xc3\xa9</a></x:xmpmeta>'
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A. Nonymous"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 200
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    options: dict[str, object] = {"icc_profile": icc, "exif": exif.tobytes()}
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["xmp"] = xmp
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"] = info
    if kind == "TIFF":
        exif[700] = xmp
        options["exif"] = exif.tobytes()  # given the object, Pillow loses the inner folders
    buffer = io.BytesIO()
    photo.save(buffer, kind, **options)
    with Image.open(buffer) as stored:
        restored = carcodec.decode(carcodec.encode(stored, model=MODEL).data)
    assert restored.info["icc_profile"] == icc
    assert restored.info["xmp"] == xmp
    kept = restored.getexif()
    assert kept[ExifTags.Base.Artist] == "A. Nonymous"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 200
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert 256 not in kept  # how a TIFF was laid out is not the photo's


def test_cmyk_goes_through_its_profile(photo: Image.Image) -> None:
    image = photo.convert("CMYK")
    image.info["icc_profile"] = b"not a profile"
    assert pixels.from_image(image).icc is None


@settings(max_examples=40)
@given(st.integers(1, 41), st.integers(1, 41), st.sampled_from(["L", "RGB", "RGBA", "1"]))
def test_any_size(width: int, height: int, mode: str) -> None:
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    encoded = carcodec.encode(image, model=MODEL)
    restored = carcodec.decode(encoded.data)
    assert restored.size == (width, height)
    assert restored.mode == mode
    small = carcodec.thumbnail(encoded.data)
    assert small.size == (-(-width // 2), -(-height // 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (3, 17), (255, 129)])
@pytest.mark.parametrize("model", ["car-x2", "car-x4"])
def test_any_size_with_the_shipped_models(
    size: tuple[int, int], model: str, taipei: Image.Image
) -> None:
    image = taipei.crop((300, 330, 300 + size[0], 330 + size[1]))
    restored = carcodec.decode(carcodec.encode(image, model=model).data)
    assert restored.size == size
    flat = Image.new("RGB", size, (200, 100, 50))
    error = np.asarray(carcodec.decode(carcodec.encode(flat, model=model).data), float)
    error = np.abs(error - [200, 100, 50])
    # the networks see zeros around the image: all of a tiny one is border
    assert error.max() <= (6 if min(size) > 16 else 12)
    assert error[24:-24, 24:-24].max(initial=0) <= 1


def test_only_the_makers_note_can_be_left_out(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Carcodec"
    inner = {
        ExifTags.Base.ExposureTime: 0.01,
        ExifTags.Base.MakerNote: bytes(range(256)) * 9,
        ExifTags.Base.LensModel: "50 mm",
        ExifTags.IFD.Interop: {1: "R98"},
    }
    exif[ExifTags.IFD.Exif] = inner
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    told_of = photo.copy()
    told_of.info["exif"] = exif.tobytes()
    whole = pixels.from_image(told_of)
    assert whole.exif is not None and len(whole.exif) > 256 * 9
    less = pixels.without_maker_note(whole)
    assert less.exif is not None and len(less.exif) < 300
    assert less.colour is whole.colour

    def told(data: bytes) -> tuple[dict[int, object], ...]:
        found = Image.Exif()
        found.load(data)
        kinds = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop
        parts = [dict(found)] + [dict(found.get_ifd(kind)) for kind in kinds]
        # but for where these lie
        return tuple({k: v for k, v in part.items() if k not in kinds} for part in parts)

    before, after = told(whole.exif), told(less.exif)
    assert before[1].pop(ExifTags.Base.MakerNote) == inner[ExifTags.Base.MakerNote]
    assert after == before
    assert before[1][ExifTags.Base.LensModel] == "50 mm" and before[3] == {1: "R98"}
    assert pixels.without_maker_note(less) is less
    without = pixels.from_array(np.zeros((4, 4), np.uint8))
    assert pixels.without_maker_note(without) is without
    with pytest.raises(ImageError, match="EXIF data cannot be copied"):
        pixels.without_maker_note(replace(whole, exif=b"Exif\x00\x00II*\x00"))

"""What half the size would lose, text above all, is recognised and stored at full size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw, ImageFont, ImageOps

import carcodec
from carcodec import container, metrics, pixels
from carcodec.detail import needs_full_size

PHOTOS = sorted((Path(__file__).parent / "photos").glob("*.png"))
ENGINE = {"engine": "onnxruntime"}


@pytest.fixture(scope="module")
def screenshot() -> Image.Image:
    """A window with a menu and text of 9 to 20 pixels."""
    image = Image.new("RGB", (480, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 480, 24), fill=(48, 60, 110))
    draw.text((8, 6), "File   Edit   View   Help", fill="white", font=ImageFont.load_default(11))
    for i, size in enumerate((9, 10, 11, 12, 14, 16, 20)):
        font = ImageFont.load_default(size)
        draw.text((10, 36 + 34 * i), f"{size} The quick brown fox, 0123456789", "black", font)
    draw.ellipse((380, 200, 460, 280), fill=(200, 40, 40), outline="black")
    return image


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.stem)
def test_half_the_size_serves_photos(path: Path) -> None:
    with Image.open(path) as image:
        photo = image.convert("RGB")
    assert not needs_full_size(np.asarray(photo))
    assert not needs_full_size(np.asarray(_jpeg(photo)))
    assert not needs_full_size(np.asarray(photo.convert("L")))
    blurred = photo.resize((photo.width // 8, photo.height // 8)).resize(photo.size)
    assert not needs_full_size(np.asarray(blurred))


def test_screenshots_need_full_size_in_whatever_form(screenshot: Image.Image) -> None:
    colour = np.asarray(screenshot)
    assert needs_full_size(colour)
    assert needs_full_size(colour.astype(np.uint16) * 257)
    assert needs_full_size(np.asarray(_jpeg(screenshot)))
    assert needs_full_size(np.asarray(ImageOps.invert(screenshot)))
    for mode in ("L", "1", "P", "RGBA"):
        assert needs_full_size(pixels.from_image(screenshot.convert(mode)).colour), mode
    # the bottom of a large one as well
    tall = Image.new("RGB", (480, 900), "white")
    tall.paste(screenshot, (0, 600))
    assert needs_full_size(np.asarray(tall))


def test_patterns_of_two_pixels_need_full_size(taipei: Image.Image) -> None:
    photo = np.asarray(taipei)[:300, :300]
    lattice = (np.indices((300, 300)).sum(0) % 4 < 2)[..., None]
    assert needs_full_size(np.where(lattice, photo, 255 - photo // 2))
    coarse = (np.indices((300, 300)).sum(0) % 64 < 32)[..., None]
    assert not needs_full_size(np.where(coarse, photo, 255 - photo // 2))


@given(
    hnp.arrays(
        st.sampled_from((np.uint8, np.uint16)),
        st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
            lambda s: st.sampled_from((s, (*s, 3)))
        ),
        fill=st.integers(0, 255),
    )
)
def test_every_picture_has_an_answer(colour: pixels.Plane) -> None:
    assert needs_full_size(colour) in (True, False)
    assert not needs_full_size(np.full_like(colour, 7))


def test_a_screenshot_keeps_its_text_at_every_quality(screenshot: Image.Image) -> None:
    def encoded(**options: object) -> tuple[int, int, float]:
        data = carcodec.encode(screenshot, **options, **ENGINE).data  # type: ignore[arg-type]
        restored = np.asarray(carcodec.decode(data, **ENGINE))
        scale = container.read_header(data).scale
        return scale, len(data), metrics.psnr(np.asarray(screenshot), restored)

    scale, size, psnr = encoded()
    half, small, lost = encoded(scale=2, quality=48)  # what photos get; and asked for, it is done
    assert (scale, half) == (1, 2)
    assert psnr > 37 > 29 > lost
    assert size < 2 * small
    for quality, least in ((20, 30), (40, 34)):
        scale, size, psnr = encoded(quality=quality)
        assert scale == 1
        assert psnr > least
    assert encoded(storage_codec="jpeg2000")[0] == 1


def test_where_no_model_has_full_size_a_smaller_one_serves(screenshot: Image.Image) -> None:
    encoded = carcodec.encode(screenshot, storage_codec="webp", quality=50, **ENGINE)
    assert encoded.header.scale == 2


def test_the_log_says_why(screenshot: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "carcodec")
    for options, said in (({}, True), ({"quality": 90}, False), ({"scale": 2}, False)):
        caplog.clear()
        carcodec.encode(screenshot, **options, **ENGINE)  # type: ignore[arg-type]
        assert ("half the size would lose this picture" in caplog.text) == said

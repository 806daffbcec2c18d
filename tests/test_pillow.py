"""The Pillow plugin: lazy, thumbnails without a network, and a good guest."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import carcodec
from carcodec import codec, container
from carcodec.errors import CarcodecError
from carcodec.plugins import autoload

MODEL = "tiny-x2"


@pytest.fixture
def path(tmp_path: Path, photo: Image.Image) -> Path:
    exif = Image.Exif()
    exif[0x010F] = "Carcodec"
    photo.save(tmp_path / "photo.carimg", model=MODEL, exif=exif, icc_profile=b"icc", xmp=b"<x/>")
    return tmp_path / "photo.carimg"


def test_open_tells_everything_from_the_header(
    path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    monkeypatch.setattr(codec, "decode", None)  # calling it would fail
    with Image.open(path) as image:
        assert (image.format, image.size, image.mode) == ("CARIMG", photo.size, "RGB")
        assert image.get_format_mimetype() == "image/x-carimg"
        assert image.info["model"] == MODEL
        assert image.info["scale"] == 2
        assert image.info["storage"] == "jpegxl"
        assert image.info["quality"] is None
        assert image.info["icc_profile"] == b"icc"
        assert image.info["xmp"] == b"<x/>"
        assert image.getexif()[0x010F] == "Carcodec"


def test_load_decodes(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert np.array_equal(image, carcodec.decode(path.read_bytes()))


def test_programs_choose_what_restores(
    taipei: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "photo.carimg"
    taipei.crop((240, 320, 336, 400)).save(target)
    for model in ("", "fast"):
        monkeypatch.setattr(carcodec.plugins.pillow, "DECODE_MODEL", model)
        with Image.open(target) as opened:
            assert np.array_equal(opened, carcodec.decode(target.read_bytes(), model=model))
    monkeypatch.setattr(carcodec.plugins.pillow, "DECODE_MODEL", "tad-grey")
    with Image.open(target) as opened, pytest.raises(OSError, match=r"tad-grey version \d is not"):
        opened.load()


def test_thumbnail_runs_no_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "decode", None)
    with Image.open(path) as image:
        image.thumbnail((40, 40))
        assert max(image.size) == 40
    with Image.open(path) as image:
        assert image.draft(None, (48, 32)) is not None
        assert image.size == (48, 32)
        assert np.array_equal(image, carcodec.thumbnail(path.read_bytes()))


def test_a_large_photos_small_thumbnail_comes_from_its_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image
) -> None:
    monkeypatch.setattr(codec, "PREVIEW_FROM", 1)
    monkeypatch.setattr(codec, "PREVIEW_SIDE", 30)
    monkeypatch.setattr(codec, "PREVIEW_SHARE", 1)
    photo.save(tmp_path / "x.carimg", model=MODEL)
    monkeypatch.setattr(codec, "decode", None)
    monkeypatch.setattr(codec, "stored_image", None)
    with Image.open(tmp_path / "x.carimg") as image:
        image.thumbnail((24, 24))
        assert image.size == (24, 16)


def test_larger_drafts_change_nothing(path: Path, photo: Image.Image) -> None:
    with Image.open(path) as image:
        assert image.draft(None, (49, 32)) is None
        assert image.size == photo.size
        image.load()
        assert image.draft(None, (10, 10)) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_every_mode_opens_and_thumbnails(mode: str, photo: Image.Image, tmp_path: Path) -> None:
    source = photo.convert(mode) if mode != "I;16" else Image.new("I;16", photo.size, 5000)
    if mode.endswith("A"):
        source.putalpha(100)
    path = tmp_path / "x.carimg"
    source.save(path, model=MODEL)
    with Image.open(path) as image:
        assert image.mode == mode
        image.load()
        assert image.mode == mode
    with Image.open(path) as image:
        image.thumbnail((20, 20))
        assert image.size == (20, 13)


def test_save_takes_options(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "x.carimg"
    photo.save(path, model="car-x4", storage="webp", quality=60)
    header = container.read_header(path.read_bytes())
    assert (header.model, header.storage, header.quality) == ("car-x4", 6, 60)
    with pytest.raises(OSError, match="unknown storage"):
        photo.save(io.BytesIO(), "CARIMG", storage="gif", model=MODEL)


def test_exif_orientation_is_turned_once(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "x.carimg", model=MODEL, exif=exif)
    with Image.open(tmp_path / "x.carimg") as image:
        assert image.size == (photo.height, photo.width)
        assert 0x0112 not in image.getexif()


def test_save_from_a_file_keeps_its_metadata(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Carcodec"
    photo.save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        image.save(tmp_path / "x.carimg", model=MODEL)
    with Image.open(tmp_path / "x.carimg") as image:
        assert image.getexif()[0x010F] == "Carcodec"


def test_verify_finds_damage(path: Path) -> None:
    with Image.open(path) as image:
        image.verify()
    file = container.read(path.read_bytes())
    damaged = container.write(container.Carimg(file.header, file.lr[: len(file.lr) // 2]))
    with Image.open(io.BytesIO(damaged)) as image, pytest.raises(OSError, match="JPEG XL"):
        image.verify()


def test_damaged_files_let_pillow_try_the_next(path: Path) -> None:
    data = path.read_bytes()
    for damaged in (data[:40], data[:-1], data[:30] + b"x" + data[31:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(damaged))


def test_a_missing_model_is_told_on_load(path: Path) -> None:
    data = path.read_bytes()
    file = container.read(data)
    import dataclasses

    header = dataclasses.replace(file.header, model_version=9)
    with Image.open(io.BytesIO(container.write(dataclasses.replace(file, header=header)))) as image:
        with pytest.raises(OSError, match="tiny-x2 version 9"):
            image.load()
        image.thumbnail((30, 30))
        assert image.size == (30, 20)


def test_pillows_bomb_check_sees_the_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_reading_another_format_is_untouched(photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    with Image.open(buffer) as image:
        assert image.format == "PNG"


SCRIPT = """
import sys
from PIL import Image
assert "carcodec" not in sys.modules
with Image.open(sys.argv[1]) as image:
    assert image.format == "CARIMG", image.format
    assert image.size == (96, 64)
"""


def test_autoload_is_one_line_that_can_be_taken_back(tmp_path: Path, path: Path) -> None:
    assert autoload.switch("status", tmp_path) == "off"
    assert autoload.switch("on", tmp_path).startswith("on")
    line = (tmp_path / "carcodec-pillow.pth").read_text()
    assert line.count("\n") == 1
    code = f"import site; site.addsitedir({str(tmp_path)!r})\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert autoload.switch("off", tmp_path).startswith("off")
    assert autoload.switch("off", tmp_path).startswith("off")
    assert not list(tmp_path.glob("*.pth"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "UnidentifiedImageError" in done.stderr
    with pytest.raises(CarcodecError, match="cannot change"):
        autoload.switch("on", tmp_path / "nowhere")


def test_no_warning_on_register() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from carcodec.plugins import pillow

        pillow.register()

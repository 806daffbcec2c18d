"""The command line as a user meets it: real processes' arguments, files, streams, exit codes."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from carcodec import app, codec, container, files, storage
from carcodec.plugins import autoload

HERE = Path(__file__).parent
FAST = ["--model", "tiny-x2", "--engine", "onnxruntime"]


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch | None = None) -> int:
    """``carcodec …`` in this process; returns the exit code."""
    before = sys.argv
    sys.argv = ["carcodec", *map(str, arguments)]
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def folder(tmp_path: Path, photo: Image.Image) -> Path:
    photo.save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    photo.crop((0, 0, 31, 20)).save(tmp_path / "sub" / "b.jpg")
    (tmp_path / "notes.txt").write_text("not a photo")
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    return text


def test_one_photo_there_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", folder / "a.png", *FAST) == 0
    summary = error_of(capsys)
    assert "96×64 RGB" in summary
    assert "bpp" in summary
    assert run("decode", folder / "a.carimg", "-o", folder / "back.png") == 0
    with Image.open(folder / "back.png") as image:
        assert image.size == (96, 64)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "avif", "bmp", "jp2", "ppm"])
def test_decode_writes_what_the_extension_says(folder: Path, extension: str) -> None:
    run("encode", folder / "a.png", *FAST, "-q")
    target = folder / f"back.{extension}"
    assert run("decode", folder / "a.carimg", "-o", target, "-q") == 0
    with Image.open(target) as image:
        assert image.size == (96, 64)
        assert extension[:2] in (image.format or "").lower() or image.format in (
            "JPEG", "TIFF", "JPEG2000",
        )  # fmt: skip


def test_metadata_reaches_the_decoded_file(folder: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Carcodec"
    exif[0x0112] = 8
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    photo.save(folder / "m.jpg", exif=exif, icc_profile=b"profile", xmp=xmp, quality=95)
    assert run("encode", folder / "m.jpg", *FAST, "-q") == 0
    for extension in ("png", "jpg", "webp", "tif", "avif"):
        target = folder / f"back.{extension}"
        assert run("decode", folder / "m.carimg", "-o", target, "-q") == 0
        with Image.open(target) as image:
            assert image.size == (64, 96), extension
            assert image.getexif()[0x010F] == "Carcodec", extension
            assert 0x0112 not in image.getexif(), extension
            assert image.info["icc_profile"] == b"profile", extension
            found = image.info.get("xmp") or image.getexif().get(700)
            assert bytes(found) == xmp, extension


def test_what_a_photo_says_of_its_place_can_be_left_out(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Carcodec" * 9
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    photo.save(folder / "m.jpg", exif=exif, icc_profile=b"profile" * 9, xmp=b"<x/>" * 9)
    sizes = {}
    for option in ((), ("--strip",)):
        assert run("encode", folder / "m.jpg", *FAST, *option, "--overwrite", "-q") == 0
        assert run("info", folder / "m.carimg", "--json") == 0
        (entry,) = json.loads(capsys.readouterr().out)
        kept = (entry["exif_bytes"] > 0, entry["xmp_bytes"] > 0, entry["icc_bytes"] > 0)
        assert kept == (not option, not option, True)
        assert 0 < entry["metadata_bytes"] < 100
        sizes[option] = entry["metadata_bytes"]
        with Image.open(folder / "m.carimg") as image:
            assert len(image.getexif()) == (0 if option else 2)
            assert image.info["icc_profile"] == b"profile" * 9
    assert sizes["--strip",] < sizes[()]


def test_only_the_makers_note_is_left_out(folder: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N"}  # GPS
    exif[0x8769] = {0x927C: bytes(range(99))}  # the maker's note
    photo.save(folder / "m.jpg", exif=exif.tobytes())
    assert run("encode", folder / "m.jpg", *FAST, "--strip-maker-note", "-q") == 0
    with Image.open(folder / "m.carimg") as image:
        assert image.getexif().get_ifd(0x8825) == {1: "N"}
        assert image.getexif().get_ifd(0x8769) == {}


def test_heic_comes_in_upright_with_its_metadata(
    folder: Path,
    photo: Image.Image,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pillow_heif

    exif = Image.Exif()
    exif[0x010F] = "Carcodec"
    exif[0x0112] = 8  # becomes HEIF's own rotation
    image = photo.copy()
    image.info["icc_profile"] = b"profile"
    heif = pillow_heif.from_pillow(image)
    heif.add_from_pillow(photo.crop((0, 0, 32, 32)))
    heif.save(folder / "h.HEIC", quality=95, chroma=444, exif=exif.tobytes(), save_all=True)
    taken = files.read_photo(str(folder / "h.HEIC"))
    upright = np.asarray(photo.rotate(90, expand=True))
    assert np.abs(taken.colour.astype(int) - upright).mean() < 5
    assert run("encode", folder / "h.HEIC", *FAST) == 0
    assert "64×96 RGB (1 of 2 pictures in it)" in " ".join(error_of(capsys).split())
    assert run("decode", folder / "h.carimg", "-o", folder / "h.jpg", "-q") == 0
    with Image.open(folder / "h.jpg") as back:
        assert back.size == (64, 96)
        assert back.getexif()[0x010F] == "Carcodec"
        assert 0x0112 not in back.getexif()
        assert back.info["icc_profile"] == b"profile"

    (folder / "cut.heic").write_bytes((folder / "h.HEIC").read_bytes()[:900])
    assert run("encode", folder / "cut.heic", *FAST) == 1
    assert "cut.heic" in error_of(capsys)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert run("encode", folder, "-o", folder / "out", *FAST) == 1
    assert 'pip install "carcodec[heif]"' in " ".join(error_of(capsys).split())
    assert (folder / "out" / "a.carimg").exists()


def test_more_pictures_than_one_in_a_file_are_counted(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(folder / "a.gif", save_all=True, append_images=[photo.rotate(180)])
    assert run("encode", folder / "a.gif", "-o", folder / "gif.carimg", *FAST) == 0
    assert "RGB (1 of 2 pictures in it)" in " ".join(error_of(capsys).split())


def test_the_thumbnail_in_raw_data_is_not_taken_for_the_photo(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(folder / "a.tif")
    (folder / "a.tif").rename(folder / "raw.NEF")
    assert run("encode", folder / "raw.NEF", *FAST) == 1
    assert "develop it" in error_of(capsys)


def test_sixteen_bit_png_stays_sixteen_bit(folder: Path, photo: Image.Image) -> None:
    import imagecodecs

    deep = np.asarray(photo).astype(np.uint16) * 257
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    assert run("encode", folder / "deep.png", *FAST, "-q") == 0
    assert run("decode", folder / "deep.carimg", "-o", folder / "back.png", "-q") == 0
    back = imagecodecs.png_decode((folder / "back.png").read_bytes())
    assert back.dtype == np.uint16
    assert len(np.unique(back)) > 2000


def test_targets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "t.carimg"
    where = (folder / "a.png", "-o", out, *FAST, "--overwrite")
    assert run("encode", *where, "--max-bytes", "1500") == 0
    assert 1400 < out.stat().st_size <= 1500
    assert run("encode", *where, "--target-bpp", "1.5", "--storage", "jpeg2000") == 0
    assert 1.4 < 8 * out.stat().st_size / (96 * 64) <= 1.5
    assert run("encode", *where, "--target-psnr", "22", "--check") == 0
    assert run("encode", *where, "--target-ssim", "0.5") == 0
    capsys.readouterr()
    assert run("encode", *where, "--max-bytes", "20") == 1
    assert "the smallest is" in " ".join(capsys.readouterr().err.split())
    assert run("encode", *where, "--max-bytes", "2000", "--quality", "4") == 2
    assert "exclude each other" in " ".join(capsys.readouterr().err.split())
    assert run("encode", *where, "--target-psnr", "22", "--storage", "png") == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_png_is_turned_upright_and_keeps_its_metadata(
    orientation: int, folder: Path, photo: Image.Image
) -> None:
    import imagecodecs

    exif = Image.Exif()
    exif[0x010F] = "Carcodec"
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif, icc_profile=b"profile")
    small = buffer.getvalue()
    metadata = small[33 : small.index(b"IDAT") - 4]  # between IHDR and the pixels
    png = imagecodecs.png_encode(np.asarray(photo).astype(np.uint16) * 257)
    (folder / "deep.png").write_bytes(png[:33] + metadata + png[33:])
    taken = files.read_photo(str(folder / "deep.png"))
    assert taken.colour.dtype == np.uint16
    assert np.array_equal(taken.colour // 257, ImageOps.exif_transpose(Image.open(buffer)))
    back = files.image_bytes(taken, ".png")
    assert np.array_equal(imagecodecs.png_decode(back), taken.colour)
    with Image.open(io.BytesIO(back)) as image:
        image.load()
        assert image.getexif()[0x010F] == "Carcodec"
        assert 0x0112 not in image.getexif()
        assert image.info["icc_profile"] == b"profile"


def test_folders_keep_their_shape(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "._a.png").write_bytes(b"\0\5\x16\7")
    (folder / "album.jpg").mkdir()
    assert run("encode", folder, "-o", out, *FAST, "-q") == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.carimg")) == [
        "a.carimg", "sub/b.carimg",
    ]  # fmt: skip
    back = tmp_path / "back"
    assert run("decode", out, "-o", back, "--format", "webp", "-q") == 0
    assert sorted(p.name for p in back.rglob("*.webp")) == ["a.webp", "b.webp"]
    thumbs = tmp_path / "thumbs"
    assert run("thumbnail", out, "-o", thumbs, "--size", "16", "-q") == 0
    for path in thumbs.rglob("*.png"):
        with Image.open(path) as image:
            assert max(image.size) == 16


def test_a_folder_begun_is_gone_on_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("encode", folder, "-o", out, *FAST) == 0
    assert re.search(r"^2 done; [\d.]+ kB → [\d.]+ kB, 0:\d\d minutes", error_of(capsys), re.M)
    (out / "sub" / "b.carimg").unlink()
    (folder / "broken.png").write_bytes(b"")
    before = (out / "a.carimg").stat()
    assert run("encode", folder, "-o", out, *FAST, "--skip-existing") == 1
    said = error_of(capsys)
    assert "1 done, 1 there already, 1 failed" in said
    assert "a.png" not in said
    assert (out / "sub" / "b.carimg").exists()
    assert (out / "a.carimg").stat().st_mtime_ns == before.st_mtime_ns
    assert run("encode", folder, "-o", out, *FAST, "-q", "--skip-existing", "--overwrite") == 2
    assert "exclude each other" in " ".join(error_of(capsys).split())
    for back in (1, 2):  # nothing to do is no failure
        command = "decode", out, "-o", tmp_path / "back", "--skip-existing"
        assert run(*command) == 0
        assert ("2 done" if back == 1 else "0 done, 2 there already") in error_of(capsys)


@pytest.mark.parametrize("name", ["png", "jpegxl", "jpeg2000", "avif", "webp"])
def test_the_small_image_comes_out_as_it_was_stored(
    name: str, folder: Path, tmp_path: Path
) -> None:
    file, whole = tmp_path / "a.carimg", storage.by_name(name)
    assert run("encode", folder / "a.png", "-o", file, *FAST, "--storage", name, "-q") == 0
    target = tmp_path / f"small{whole.extension}"
    assert run("thumbnail", file, "-o", target) == 0
    data = target.read_bytes()
    stored = container.read(file.read_bytes())
    if name != "avif":
        assert data == stored.lr
    decode = {"jpegxl": imagecodecs.jpegxl_decode, "jpeg2000": imagecodecs.jpeg2k_decode}
    if name in decode:
        found = decode[name](data)
    else:
        with Image.open(target) as image:
            found = np.asarray(image.convert("RGB"))
    assert np.array_equal(found, codec.stored_image(stored))
    # of another size, or beside a profile, it is coded anew
    assert run("thumbnail", file, "-o", tmp_path / "b.webp", "--size", "20", "-q") == 0
    with Image.open(tmp_path / "b.webp") as image:
        assert max(image.size) == 20


def test_one_bad_input_does_not_stop_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    assert run("encode", folder / "bad.png", folder / "a.png", "-o", folder / "out", *FAST) == 1
    text = error_of(capsys)
    assert "bad.png" in text
    assert (folder / "out" / "a.carimg").exists()
    assert not (folder / "out" / "bad.carimg").exists()


def test_existing_files_are_kept_unless_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.carimg").write_bytes(b"precious")
    assert run("encode", folder / "a.png", *FAST) == 1
    assert "--overwrite" in error_of(capsys)
    assert (folder / "a.carimg").read_bytes() == b"precious"
    assert run("encode", folder / "a.png", *FAST, "--overwrite", "-q") == 0
    assert (folder / "a.carimg").read_bytes() != b"precious"


def test_two_inputs_of_one_name_do_not_overwrite_each_other(
    folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(folder / "a.webp", lossless=True)
    out, back = folder / "out", folder / "back"
    assert run("encode", folder / "a.png", folder / "a.webp", "-o", out, *FAST) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png.carimg", "a.webp.carimg"]
    assert run("encode", folder, "-o", out, "--skip-existing", *FAST) == 0
    assert "2 there already" in error_of(capsys)
    assert run("decode", out, "-o", back, "-q") == 0
    assert {"a.png.png", "a.webp.png"} < {p.name for p in back.rglob("*.png")}
    shutil.copy(folder / "a.png", folder / "sub" / "a.png")
    several = folder / "a.png", folder / "sub" / "a.png"
    assert run("encode", *several, "-o", out, *FAST, "--overwrite") == 1
    assert f"is the result of {several[0]}: give one of them" in error_of(capsys)


def test_streams(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": "", "CARCODEC_MODELS": str(HERE / "models")}
    command = [sys.executable, str(HERE.parent / "cli.py")]
    encoded = subprocess.run(
        [*command, "encode", "-", "-o", "-", *FAST],
        input=(folder / "a.png").read_bytes(), capture_output=True, check=True, env=environment,
    ).stdout  # fmt: skip
    assert encoded.startswith(container.SIGNATURE)
    decoded = subprocess.run(
        [*command, "decode", "-", "--format", "jpg", "-q"],
        input=encoded, capture_output=True, check=True, env=environment,
    )  # fmt: skip
    assert decoded.stderr == b""
    with Image.open(io.BytesIO(decoded.stdout)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))


def test_check_reports_quality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", folder / "a.png", "--check", *FAST) == 0
    text = error_of(capsys)
    psnr = float(text.split("PSNR ")[1].split(" dB")[0])
    assert 18 < psnr < 40
    assert 0.3 < float(text.split("SSIM ")[1]) < 1


def test_info_json_and_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("encode", folder / "a.png", *FAST, "--storage", "webp", "--quality", "60", "-q")
    assert run("info", "--json", folder / "a.carimg") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["bytes"] == (folder / "a.carimg").stat().st_size
    assert (entry["width"], entry["height"], entry["scale"]) == (96, 64, 2)
    assert (entry["storage"], entry["quality"], entry["model"]) == ("webp", 60, "tiny-x2")
    assert run("info", folder / "a.carimg") == 0
    assert "tiny-x2" in capsys.readouterr().out
    run("encode", folder / "a.png", *FAST, "--lossless", "-q", "-o", folder / "exact.carimg")
    assert run("info", folder / "exact.carimg") == 0
    table = capsys.readouterr().out
    assert "lossless" in table and "yes" in table
    assert "None" not in table and "True" not in table


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("encode", folder / "a.png", *FAST, "-q")
    assert run("verify", folder / "a.carimg") == 0
    assert "sound" in error_of(capsys)
    data = bytearray((folder / "a.carimg").read_bytes())
    data[200] ^= 4
    (folder / "damaged.carimg").write_bytes(data)
    assert run("verify", folder / "a.carimg", folder / "damaged.carimg") == 1
    assert "checksum" in error_of(capsys)


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "list", "--json") == 0
    names = {card["name"] for card in json.loads(capsys.readouterr().out)}
    assert {"car-x2", "car-x4", "tiny-x2"} <= names
    assert run("models", "show", "car-x4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["scale"] == 4
    assert run("models", "show", "car-x4") == 0
    shown = capsys.readouterr().out
    assert "W. Sun and Z. Chen" in shown and "1,501 photographic tiles" in shown
    assert "33.88" in shown  # published, beside ours
    assert run("models", "show", "car-x2-avif") == 0
    assert "bpp" in capsys.readouterr().out
    assert run("models", "list") == 0
    newest = capsys.readouterr().out
    assert newest.count("│ car-x2-avif ") == 1
    assert run("models", "list", "--all") == 0
    assert capsys.readouterr().out.count("│ car-x2-avif ") > 1
    assert run("models", "show", "nope") == 1
    assert "installed: " in error_of(capsys)


def test_square_brackets_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would take them for its markup: names of extras, of photos, and defaults in the help."""
    assert run("engine", "list") == 0
    assert 'pip install "carcodec[openvino]"' in capsys.readouterr().out
    shutil.copy(folder / "a.png", folder / "a[bold].png")
    assert run("encode", folder / "a[bold].png", *FAST) == 0
    assert "a[bold].png → " in error_of(capsys)
    assert run("info", folder / "a[bold].carimg") == 0
    assert "a[bold].carimg" in capsys.readouterr().out
    assert run("encode", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: (beside the input)]" in shown


def test_scale_picks_a_model(folder: Path) -> None:
    for options, model in (
        (["--scale", "4"], "car-x4-avif"),
        (["--scale", "4", "--lossless"], "car-x4"),
        (["--scale", "3"], "car-x3-avif"),
        (["--scale", "3", "--lossless"], "rrnet-x3"),
        (["--scale", "auto", "--storage", "auto", "--quality", "100"], "car-x1-avif"),
        (["--storage", "jpeg2000", "--quality", "0"], "car-x2-jpeg2000"),
        (["--storage", "png"], "tad-x2-lossless"),
        (["--storage", "webp", "--quality", "80"], "car-x2"),
        ([], "car-x2-avif"),
    ):
        assert run("encode", folder / "a.png", "--overwrite", "-q", *options) == 0
        assert container.read_header((folder / "a.carimg").read_bytes()).model == model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "7"], "no installed model has scale 7"),
        (["--scale", "2", "--model", "car-x2"], "exclude each other"),
        (["--lossless", "--quality", "5"], "exclude each other"),
        (["--storage", "png", "--quality", "5"], "lossless only"),
        (["--quality", "101"], "less than or equal to 100"),
        (["--threads", "-1"], "greater than or equal to 0"),
        (["--effort", "10"], "effort"),
        (["--scale", "big"], "no installed model has scale big"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_wrong_calls_exit_with_2(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", folder / "a.png", *arguments) == 2
    assert words in " ".join(error_of(capsys).replace("│", " ").split())
    assert not (folder / "a.carimg").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "nowhere.png"], "nowhere.png: no such file"),
        (["encode", "empty.png"], "empty.png is empty"),
        (["encode", "notes.txt"], "not a picture"),
        (["encode", "a.png", "--storage", "gif"], "unknown storage codec 'gif'"),
        (["encode", "a.png", "--model", "nope"], "nope is not installed"),
        (["encode", "a.png", "--engine", "abacus"], "unknown engine 'abacus'"),
        (["encode", "a.png", "-o", "notes.txt/x.carimg"], "cannot write"),
        (["encode", "emptyfolder"], "holds no photos"),
        (["decode", "a.png"], "signature is missing"),
        (["decode", "empty.png"], "signature is missing"),
        (["decode", "sub"], "holds no .carimg"),
        (["decode", "ok.carimg", "-o", "x.xyz"], "extension .xyz"),
        (["decode", "ok.carimg", "-o", "x.carimg"], "full-size picture"),
        (["decode", "rgba.carimg", "-o", "x.jpg"], "JPEG cannot hold"),
        (["decode", "ok.carimg", "--region", "0,0,9,999"], "ok.carimg: the region 0,0,9,999"),
        (["decode", "ok.carimg", "--model", "car-x3"], "ok.carimg: car-x3 version"),
        (["decode", "ok.carimg", "--self-ensemble"], "ok.carimg: the small image of tiny-x2"),
        (["info", "a.png"], "signature is missing"),
        (["thumbnail", "cut.carimg"], "cut.carimg: the file is cut off"),
        (["train", "nope", "--data", "."], "cannot read the recipe"),
        (["export", "nope.pt", "-o", "x"], "no checkpoint"),
    ],
)
def test_failures_exit_with_1_and_one_sentence(
    folder: Path,
    photo: Image.Image,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "emptyfolder").mkdir()
    ok = codec.encode(photo, model="tiny-x2").data
    (folder / "ok.carimg").write_bytes(ok)
    (folder / "cut.carimg").write_bytes(ok[:-5])
    clear = photo.copy()
    clear.putalpha(9)
    (folder / "rgba.carimg").write_bytes(codec.encode(clear, model="tiny-x2").data)
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert run(*arguments) == 1
    text = error_of(capsys)
    assert words in text
    assert text.startswith("carcodec: ")
    assert "\n" not in text
    assert sorted(folder.rglob("*")) == before


def test_a_region_of_a_photo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", folder / "a.png", *FAST) == 0
    engine = ["--engine", "onnxruntime:fp32"]
    assert run("decode", folder / "a.carimg", "-o", folder / "whole.png", *engine) == 0
    region = ["--region", "10, 8,31,29", "-o", folder / "part.png"]
    assert run("decode", folder / "a.carimg", *region, *engine) == 0
    assert "21×21 RGB" in error_of(capsys)
    with Image.open(folder / "whole.png") as whole, Image.open(folder / "part.png") as part:
        cut = np.asarray(whole, int)[8:29, 10:31]
        assert np.abs(cut - np.asarray(part)).max() <= 1
    for wrong in ("1,2,3", "a,b,c,d", "1.5,2,3,4"):
        assert run("decode", folder / "a.carimg", "--region", wrong, "-o", folder / "x.png") == 2
        assert "four whole numbers" in " ".join(error_of(capsys).replace("│", " ").split())
    assert not (folder / "x.png").exists()


def test_a_self_ensemble(folder: Path) -> None:
    setting = ["--scale", "1", "--storage", "jpeg2000", "--quality", "30"]
    assert run("encode", folder / "a.png", *setting) == 0
    run_of = ["decode", folder / "a.carimg", "--engine", "onnxruntime:fp32"]
    assert run(*run_of, "-o", folder / "one.png") == 0
    assert run(*run_of, "-o", folder / "eight.png", "--self-ensemble") == 0
    photo, one, eight = (
        np.asarray(Image.open(folder / f"{name}.png"), float) for name in ("a", "one", "eight")
    )
    assert np.square(eight - photo).mean() < np.square(one - photo).mean()


def test_no_permission(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        blocked = Path("/proc/carcodec/x.carimg")  # not even root may write there
    else:
        blocked = folder / "locked" / "x.carimg"
        blocked.parent.mkdir(mode=0o500)
    assert run("encode", folder / "a.png", "-o", blocked, *FAST) == 1
    assert "cannot write" in error_of(capsys)


def test_full_disk_leaves_nothing_half_written(folder: Path) -> None:
    """A file-size limit stands in for a full disk: the write fails part-way."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"sys.argv = ['carcodec', 'encode', {str(folder / 'a.png')!r}, '--model', 'tiny-x2'];"
        "from carcodec.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "notes.txt", "sub"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 500


def test_pillow_autoload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = autoload.switch
    monkeypatch.setattr(autoload, "switch", lambda state: real(state, tmp_path))
    for state, answer in (("status", "off"), ("on", "on: "), ("status", "on: "), ("off", "off: ")):
        assert run("pillow-autoload", state) == 0
        assert capsys.readouterr().out.startswith(answer)
    assert run("pillow-autoload", "maybe") == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"carcodec {version('carcodec')}"


def test_verbose_says_which_engine_runs_what(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("carcodec")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.WARNING)
    codec._NETWORKS.clear()
    assert run("encode", folder / "a.png", *FAST, "-v") == 0
    assert "onnxruntime runs the downscaler of tiny-x2" in capsys.readouterr().err
    assert run("decode", folder / "a.carimg", "--engine", "openvino", "-v", "--overwrite") == 0
    assert "openvino runs the upscaler of tiny-x2" in capsys.readouterr().err


def test_many_photos_come_out_in_order_whatever_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.png").write_bytes(b"no photo")
    with Image.open(folder / "a.png") as photo:
        for name in ("d", "e", "f"):
            photo.save(folder / f"{name}.png")
    (folder / "sub" / "a.png").write_bytes((folder / "a.png").read_bytes())
    given = [folder / f"{n}.png" for n in "acdef"] + [folder / "sub" / "a.png"]
    out = folder / "out"
    assert run("encode", *given, "-o", out, *FAST) == 1
    lines = [line.split(" → ")[0] for line in error_of(capsys).splitlines()]
    assert [Path(line.split(":")[0]).stem for line in lines if " " not in line] == list("adef")
    assert lines[1].startswith(f"carcodec: {given[1]}")
    assert f"is the result of {given[0]}: give one of them its own -o" in lines[-2]
    assert lines[-1].startswith("4 done, 2 failed; ")
    assert sorted(p.name for p in out.iterdir()) == [f"{n}.carimg" for n in "adef"]
    alone = codec.encode(Image.open(given[0]), model="tiny-x2", engine="onnxruntime")
    assert run("encode", given[0], "-o", folder / "x.carimg", *FAST, "--lossless") == 0
    assert (folder / "x.carimg").read_bytes() == alone.data


def test_an_interruption_leaves_nothing_half_written(folder: Path) -> None:
    with Image.open(folder / "a.png") as photo:
        large = photo.resize((1200, 900))
    for i in range(6):
        large.save(folder / f"large{i}.png", compress_level=0)
    out = folder / "out"
    command = [sys.executable, "-m", "carcodec", "encode", str(folder), "-o", str(out), *FAST]
    running = subprocess.Popen([*command, "--effort", "9"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.carimg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and b"Traceback" not in said
    kept = list(out.rglob("*"))
    assert kept and all(path.suffix == ".carimg" for path in kept if path.is_file())
    for path in kept:
        if path.is_file():
            container.read(path.read_bytes())

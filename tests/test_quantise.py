"""Upscalers in 8 bits: as good as the ones they stand for, and made by one command."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from carcodec import app, coarseness, codec, container, engines, metrics, storage, zoo
from carcodec.engines import guard
from carcodec.errors import CarcodecError, DigestMismatchError
from carcodec.zoo import halves, shelf

NEWEST = {card.name: zoo.find(card.name) for card in zoo.installed()}
IN_8_BITS = [card for card in zoo.installed() if card.upscaler.int8]
# a package holds those that have a successor without their downscaler
DOWN_IN_8_BITS = [card for card in NEWEST.values() if card.downscaler.int8]
runner = CliRunner()


def test_what_lossy_files_are_restored_with_is_there_in_8_bits() -> None:
    lossy = [card for card in NEWEST.values() if card.storage]
    assert lossy and all(card.upscaler.int8 for card in lossy)
    larger = [card for card in lossy if card.scale > 1]
    assert larger and all(card.downscaler.int8 for card in larger)


@pytest.mark.parametrize("engine", engines.IN_8_BITS)
@pytest.mark.parametrize("card", IN_8_BITS, ids=lambda card: card.name)
def test_8_bits_lose_next_to_nothing(
    card: zoo.ModelCard, engine: str, taipei: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    photo = np.asarray(taipei.crop((240, 300, 528, 492)))
    for quality in (25, 60) if card.storage else (None,):
        encoded = codec.encode(
            photo, model=card.name, storage_codec=card.storage or "png", quality=quality,
            engine="onnxruntime",
        )  # fmt: skip
        small = codec.stored_image(container.read(encoded.data))
        told = encoded.header.quality if card.storage else None
        exact, found = (
            codec.upscale(small, (288, 192), 8, card, name, 1, quality=told)
            for name in (f"{engine}:fp32", engine)
        )
        lost = metrics.psnr(photo, exact) - metrics.psnr(photo, found)
        assert not np.array_equal(exact, found) and abs(lost) < 0.05
        assert metrics.psnr(exact, found) > 50  # a third of a level
    with caplog.at_level("INFO", "carcodec"):
        engines.load(engine, card, "upscaler", 1)
        engines.load(f"{engine}:fp32", card, "upscaler", 1)
    assert [record.message.endswith(" in 8 bits") for record in caplog.records] == [True, False]


@pytest.mark.parametrize("engine", engines.IN_8_BITS)
@pytest.mark.parametrize("card", DOWN_IN_8_BITS, ids=lambda card: card.name)
def test_lr_of_8_bits_is_worth_what_it_takes(
    card: zoo.ModelCard, engine: str, taipei: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    photo = np.asarray(taipei.crop((192, 256, 576, 544)))
    stored = storage.by_name(card.storage)
    sizes, scores = [], []
    for name in (f"{engine}:fp32", engine):
        small = codec.downscale(photo, card, name, 1)
        data = stored.encode(small, 40, 1, 1)
        told = coarseness.told(card.told, stored, small, 40, data, 1)
        given = stored.decode(data, small.shape[1::-1], 3, 1)
        restored = codec.upscale(given, (384, 288), 8, card, "onnxruntime:fp32", 1, quality=told)
        sizes.append(len(data))
        scores.append(metrics.psnr(photo, restored))
    assert abs(sizes[1] / sizes[0] - 1) < 0.02
    assert abs(scores[1] - scores[0]) < 0.1
    with caplog.at_level("INFO", "carcodec"):
        engines.load(engine, card, "downscaler", 1)
        engines.load(f"{engine}:fp32", card, "downscaler", 1)
    assert [record.message.endswith(" in 8 bits") for record in caplog.records] == [True, False]


def test_drawings_and_extremes_come_back_as_well() -> None:
    """What no photo calibrated: clipped activations must not leave marks."""
    card = zoo.find("car-x2-avif")
    rows, columns = np.mgrid[:96, :128]
    chart = np.zeros((96, 128, 3), np.uint8)
    chart[:48] = np.stack([(columns[:48] // 8 * shift) % 2 * 255 for shift in (1, 2, 3)], -1)
    chart[48:] = np.where((rows[48:] + columns[48:]) % 2, 255, 0)[..., None]
    small = codec.downscale(chart, card, "onnxruntime:fp32")
    exact, found = (
        codec.upscale(small, (128, 96), 8, card, name, 1, quality=80)
        for name in ("onnxruntime:fp32", "onnxruntime")
    )
    lost = metrics.psnr(chart, exact) - metrics.psnr(chart, found)
    assert lost < 0.3 and metrics.psnr(exact, found) > 34
    # nor their LR
    other = codec.downscale(chart, card, "onnxruntime")
    found = codec.upscale(other, (128, 96), 8, card, "onnxruntime:fp32", 1, quality=80)
    assert metrics.psnr(chart, exact) - metrics.psnr(chart, found) < 0.1
    assert metrics.psnr(small, other) > 45


def test_a_model_is_quantised_and_used(data: Path, tmp_path: Path) -> None:
    before, models = NEWEST["car-x4-avif"], tmp_path / "models"
    folder = models / before.folder.name
    shutil.copytree(before.folder, folder)
    card_file = folder / "card.toml"
    done = runner.invoke(
        app.app, ["quantise", "car-x4-avif", "--photos", str(data), "-o", str(models)]
    )
    assert done.exit_code == 0, done.output
    assert "loses 0.0" in done.output
    card = zoo.load_card(card_file)
    assert card.digest == before.digest  # files do not know
    assert card.training == before.training and card.measured == before.measured
    assert card.upscaler.int8 is not None
    assert card.upscaler.int8.command == "carcodec quantise car-x4-avif --photos photos/"
    for side in (card.upscaler, card.downscaler):
        assert side.int8 is not None
        assert set(side.int8.loss) == {"q10", "q20", "q35", "q50", "q65", "q80"}
        assert len(card.weights(side.int8)) < halves.network(card, side).ByteSize() / 2
    text = card_file.read_text()
    again = ["quantise", "car-x4-avif", "--photos", str(data), "-o", str(models), "--quiet"]
    assert runner.invoke(app.app, again).exit_code == 0
    assert card_file.read_text() == text  # the same bits, and one table
    damaged = folder / "upscaler.int8.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DigestMismatchError):
        engines.load("onnxruntime", card, "upscaler", 1)


def test_layers_may_share_their_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "shared-v1"
    shutil.copytree(zoo.find("car-x2").folder, folder)
    original = zoo.find("car-x2")
    network = halves.network(original, original.upscaler)  # packages store it in half precision
    convolutions = [n for n in network.graph.node if n.op_type == "Conv"]
    one, other = (n for n in convolutions if n.input[1].startswith("body.5."))
    kept = [w for w in network.graph.initializer if w.name not in other.input[1:]]
    other.input[1:] = one.input[1:]
    del network.graph.initializer[:]
    network.graph.initializer.extend(kept)
    onnx.save(network, folder / "upscaler.onnx")
    text = (folder / "card.toml").read_text().replace('name = "car-x2"', 'name = "shared"')
    text = re.sub(r"\[upscaler.int8\].*?\n\n", "", text, flags=re.DOTALL)
    digest = hashlib.sha256((folder / "upscaler.onnx").read_bytes()).hexdigest()
    text = re.sub("^file_sha256.*\n", "", text, flags=re.MULTILINE)
    text = text.replace(original.upscaler.sha256, digest)
    (folder / "card.toml").write_text(text.replace("version = 3", "version = 1"))
    monkeypatch.setenv(shelf.MODELS_VARIABLE, str(folder.parent))
    asked = ["quantise", "shared", "--photos", str(data), "-o", str(tmp_path), "--most", "1"]
    done = runner.invoke(app.app, asked)
    assert done.exit_code == 0, done.output
    card = zoo.load_card(tmp_path / "shared-v1" / "card.toml")
    image = guard.photo()[:, :, :48, :64]
    exact, found = (
        engines.load(name, card, "upscaler", 1)(image) for name in ("onnxruntime:fp32", "openvino")
    )
    assert 1e-4 < np.sqrt(np.square(exact - found).mean()) < 1.5 / 255


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("car-x2-bicubic", [], "the upscaler of car-x2-bicubic is no network"),
        ("tad-x8", [], "the upscaler of tad-x8 recurs"),
        ("tiny-x2", [], "no layer that is worth quantising"),
        ("car-x4-avif", ["--most", "0"], "loses 0.0"),
        ("car-x2", ["--side", "downscaler"], "the downscaler of car-x2 stays as it is"),
        ("car-x1-avif", ["--side", "downscaler"], "those of CAR alone"),
    ],
)
def test_what_is_not_worth_8_bits_is_refused(
    model: str, options: list[str], words: str, data: Path, tmp_path: Path
) -> None:
    asked = ["quantise", model, "--photos", str(data), "-o", str(tmp_path / "out"), *options]
    done = runner.invoke(app.app, asked)
    assert isinstance(done.exception, CarcodecError) and words in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_photos_to_calibrate_on(tmp_path: Path, taipei: Image.Image) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    asked = ["quantise", "car-x4-avif", "--photos", str(folder), "-o", str(tmp_path / "out")]
    done = runner.invoke(app.app, asked)
    assert "one to measure on, not 0" in str(done.exception)
    for i in range(2):
        taipei.convert("L").save(folder / f"{i}.png")
    done = runner.invoke(app.app, asked)
    assert "0.png is not a photo in colour of 8 bits" in str(done.exception)

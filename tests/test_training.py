"""Training: recipes, data, a short run that learns, resuming, exporting, and refusals."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import pytorch_msssim
import torch
from PIL import Image

import carcodec
from carcodec import coarseness, codec, dial, engines, metrics, storage, zoo
from carcodec.codec import upscale
from carcodec.errors import (
    DataError,
    MissingDependencyError,
    ModelNotFoundError,
    RecipeError,
    TrainingError,
)
from carcodec.networks import families
from carcodec.training import loop, losses, precision
from carcodec.training.data import Patches, load_images, split
from carcodec.training.export import checkpoint_networks, export
from carcodec.training.optimiser import Muon
from carcodec.training.recipe import load_recipe
from carcodec.training.stock import Stock

CAR = """
width = 8
blocks = 1
head_width = 8
convex = {convex}
cell = {cell}
context = {context}
context_width = 8
"""
QS = (10, None)  # stored at quality 10, losslessly
RECIPE = """
name = "test-x2"
scale = {scale}
[downscaler]
family = "{family}"
{options}
[upscaler]
width = 8
blocks = {blocks}
conditioned = {conditioned}
stride = {stride}
[training]
batch = 4
patch = {patch}
loss = "{loss}"
codec = "{codec}"
real = {real}
ssim = {ssim}
whole = {whole}
stock = {stock}
told = "{told}"
quality_low = {low}
quality_high = {high}
optimiser = "{optimiser}"
learning_rate = {rate}
downscaler_rate = {downscaler_rate}
bounds = 1.0
offset = 0.01
tv = 0.01
guide = 0.02
bf16 = false
"""


def recipe(path: Path, **changes: object) -> Path:
    path = path / "recipe.toml"
    plain = {"convex": "false", "cell": 2, "optimiser": "muon", "loss": "l1", "rate": "4e-3"}
    plain |= {
        "scale": 2,
        "family": "car",
        "blocks": 1,
        "patch": 32,
        "conditioned": "false",
        "codec": "",
        "real": "false",
        "context": 0,
        "stride": 1,
        "downscaler_rate": 1.0,
        "ssim": 0.0,
        "whole": 0,
        "stock": 0,
        "told": "quality",
        "low": 30,
        "high": 90,
    }
    chosen = plain | changes
    options = CAR.format(**chosen) if chosen["family"] == "car" else ""
    path.write_text(RECIPE.format(**chosen, options=options))
    return path


def trained(path: Path, data: Path, steps: int = 60) -> tuple[loop._Trainer, float]:
    """A trainer after some steps of a recipe file, and what it gained in validation, dB."""
    trainer = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    before = trainer.validate()
    for _ in range(steps):
        trainer.minutes += 1 / steps
        loss, _ = trainer.update(1.0)
        assert torch.isfinite(loss)
    return trainer, trainer.validate() - before


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": 1, "loss": "mse", "context": 2},
        {"cell": 1, "loss": "mse"},
        {"cell": 2, "loss": "l1"},
        {"scale": 3, "cell": 1, "loss": "mse", "patch": 36},
        {"convex": "true", "optimiser": "adam", "rate": "2e-3"},
    ],
    ids=["as-shipped", "no-context", "half-resolution", "times-three", "as-published"],
)
def test_a_short_run_learns_exports_and_encodes(
    changes: dict[str, object], tmp_path: Path, data: Path,
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trainer, gain = trained(recipe(tmp_path, **changes), data)
    assert gain > 0.05
    trainer.save(tmp_path / "run" / "checkpoint.pt")

    card = export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models", data="test photos")
    assert zoo.load_card(card).training["data"] == "test photos"
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    encoded = carcodec.encode(photo, model="test-x2")
    assert carcodec.decode(encoded.data).size == photo.size
    for engine in ("pytorch", "openvino"):  # the card says all that an engine must know
        other = carcodec.encode(photo, model="test-x2", engine=engine)
        images = [np.asarray(carcodec.thumbnail(e.data), int) for e in (encoded, other)]
        assert (np.abs(images[0] - images[1]) <= 1).mean() >= 0.999
    # the same weights may be exported again, others under the same version may not
    assert export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models") == card
    trainer.update(1.0)
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="new version"):
        export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models")


PAIRS = {
    "rsrnet": ('family = "rrnet"\nwidth = 8', 'family = "srnet"\nwidth = 8', 3, "soft_round = 0"),
    "rsrnet-y": (
        'family = "rrnet"\nwidth = 8\nchannels = 1',
        'family = "srnet"\nwidth = 8\nchannels = 1',
        2,
        'soft_round = 0\ncolour = "y"',
    ),
    "tad": (
        'family = "tad"\nwidth = 8\nblocks = 1',
        'family = "tau"\nwidth = 8\nblocks = 1',
        2,
        "guide = 0.1\nquantise = 0.5",
    ),
    "tad-x4": (
        'family = "tad"\nwidth = 8\nblocks = 1\nguided = false',
        'family = "tau"\nwidth = 8\nblocks = 1',
        4,
        "guide = 0.1",
    ),
    "car-still": (
        'family = "car"\nwidth = 8\nblocks = 1\nhead_width = 8\ncell = 1\noffsets = false',
        'family = "tau"\nwidth = 8\nblocks = 1',
        2,
        "offset = 0.1\ntv = 0.1",
    ),
    "car-bicubic": (
        'family = "car"\nwidth = 8\nblocks = 1\nhead_width = 8\ncell = 1',
        'family = "bicubic"',
        2,
        "",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_papers_pairs_train_export_and_encode(
    name: str, tmp_path: Path, data: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, up, scale, training = PAIRS[name]
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'name = "pair"\nscale = {scale}\n[downscaler]\n{down}\n[upscaler]\n{up}\n'
        f'[training]\nbatch = 4\npatch = 48\nloss = "l1"\nlearning_rate = 2e-3\n{training}\n'
    )
    trainer, gain = trained(path, data)
    assert gain > 0
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models")
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    small = photo.resize((150, 100))
    results = []
    for engine in ("onnxruntime", "openvino", "pytorch"):
        encoded = codec.encode(small, model="pair", engine=engine, tile=48)
        restored = codec.decode(encoded.data, engine=engine, tile=48)
        assert restored.size == small.size
        results.append(np.asarray(restored, int))
    assert (np.abs(results[1] - results[0]) <= 2).mean() >= 0.99
    assert (np.abs(results[2] - results[0]) <= 2).mean() >= 0.99
    # a tile's place does not show
    whole = codec.decode(encoded.data, engine=engine, tile=512)
    assert np.abs(np.asarray(whole, int) - results[2]).max() <= 1
    # a grey photo: what the network spreads over three planes is kept in three
    grey = small.convert("L")
    file = carcodec.encode(grey, model="pair").data
    header = carcodec.read_header(file)
    assert header.lr_channels == (3 if zoo.find("pair").mixes else 1) and header.mode_name == "L"
    assert carcodec.thumbnail(file).mode == carcodec.decode(file).mode == "L"
    in_colour = carcodec.decode(carcodec.encode(grey.convert("RGB"), model="pair").data)
    difference = np.abs(np.asarray(in_colour, float).mean(2) - np.asarray(carcodec.decode(file)))
    assert (difference <= 1).mean() > 0.9  # but where a colour alone is beyond black or white


def test_a_recursive_network_is_stored_once_and_applied_to_its_own_result(
    tmp_path: Path, data: Path, photo: Image.Image
) -> None:
    """TAD, ECCV 2018, section 3.2: nothing is clamped or rounded on the way to LR."""
    down, up, _, training = PAIRS["tad-x4"]
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'name = "pair"\nscale = 8\n[downscaler]\n{down}\n[upscaler]\n{up}\n'
        f'[training]\nbatch = 2\npatch = 48\nloss = "l1"\nlearning_rate = 2e-3\n{training}\n'
    )
    trainer, _ = trained(path, data)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    trainer.save(checkpoint)
    card = zoo.load_card(export(checkpoint, tmp_path / "models"))
    assert (card.scale, card.downscaler.steps, card.upscaler.steps) == (8, 3, 3)
    image = np.asarray(photo.resize((160, 112)))
    _, downscaler, upscaler, _ = checkpoint_networks(checkpoint)
    with torch.inference_mode():
        source = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255)
        small = downscaler(source).clamp(0, 1).mul(255).round()
        large = upscaler(small.div(255)).clamp(0, 1).mul(255).add(0.5).floor()
    done: list[float] = []
    for engine in ("onnxruntime", "openvino", "pytorch"):
        for tile in (0, 36):
            lr = codec.downscale(image, card, engine, tile=tile)
            assert np.abs(lr - small[0].permute(1, 2, 0).numpy()).max() <= 1
            given = small[0].permute(1, 2, 0).byte().numpy()
            hr = upscale(given, (160, 112), 8, card, engine, tile=tile, progress=done.append)
            difference = np.abs(hr - large[0].permute(1, 2, 0).numpy())
            # OpenVINO takes bfloat16 where the CPU has it
            assert difference.mean() < (1 if engine == "openvino" else 0.01)
            assert done[-1] == 1 and done == sorted(done)
            done.clear()
    # a photo that is small next to the scale: tiles lie beyond it
    six = [replace(side, steps=6) for side in (card.downscaler, card.upscaler)]
    far = replace(card, scale=64, downscaler=six[0], upscaler=six[1])
    lr = codec.downscale(image[:30, :20], far, tile=24)
    assert lr.shape == (1, 1, 3)
    assert (lr == codec.downscale(image[:30, :20], far)).all()
    assert upscale(lr, (20, 30), 8, far).shape == (30, 20, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_colour_is_stored_as_grey(
    tmp_path: Path, data: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "grey"\nscale = 1\n[downscaler]\nfamily = "tad-grey"\nwidth = 8\nblocks = 1\n'
        f"stride = {stride}\n"
        '[upscaler]\nfamily = "tau-colour"\nwidth = 8\nblocks = 1\n'
        f"stride = {stride}\n"
        "[training]\nbatch = 4\npatch = 32\nlearning_rate = 4e-3\nguide = 5.0\n"
    )
    trainer, gain = trained(path, data)
    assert gain > 0
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    card = zoo.load_card(export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models"))
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    assert card.grey and dial.settle(scale=1, quality=None).model != "grey"
    small = photo.resize((151, 101))
    luma = np.asarray(small.convert("L"), int)
    restored = []
    for engine in ("onnxruntime", "openvino", "pytorch"):
        file = carcodec.encode(small, model="grey", engine=engine).data
        assert carcodec.read_header(file).lr_channels == 1
        thumbnail = carcodec.thumbnail(file)
        assert thumbnail.mode == "L" and thumbnail.size == small.size
        assert np.abs(np.asarray(thumbnail, int) - luma).mean() < 12  # grey, and looks like it
        restored.append(carcodec.decode(file, engine=engine))
        assert restored[-1].mode == "RGB"
    colours = [np.asarray(image, int) for image in restored]
    assert np.ptp(colours[0], axis=2).mean() > 1  # coloured
    assert all((np.abs(c - colours[0]) <= 2).mean() > 0.99 for c in colours)
    for mode in ("L", "RGBA"):
        file = carcodec.encode(small.convert(mode), model="grey").data
        assert carcodec.decode(file).mode == mode
    deep = np.asarray(small).astype(np.uint16) * 257
    assert carcodec.decode_array(carcodec.encode(deep, model="grey").data).dtype == np.uint16


def test_bicubic_decodes_without_an_engine(
    tmp_path: Path, data: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, up, scale, _ = PAIRS["car-bicubic"]
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'name = "pair"\nscale = {scale}\n[downscaler]\n{down}\n[upscaler]\n{up}\n'
        "[training]\nbatch = 2\npatch = 48\n"
    )
    loop.train(load_recipe(path), data, tmp_path / "run", minutes=0.01)
    card = zoo.load_card(export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models"))
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    odd = photo.crop((0, 0, 151, 101))
    file = carcodec.encode(odd, model="pair").data
    # what the exported graph gives, which other engines would run
    small = np.asarray(carcodec.thumbnail(file))
    session = onnxruntime.InferenceSession(card.weights(card.upscaler))
    given = (small.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    graph = session.run(None, {"lr": given})[0][0, :, :101, :151].transpose(1, 2, 0)
    monkeypatch.setattr(engines, "get", None)
    restored = np.asarray(carcodec.decode(file), float)
    assert restored.shape == (101, 151, 3)
    assert np.abs(restored - np.clip(graph * 255, 0, 255)).max() < 0.51
    deep = carcodec.encode((np.asarray(odd).astype(np.uint16) * 257), model="pair").data
    assert np.abs(carcodec.decode_array(deep) / 257.0 - restored).max() < 0.51


@pytest.mark.parametrize(
    ("codec", "real"),
    [("avif", "true"), ("jpeg2000", "false"), ("webp", "alone"), ("lossless", "false")],
)
def test_codec_aware_training_learns(codec: str, real: str, tmp_path: Path, data: Path) -> None:
    changes: dict[str, object] = {"codec": codec, "real": "true" if real == "alone" else real}
    if real == "alone":
        changes["downscaler_rate"] = 0.0
    path = recipe(tmp_path, conditioned="true", blocks=2, cell=1, **changes)
    trainer = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    frozen = {k: v.clone() for k, v in trainer.downscaler.state_dict().items()}

    @torch.no_grad()
    def loss() -> float:
        kept, trainer.patches.random = trainer.patches.random, np.random.default_rng(3)
        total = sum(float(trainer.loss(trainer.patches.batch(4))) for _ in range(8))
        trainer.patches.random = kept
        return total

    before = loss()
    for _ in range(60):
        trainer.minutes += 1 / 60
        trainer.update(1.0)
    assert loss() < before
    moved = any(bool((v != frozen[k]).any()) for k, v in trainer.downscaler.state_dict().items())
    assert moved == (real != "alone")
    # the exported upscaler hears the quality, and every engine the same
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    card = zoo.load_card(export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models"))
    small = np.asarray(Image.open(data / "0.png").convert("RGB"))[:40, :60]
    restored = {
        engine: [np.asarray(upscale(small, (120, 80), 8, card, engine, quality=q), int) for q in QS]
        for engine in ("onnxruntime", "openvino", "pytorch")
    }
    for engine, images in restored.items():
        assert (images[0] != images[1]).any(), engine
        for one, other in zip(images, restored["onnxruntime"], strict=True):
            levels = 2 if engine == "openvino" else 1  # which may choose bfloat16
            assert (np.abs(one - other) <= levels).mean() >= 0.999, engine


def test_ssim_in_the_loss_is_ssim_in_the_result(
    tmp_path: Path, data: Path, taipei: Image.Image
) -> None:
    part = np.asarray(taipei.crop((300, 400, 428, 496)))
    found = []
    for weight in (0.0, 4.0):
        changes: dict[str, object] = {"scale": 1, "family": "none", "codec": "webp", "real": "true"}
        changes |= {"conditioned": "true", "low": 5, "high": 15, "ssim": weight}
        trainer, _ = trained(recipe(tmp_path, **changes), data)
        trainer._put(trainer.average)
        stored = losses.through("webp", trainer._centre(part), torch.full((1,), 10.0))[0]
        with torch.no_grad():
            restored = trainer.upscaler(stored, torch.full((1,), 0.1))
        image = restored.clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy()
        found.append(
            (metrics.ssim(metrics.luma(part), metrics.luma(image)), metrics.psnr(part, image))
        )
    (ssim, psnr), (weighed, lost) = found
    assert weighed > ssim and lost < psnr


@pytest.mark.parametrize(("scale", "family"), [(1, "none"), (2, "car")])
def test_patches_are_cut_from_what_is_stored_whole(
    scale: int, family: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {"scale": scale, "family": family, "codec": "jpeg2000"}
    changes |= {"real": "true", "downscaler_rate": 0.0, "whole": 96, "told": "step", "cell": 1}
    changes |= {"conditioned": "true", "low": 4, "high": 40, "stride": 3 - scale}
    trainer, gain = trained(recipe(tmp_path, **changes), data)
    assert gain > 0
    # a patch of HR lies where that of LR does
    at = torch.arange(96.0)
    image = torch.stack((at.expand(96, 96), at[:, None].expand(96, 96), at.expand(96, 96)))[None]
    stored = image[..., ::scale, ::scale]
    cut, small, quality, lost = trainer._cut(
        image.repeat(2, 1, 1, 1), stored.repeat(2, 1, 1, 1), torch.tensor([0.1, 0.2])
    )
    assert cut.shape == (4, 3, 32, 32) and small.shape == (4, 3, 32 // scale, 32 // scale)
    assert torch.equal(cut[..., ::scale, ::scale], small)
    assert len(torch.unique(cut[:, 0, 0, 0])) > 1
    assert quality.tolist() == pytest.approx([0.1, 0.2, 0.1, 0.2])
    assert (lost > 0).all()
    # what is told in training is told in files
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models")
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    photo = Image.open(data / "1.png")
    encoded = carcodec.encode(photo, model="test-x2", storage_codec="jpeg2000", quality=30)
    prepared = codec.prepare(photo, model="test-x2")
    chosen = storage.by_name("jpeg2000")
    assert encoded.quality == 30
    assert encoded.header.quality == coarseness.told("step", chosen, prepared.small, 30)
    assert encoded.header.quality != 30
    assert carcodec.decode(encoded.data).size == photo.size


ALONE = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from carcodec.training import coding
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), coding.begin)
    pool.submit(max, 1, 2).result()
    print(*pool._processes, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
def test_who_codes_for_a_training_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    command = [sys.executable, str(tmp_path / "alone.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        coder = int(started.stdout.readline())
        started.kill()
    for _ in range(200):
        stat = Path(f"/proc/{coder}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # Z: it ended, and nobody has asked
        time.sleep(0.05)
    pytest.fail("it goes on")


@pytest.mark.parametrize(("scale", "family"), [(1, "none"), (2, "car")])
def test_what_is_stored_is_drawn_many_times(
    scale: int, family: str, tmp_path: Path, data: Path
) -> None:
    changes: dict[str, object] = {"scale": scale, "family": family, "codec": "jpeg2000"}
    changes |= {"real": "true", "downscaler_rate": 0.0, "whole": 96, "told": "step", "cell": 1}
    changes |= {"conditioned": "true", "low": 4, "high": 40, "stride": 3 - scale, "stock": 12}
    trainer, gain = trained(recipe(tmp_path, **changes), data)
    assert gain > 0
    assert trainer.stock is not None and trainer.stock.coded > 12
    # what a network shrinks is coded more than once
    assert trainer.stock.often == (1 if family == "none" else 4)
    trainer.close()


@pytest.mark.parametrize("scale", [1, 2])
def test_the_stock_is_what_the_codec_makes_of_photos(scale: int, taipei: Image.Image) -> None:
    drawn = Patches([np.asarray(taipei)], 64, seed=3)
    stock = Stock(
        6, drawn.batch, lambda image: image[..., ::scale, ::scale],
        lambda count: torch.full((count,), 90.0), "jpeg2000", "step", drawn.random,
        torch.device("cpu"), 1, scale,
    )  # fmt: skip
    try:
        image, small, told, missed = stock.draw(40, 16)
        first = stock.coded
        assert image.shape == (40, 3, 16 * scale, 16 * scale) and small.shape == (40, 3, 16, 16)
        # LR lies where HR does, and is what the codec makes of it
        error = (image[..., ::scale, ::scale] - small).square().mean()
        assert 0 < error < 5e-5
        assert ((told > 0.5) & (told <= 1)).all() and (missed > 0).all()
        while stock.coded < first + 12:  # the oldest give way
            other = stock.draw(40, 16)
        assert not torch.equal(other[0], image)
    finally:
        stock.close()


def test_a_teachers_restorations_stand_in_for_photos(
    tmp_path: Path, data: Path, taipei: Image.Image
) -> None:
    drawn = Patches([np.asarray(taipei)], 64, seed=3)
    stock = Stock(
        2, drawn.batch, lambda image: image[..., ::2, ::2],
        lambda count: torch.full((count,), 20.0), "avif", "quality", drawn.random,
        torch.device("cpu"), 1, 2, "car-x2-avif",
    )  # fmt: skip
    try:
        image, small, told, missed = stock.draw(1, 32)
    finally:
        stock.close()
    levels = [np.rint(t[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8) for t in (image, small)]
    card, run = zoo.find("car-x2-avif"), "onnxruntime"
    wanted = codec.upscale(levels[1], (64, 64), 8, card, run, 1, quality=20)
    assert told.tolist() == pytest.approx([0.2]) and np.array_equal(levels[0], wanted)
    assert missed > 1e-4  # of the photo itself
    # a recipe for it, and one that it cannot teach
    changes: dict[str, object] = {"family": "car", "cell": 1, "codec": "avif", "real": "true"}
    changes |= {"downscaler_rate": 0.0, "whole": 64, "stock": 4, "conditioned": "true"}
    path = recipe(tmp_path, **changes)
    path.write_text(path.read_text() + 'teacher = "car-x2-avif"\n')
    trainer, _ = trained(path, data, steps=3)
    assert trainer.stock is not None and trainer.stock.teacher == "car-x2-avif"
    trainer.close()
    text = path.read_text()
    for other, why in (
        ("car-x4-avif", "for scale 4, avif storage and its quality, the recipe for scale 2, avif"),
        ("car-x2-jpeg2000", "for scale 2, jpeg2000 storage"),
        ("car-x2", "for scale 2, lossless storage"),
    ):
        path.write_text(text.replace("car-x2-avif", other))
        with pytest.raises(TrainingError, match=f"the teacher {other} is {why}"):
            loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    path.write_text(text.replace("car-x2-avif", "nobody"))
    with pytest.raises(ModelNotFoundError, match="model nobody is not installed"):
        loop._Trainer(load_recipe(path), data, torch.device("cpu"))


@pytest.mark.parametrize("stride", [1, 2])
def test_scale_one_restores_what_storage_lost(
    stride: int, tmp_path: Path, data: Path, taipei: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {"scale": 1, "family": "none", "codec": "jpeg2000"}
    changes |= {"conditioned": "true", "stride": stride, "low": 4, "high": 12}
    trainer, gain = trained(recipe(tmp_path, **changes), data)
    assert gain > 0
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    export(tmp_path / "run" / "checkpoint.pt", tmp_path / "models")
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path / "models"))
    part = taipei.crop((300, 400, 401, 477))
    for engine in ("onnxruntime", "openvino", "pytorch"):
        encoded = carcodec.encode(part, model="test-x2", storage_codec="png", engine=engine)
        assert encoded.header.scale == 1
        assert np.array_equal(carcodec.thumbnail(encoded.data), part)
        restored = np.asarray(carcodec.decode(encoded.data, engine=engine), int)
        assert restored.shape == np.asarray(part).shape
        tiled = np.asarray(carcodec.decode(encoded.data, engine=engine, tile=36), int)
        assert np.abs(restored - tiled).max() <= 1


def test_resuming_continues_the_same_run(tmp_path: Path, data: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))

    def steps(trainer: loop._Trainer, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            trainer.minutes += 0.01
            losses.append(float(trainer.update(1.0)[0]))
        return losses

    straight = loop._Trainer(loaded, data, torch.device("cpu"))
    expected = steps(straight, 12)
    first = loop._Trainer(loaded, data, torch.device("cpu"))
    found = steps(first, 5)
    first.save(tmp_path / "checkpoint.pt")
    second = loop._Trainer(loaded, data, torch.device("cpu"))
    second.restore(tmp_path / "checkpoint.pt")
    assert second.minutes == pytest.approx(0.05)
    found += steps(second, 7)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimiser", ["muon", "adam"])
def test_dead_features_start_again_where_the_network_is(
    optimiser: str, tmp_path: Path, data: Path
) -> None:
    path = recipe(tmp_path, cell=1, optimiser=optimiser)
    path.write_text(path.read_text() + "revive = 4\n")
    trainer = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    assert trainer.reviver is not None
    (name, block), *_ = trainer.reviver.blocks.items()
    for weights in (trainer._weights(), trainer.average):
        weights[f"{name}.first.bias"][:5] = -9.0
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def steps(count: int) -> None:
        for _ in range(count):
            trainer.minutes += 0.01
            trainer.update(1.0)

    steps(3)
    assert block.first.bias is not None
    assert trainer.revived == 0 and float(block.first.bias[:5].detach().max()) < -8
    trainer.save(tmp_path / "checkpoint.pt")
    again = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    again.restore(tmp_path / "checkpoint.pt")  # what was seen so far is not forgotten
    assert again.reviver is not None
    for key, most in trainer.reviver.most.items():
        assert torch.equal(again.reviver.most[key], most)
    with torch.no_grad():
        before = trainer.upscaler(image)
    assert trainer.reviver.revive(trainer.average, trainer.optimisers, seed=3) == 5
    with torch.no_grad():  # what it computes is the same
        assert torch.allclose(trainer.upscaler(image), before, atol=1e-5)
    for weights in (trainer._weights(), trainer.average):
        assert weights[f"{name}.second.weight"][:, :5].abs().max() == 0
        assert weights[f"{name}.second.weight"][:, 5:].abs().min() > 0
    for optimiser_ in trainer.optimisers:
        for p, axis in ((block.first.weight, 0), (block.second.weight, 1)):
            for value in optimiser_.state.get(p, {}).values():
                if value.shape == p.shape:
                    assert value.movedim(axis, 0)[:5].abs().max() == 0
    steps(3)
    assert (trainer.reviver.most[name][:5] > 0).all()  # and they learn
    assert block.second.weight[:, :5].abs().max() > 0
    revived, trainer.minutes = trainer.revived, 0.9  # from here on, none is given a new start
    block.first.bias.data[:5] = -9.0
    steps(9)
    assert trainer.revived == revived


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # PyTorch's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_run_learns_and_finds_dead_features(
    tmp_path: Path, taipei: Image.Image, data: Path
) -> None:
    """Validation is of another size than what was compiled, and its kernels call no hooks."""
    taipei.crop((0, 0, 160, 96)).save(data / "0.png")  # held out
    alone = {"codec": "webp", "real": "true", "conditioned": "true", "downscaler_rate": 0.0}
    path = recipe(tmp_path, cell=1, optimiser="adam", **alone)
    found = []
    for compiled in ("false", "true"):
        path.write_text(path.read_text() + f"revive = 12\ncompile = {compiled}\n")
        trainer = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
        path.write_text(path.read_text().partition("revive")[0])
        block = trainer.upscaler.body[0]
        block.first.bias.data[:5] = -9.0
        losses_ = []
        for _ in range(14):
            losses_.append(float(trainer.update(1.0)[0]))
            trainer.minutes += 0.01
        found.append((losses_, trainer.revived, trainer.validate()))
    (plain, dead, psnr), (same, also, near) = found
    assert same[:12] == pytest.approx(plain[:12], rel=1e-3)
    assert dead == also == 5 and near == pytest.approx(psnr, abs=0.05)


def test_train_leaves_a_checkpoint_and_a_log(tmp_path: Path, data: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    heard: list[loop.Progress] = []
    out = tmp_path / "run"
    psnr = loop.train(loaded, data, out, minutes=0.02, report=heard.append)
    assert heard[-1].validation_psnr == pytest.approx(psnr)
    assert heard[-1].minutes >= 0.02
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["validation_psnr"]) == pytest.approx(psnr, abs=1e-3)
    with pytest.raises(TrainingError, match="--resume"):
        loop.train(loaded, data, out, minutes=0.02)
    assert loop.train(loaded, data, out, minutes=0.02, resume=True) == pytest.approx(psnr)
    other = load_recipe(recipe(tmp_path, convex="true"))
    with pytest.raises(TrainingError, match="downscaler differs"):
        loop.train(other, data, out, minutes=0.04, resume=True)


def test_a_run_can_start_from_anothers_weights(tmp_path: Path, data: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    psnr = loop.train(loaded, data, tmp_path / "first", minutes=0.05)
    second = loop._Trainer(loaded, data, torch.device("cpu"))
    second.start_from(tmp_path / "first" / "checkpoint.pt")
    assert second.validate() == pytest.approx(psnr)
    assert second.minutes == 0
    conditioned = load_recipe(recipe(tmp_path, conditioned="true"))
    third = loop._Trainer(conditioned, data, torch.device("cpu"))
    third.start_from(tmp_path / "first" / "checkpoint.pt")
    assert third.validate() == pytest.approx(psnr)
    path = recipe(tmp_path)
    wider = path.read_text().replace(
        "[upscaler]\nwidth = 8\nblocks = 1", "[upscaler]\nwidth = 12\nblocks = 2"
    )
    path.write_text(wider)
    fourth = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    fourth.start_from(tmp_path / "first" / "checkpoint.pt")
    assert sum(v.numel() for v in fourth.upscaler.parameters()) > 2 * sum(
        v.numel() for v in second.upscaler.parameters()
    )
    assert fourth.validate() == pytest.approx(psnr, abs=1e-3)
    path.write_text(recipe(tmp_path).read_text().replace("8", "6"))
    with pytest.raises(TrainingError, match="another size"):
        loop.train(
            load_recipe(path), data, tmp_path / "third", minutes=0.01,
            init=tmp_path / "first" / "checkpoint.pt",
        )  # fmt: skip


def test_another_upscaler_is_trained_for_a_downscaler_that_is_there(
    tmp_path: Path, data: Path
) -> None:
    """It starts afresh, and the small images are those of the first."""
    cell: dict[str, object] = {"cell": 1}
    first = load_recipe(recipe(tmp_path, **cell))
    loop.train(first, data, tmp_path / "first", minutes=0.02)
    checkpoint = tmp_path / "first" / "checkpoint.pt"
    alone: dict[str, object] = {"codec": "webp", "real": "true", "downscaler_rate": 0.0}
    path = recipe(tmp_path, **cell, **alone, stride=2)
    loop.train(load_recipe(path), data, tmp_path / "second", minutes=0.02, init=checkpoint)
    cards = [
        zoo.load_card(export(tmp_path / run / "checkpoint.pt", tmp_path / f"{run}-models"))
        for run in ("first", "second")
    ]
    assert cards[0].downscaler.sha256 == cards[1].downscaler.sha256
    # one that learns, too, has nothing to start from, and one of another size does not fit
    text = path.read_text()
    for change in (("downscaler_rate = 0.0", ""), ("head_width = 8", "head_width = 6")):
        path.write_text(text.replace(*change))
        with pytest.raises(TrainingError, match="another size than the recipe's"):
            loop._Trainer(load_recipe(path), data, torch.device("cpu")).start_from(checkpoint)


def test_a_downscaler_of_any_family_that_learns_wants_its_upscaler(
    tmp_path: Path, data: Path
) -> None:
    text = recipe(tmp_path, family="tad").read_text()
    text = text.replace('family = "tad"', 'family = "tad"\nwidth = 8\nblocks = 1')
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    first = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    first.save(tmp_path / "checkpoint.pt")
    text = text.replace("stride = 1", "stride = 2")
    path.write_text(text)
    other = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    with pytest.raises(TrainingError, match="another size than the recipe's"):
        other.start_from(tmp_path / "checkpoint.pt")
    path.write_text(text.replace("downscaler_rate = 1.0", "downscaler_rate = 0.0"))
    frozen = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    frozen.start_from(tmp_path / "checkpoint.pt")
    for ours, theirs in zip(
        frozen.downscaler.parameters(), first.downscaler.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_run_can_start_from_a_model(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(recipe(tmp_path))
    psnr = loop.train(loaded, data, tmp_path / "first", minutes=0.02)
    card = export(tmp_path / "first" / "checkpoint.pt", tmp_path / "models")
    monkeypatch.setenv("CARCODEC_MODELS", str(tmp_path / "models"))
    for start in (card.parent, Path(loaded.name)):
        trainer = loop._Trainer(loaded, data, torch.device("cpu"))
        trainer.start_from(start)
        assert trainer.validate() == pytest.approx(psnr)
    with pytest.raises(ModelNotFoundError, match="model nowhere is not installed"):
        loop.train(loaded, data, tmp_path / "other", minutes=0.01, init=Path("nowhere"))


def test_ssim_in_the_loss_is_that_of_its_library() -> None:
    x, noise = torch.rand(2, 3, 1, 40, 64, generator=torch.Generator().manual_seed(1))
    wanted = []
    for scale in (1, 2):
        pair = [torch.nn.functional.avg_pool2d(t, scale) for t in (x, 0.7 * x + 0.3 * noise)]
        likeness = pytorch_msssim.ssim(*pair, data_range=1, size_average=False)
        wanted.append((1 - likeness + 1e-3).log())
    pictures = [t.expand(-1, 3, -1, -1) for t in (x, 0.7 * x + 0.3 * noise)]
    for scales, mean in ((1, wanted[0]), (2, (wanted[0] + wanted[1]) / 2)):
        assert torch.allclose(losses.structure(*pictures, scales), mean, atol=1e-5)


def test_qualities_are_drawn_as_the_recipe_says(tmp_path: Path, data: Path) -> None:
    path = recipe(tmp_path, codec="avif", low=10, high=90)
    path.write_text(path.read_text() + "quality_mode = 20\n")
    trainer = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    drawn = trainer._drawn(20000)
    assert 10 <= drawn.min() < 12 and 85 < drawn.max() <= 90
    counts = torch.histc(drawn, 8, 10, 90)
    assert counts[0] + counts[1] > 0.33 * 20000 and counts[-1] < 0.03 * 20000


@pytest.mark.parametrize("changes", [{}, {"real": "true", "codec": "webp", "downscaler_rate": 0.0}])
def test_what_diverged_is_not_saved(changes: dict[str, object], tmp_path: Path, data: Path) -> None:
    """Also where a step's loss is looked at after the step."""
    trainer = loop._Trainer(load_recipe(recipe(tmp_path, **changes)), data, torch.device("cpu"))
    trainer.update(1.0)
    trainer.save(tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    trainer.upscaler.tail.bias.data[0] = torch.nan
    with pytest.raises(TrainingError, match="diverged at step 1: lower learning_rate"):
        trainer.update(1.0)
        trainer.save(tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_diverged_run_stops_itself(tmp_path: Path, data: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, rate="1e18", optimiser="adam"))
    with pytest.raises(TrainingError, match="diverged"):
        loop.train(loaded, data, tmp_path / "run", minutes=0.5, report_every=0.05)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="damaged"):
        export(tmp_path / "checkpoint.pt", tmp_path)


def test_baselines_train_and_are_not_exported(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(
        'name = "b"\nscale = 2\n[downscaler]\nfamily = "bicubic"\n'
        "[upscaler]\nwidth = 8\nblocks = 1\n[training]\nbatch = 2\npatch = 32\n"
    )
    loop.train(load_recipe(path), data, tmp_path / "run", minutes=0.005)
    with pytest.raises(TrainingError, match="not exported"):
        export(tmp_path / "run" / "checkpoint.pt", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "not a TOML file"),
        ('scale = 2\nname = "x"\nsize = 3', "unknown key 'size'"),
        ("scale = 2", "missing name"),
        ('name = "x"\nscale = "2"', "scale must be int"),
        ('name = "x"\nscale = 129', "from 2 to 128"),
        ('name = "x"\nscale = 2\ndownscaler = 1', "expected a table"),
        ('name = "x"\nscale = 2\n[downscaler]\nfamily = "pca"', "family 'pca'; known: car, rr"),
        ('name = "x"\nscale = 4\n[training]\npatch = 100', "multiple of 8"),
        ('name = "x"\nscale = 2\n[training]\noptimiser = "sgd"', "'adam' or 'muon'"),
        ('name = "x"\nscale = 2\n[training]\nbatch = 2.5', "batch must be int"),
        ('name = "x"\nscale = 2\n[training]\nloss = "l3"', "'l1' or 'mse'"),
        ('name = "x"\nscale = 2\n[downscaler]\ncell = 3', "cell must be 1 or 2"),
        ('name = "x"\nscale = 2\n[upscaler]\nstride = 3', "stride must be 1 or 2"),
        ('name = "x"\nscale = 2\n[downscaler]\ncontext = 1', "LR resolution: cell = 1"),
        ('name = "x"\nscale = 2\n[downscaler]\nfamily = "none"', "scale of 'none' is 1, not 2"),
        ('name = "x"\nscale = 2\n[training]\ncodec = "gif"', "unknown codec 'gif'"),
        ('name = "x"\nscale = 2\n[training]\nreal = true', "real needs a lossy codec"),
        ('name = "x"\nscale = 2\n[training]\nquality_low = 95', "qualities must be ordered"),
        ('name = "x"\nscale = 2\n[training]\nssim = 1.0', "upscalers that learn alone"),
        (
            'name = "x"\nscale = 1\n[downscaler]\nfamily = "none"\n[training]\npatch = 32\n'
            'codec = "avif"\nreal = true\nssim = 1.0\nssim_scales = 3',
            "11 pixels of the patch at the smallest size, not 8",
        ),
        ('name = "x"\nscale = 2\n[training]\nwhole = 256', "whole is for upscalers that learn"),
        ('name = "x"\nscale = 2\n[training]\ntold = "psnr"', "'quality' or 'step'"),
        ('name = "x"\nscale = 2\n[training]\ntold = "step"', "a patch has its own step"),
        (
            'name = "x"\nscale = 1\n[downscaler]\nfamily = "none"\n[training]\nreal = true\n'
            'codec = "avif"\nwhole = 64',
            "whole must be at least patch",
        ),
        (
            'name = "x"\nscale = 1\n[downscaler]\nfamily = "none"\n[training]\nreal = true\n'
            'codec = "avif"\nwhole = 129',
            "whole must be a multiple of 2",
        ),
        ('name = "x"\nscale = 2\n[training]\nstock = 9', "stock wants whole"),
        ('name = "x"\nscale = 2\n[training]\nteacher = "car-x2"', "teacher wants stock"),
        (
            'name = "x"\nscale = 1\n[downscaler]\nfamily = "none"\n[training]\nreal = true\n'
            'codec = "avif"\nwhole = 128\nstock = -1',
            "stock must be 0 or more, not -1",
        ),
        ('name = "x"\nscale = 2\n[training]\nrevive = -1', "revive must be 0 or more, not -1"),
        ('name = "x"\nscale = 2\n[training]\nssim_scales = 0', "ssim_scales must be at least 1"),
        (
            'name = "x"\nscale = 2\n[training]\nquality_mode = 95',
            "quality_mode must be between quality_low and quality_high, or 0",
        ),
        ('name = "x"\nscale = 2\n[training]\ncolour = "lab"', "must be 'rgb' or 'y'"),
        ('name = "x"\nscale = 2\n[training]\ntint = 1.0\ncodec = "avif"', "codec = 'avif'"),
        ('name = "x"\nscale = 2\n[training]\ntint = 1.0\ncolour = "y"', "colour = 'y'"),
        ('name = "x"\nscale = 2\n[training]\ntint = 1.0\npatch = 4', "patch = 4"),
        ('name = "x"\nscale = 2\n[training]\ndecimate = 1.5', "from 0 to 1, not 1.5"),
        ('name = "x"\nscale = 2\n[training]\ncolour = "y"', "car takes colour"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_every_shipped_recipe_loads() -> None:
    folder = Path(loop.__file__).parent / "recipes"
    recipes = {path.stem: load_recipe(path) for path in folder.glob("*.toml")}
    assert {"car-x2", "car-paper-x4-rcan", "rsrnet-paper-x3", "tad-paper-x2", "tad-x128"} <= set(
        recipes
    )
    assert all(name.removesuffix("-tune") == r.name for name, r in recipes.items())
    for scale in (2, 4):  # a baseline differs in the downscaler and nothing else
        car, base = recipes[f"car-x{scale}"], recipes[f"bicubic-x{scale}"]
        assert car.upscaler == base.upscaler
        same = ("batch", "patch", "loss", "minutes", "optimiser", "learning_rate", "ema", "seed")
        assert all(getattr(car.training, k) == getattr(base.training, k) for k in same)


def test_data_folders(tmp_path: Path, data: Path) -> None:
    train, held_out = split(data)
    assert (len(train), len(held_out)) == (3, 1)
    for part in ("train", "val"):
        (tmp_path / "both" / part).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "both" / part / "x.png")
    train, held_out = split(tmp_path / "both")
    assert [p.parent.name for p in train + held_out] == ["train", "val"]
    with pytest.raises(DataError, match="not a folder"):
        split(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="too few"):
        split(tmp_path / "empty")
    with pytest.raises(DataError, match="at least 500 pixels"):
        load_images(train, 500)
    (data / "0.png").write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot read"):
        load_images([data / "0.png"])


def test_patches_are_cut_from_the_images_and_repeatable() -> None:
    image = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
    first = Patches([image], 16, seed=3).batch(20)
    assert first.shape == (20, 3, 16, 16)
    assert torch.equal(first, Patches([image], 16, seed=3).batch(20))
    assert not torch.equal(first, Patches([image], 16, seed=4).batch(20))
    assert set((first * 255).round().unique().int().tolist()) <= set(range(256))


def test_a_share_of_the_patches_is_every_second_pixel() -> None:
    rows, columns = np.mgrid[:40, :50].astype(np.uint8)
    image = np.stack((rows, columns, rows), 2)
    patches = Patches([image], 16, seed=3, decimate=0.5).batch(200).mul(255).round()
    # rows fall or columns do, flipped and transposed; either way the same step in both
    steps = (patches[:, 0, 1:, 1:] - patches[:, 0, :-1, :-1]).abs().flatten(1)
    assert set(steps.unique().tolist()) == {1, 2}
    assert 0.35 < float((steps[:, 0] == 2).float().mean()) < 0.65
    assert bool((steps == steps[:, :1]).all())
    small = Patches([image[:30]], 16, seed=3, decimate=1.0).batch(20)  # 31 are needed
    assert small.shape == (20, 3, 16, 16)


def test_tint_is_the_colour_error_that_a_blur_leaves() -> None:
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).sub(0.5)
    assert float(losses.tint(grey.expand(1, 3, 32, 32))) == 0
    pattern = torch.zeros(1, 3, 32, 32)
    pattern[:, 0, ::2], pattern[:, 0, 1::2] = 0.1, -0.1  # red, but not over 8 x 8 pixels
    assert float(losses.tint(pattern)) < 1e-12
    faint = torch.zeros(1, 3, 32, 32)
    faint[:, 2] = 0.9 / 255
    assert float(losses.tint(faint)) == 0
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 11 / 255  # of the two differences one
    assert float(losses.tint(red)) == pytest.approx((10 / 255) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("side", "family", "options"),
    [
        ("downscaler", "tad", {"width": 16, "blocks": 1}),
        ("downscaler", "rrnet", {}),
        ("downscaler", "tad-grey", {"width": 16, "blocks": 1, "stride": 2}),
        ("upscaler", "tau", {"width": 16, "blocks": 1}),
        ("upscaler", "edsr", {"width": 16, "blocks": 1}),
        ("upscaler", "srnet", {}),
    ],
)
def test_autocast_leaves_images_in_float32(
    side: str, family: str, options: dict[str, object]
) -> None:
    scale = 1 if family == "tad-grey" else 2
    torch.manual_seed(0)
    network = families.build(side, family, scale, families.complete(side, family, options))
    image = torch.rand(1, 3, 32, 32)

    def coarse(x: torch.Tensor) -> float:
        """The share of values that bfloat16 holds."""
        return float((x.float() == x.bfloat16().float()).float().mean())

    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and min(module.weight.shape[:2]) > 12:
            module.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            before = network(image)
            seen.clear()
            precision.exact_images(network)
            after = network(image)
        assert set(seen) == {torch.bfloat16}  # features are as fast as they were
        assert torch.equal(network(image), exact)  # without autocast nothing changes
    assert after.dtype == torch.float32
    assert (after - exact).abs().mean() <= (before - exact).abs().mean()
    if family == "rrnet":  # which rounds LR itself
        assert set((after * 255 - (after * 255).round()).abs().lt(1e-3).unique().tolist()) == {True}
    else:
        assert coarse(after) < 0.1


def test_muons_update_is_orthogonal_and_sized_like_adams() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 4, 3, 3))
    optimiser = Muon([weight], lr=1.0)
    weight.grad = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    update = weight.detach().flatten(1) / (0.2 * 36**0.5)
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


TOGETHER = """
import sys
from pathlib import Path
import torch
from carcodec.training import loop
from carcodec.training.recipe import load_recipe
from carcodec.training.stock import Stock
from carcodec.training.world import join
recipe, data, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
world, device = join("cpu")
trainer = loop._Trainer(load_recipe(recipe), data, device, world)
start = {k: v.clone() for k, v in trainer._weights().items()}
image = trainer._coloured(trainer.patches.batch(2))
trainer.loss(image).backward()
own = [p.grad.clone() for n in trainer.networks for p in n.parameters()]
mean = [g.clone() for g in own]
world.mean(mean)
for _ in range(3):
    trainer.update(1.0)
    trainer.minutes = world.same(trainer.minutes + 1 / 60 * (1 + world.rank), device)
state = {"start": start, "end": trainer._weights(), "own": own, "mean": mean}
torch.save(state | {"minutes": trainer.minutes}, out / f"{world.rank}.pt")
world.leave()
"""


def test_two_processes_train_one_model(tmp_path: Path, data: Path) -> None:
    path, script = recipe(tmp_path, cell=1), tmp_path / "together.py"
    script.write_text(TOGETHER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(path), str(data), str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for part in ("start", "end"):
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part])
    assert not torch.equal(first["own"][0], second["own"][0])  # each its own patches
    for a, b, c, d in zip(first["own"], second["own"], first["mean"], second["mean"], strict=True):
        assert torch.allclose((a + b) / 2, c) and torch.equal(c, d)
    assert first["minutes"] == second["minutes"] == pytest.approx(3 / 60)  # the first one's clock
    command = ["-m", "carcodec", "train", str(path), "--data", str(data), "--minutes", "0.02"]
    done = subprocess.run(
        [*launcher, *command, "-o", str(tmp_path / "run"), "--threads", "1"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(RGB)") == 1  # one of them speaks
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_half_precision_trains(tmp_path: Path, data: Path) -> None:
    path = recipe(tmp_path, cell=1, loss="mse")
    path.write_text(path.read_text() + "fp16 = true\n")
    trainer, gain = trained(path, data, 40)
    assert trainer.precision == torch.float16 and trainer.scaler.get_scale() > 1
    assert gain > 0
    trainer.save(tmp_path / "checkpoint.pt")
    other = loop._Trainer(load_recipe(path), data, torch.device("cpu"))
    other.restore(tmp_path / "checkpoint.pt")
    assert other.scaler.get_scale() == trainer.scaler.get_scale()


def test_packed_images_are_as_good_as_loose_ones(tmp_path: Path, data: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "shard.zip", "w") as shard:
        for path in sorted(data.glob("*.png")):
            shard.write(path, f"photos/{path.name}")
        shard.writestr("photos/README", "not a photo")
    loose, found = split(data), split(packed)
    for ours, theirs in zip(loose, found, strict=True):
        images, others = load_images(ours), load_images(theirs)
        assert len(images) == len(others)
        assert all(np.array_equal(a, b) for a, b in zip(images, others, strict=True))
    (packed / "shard.zip").write_bytes(b"no")
    with pytest.raises(DataError, match="packed images"):
        split(packed)


def test_the_sheet_shows_photo_lr_restored_and_error(tmp_path: Path, data: Path) -> None:
    loop.train(load_recipe(recipe(tmp_path)), data, tmp_path / "run", minutes=0.01)
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        width, height = sheet.size
        shown = np.asarray(sheet)
    assert width == 4 * 128 + 3 * 4 and height == 16 + 128  # the whole of one held-out photo
    (held_out,) = load_images(split(data)[1])
    assert np.array_equal(shown[16:, :128], held_out)
    lr = shown[16:, 132:260]
    assert np.array_equal(lr[::2, ::2], lr[1::2, 1::2])
    assert 100 < shown[16:, -128:].mean() < 155  # the error is around grey


def test_tensorboard_sees_what_the_log_says(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded, out = load_recipe(recipe(tmp_path)), tmp_path / "run"
    psnr = loop.train(loaded, data, out, minutes=0.01, tensorboard=True)
    events = accumulator.EventAccumulator(str(out))
    events.Reload()
    (last,) = events.Scalars("validation_psnr")
    with (out / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert last.value == pytest.approx(psnr) and last.step == int(row["step"])
    assert events.Scalars("loss")[0].value == pytest.approx(float(row["loss"]), abs=1e-5)
    (picture,) = events.Images("sheet")
    kept = (out / "sheet.png").read_bytes()
    sizes = []
    for data_of in (picture.encoded_image_string, kept):
        with Image.open(io.BytesIO(data_of)) as shown:
            sizes.append(shown.size)
    assert sizes[0] == sizes[1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        loop.train(loaded, data, tmp_path / "other", minutes=0.01, tensorboard=True)
    assert not (tmp_path / "other").exists()

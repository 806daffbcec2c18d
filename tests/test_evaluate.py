"""carcodec evaluate, and MATLAB's imresize."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from carcodec import app, codec, evaluate, metrics, resize, zoo
from carcodec.errors import CarcodecError, CompareError, ImageError, ModelNotFoundError
from carcodec.networks import plain


def one_pixel(line: np.ndarray, at: int, count: int) -> float:
    """Bicubic imresize of a line, one output pixel, written as its definition reads."""
    scale = count / len(line)
    stretch = max(1.0, 1 / scale)
    centre = (at + 0.5) / scale - 0.5
    total = weight = 0.0
    for position in range(int(centre - 2 * stretch) - 3, int(centre + 2 * stretch) + 4):
        x = abs(centre - position) / stretch
        if x >= 2:
            continue
        tap = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        mirrored = position % (2 * len(line))
        mirrored = min(mirrored, 2 * len(line) - 1 - mirrored)
        total += tap * line[mirrored]
        weight += tap
    return total / weight


@settings(max_examples=40)
@given(length=st.integers(2, 23), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_imresize_is_its_definition(length: int, count: int, seed: int) -> None:
    line = np.random.default_rng(seed).uniform(0, 255, length)
    expected = [one_pixel(line, i, count) for i in range(count)]
    found = resize.imresize(np.tile(line, (3, 1)), (count, 3))
    assert found == pytest.approx(np.tile(expected, (3, 1)))
    assert resize.imresize(line[:, None], (1, count))[:, 0] == pytest.approx(np.array(expected))


@pytest.mark.parametrize("kernel", [k for k in resize.KERNELS if k != "nearest"])
def test_imresize_of_photos(kernel: str, taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 392, 428)))
    small = resize.imresize(image, (64, 42), kernel)
    assert small.shape == (42, 64, 3) and small.dtype == np.uint8
    filters = {
        "bicubic": Image.Resampling.BICUBIC,
        "box": Image.Resampling.BOX,
        "lanczos3": Image.Resampling.LANCZOS,
        "bilinear": Image.Resampling.BILINEAR,
    }
    # Pillow differs at borders, which it does not reflect, and clamps between the axes in
    # another order
    other = np.asarray(Image.fromarray(image).resize((64, 42), filters[kernel]))
    inner = np.abs(small.astype(int) - other)[3:-3, 3:-3]
    assert inner.max() <= 8 and (inner <= 1).mean() > 0.99
    flat = np.full((10, 12), 77, np.uint8)
    assert (resize.imresize(flat, (31, 4), kernel) == 77).all()


def test_nearest_takes_the_middle_pixel(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 296, 372)))
    for scale in (2, 3, 4):
        small = resize.downscale(image, scale, "nearest")
        assert (small == image[scale // 2 :: scale, scale // 2 :: scale]).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear", "nearest"])
def test_what_models_are_trained_on_is_imresize(kind: str, scale: int, taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 200 + 24 * scale, 300 + 20 * scale)))
    planes = torch.tensor(image).permute(2, 0, 1)[None].float()
    for channels in (1, 3):
        network = plain.Interpolation(scale, channels, kind)
        found = network(planes)[0].permute(1, 2, 0).numpy()
        wanted = resize.imresize(image.astype(float), (24, 20), kind)
        assert np.abs(found - wanted)[4:-4, 4:-4].max() < 1e-3
    with pytest.raises(ValueError, match="bicubic, bilinear, nearest, not 'box'"):
        plain.Interpolation(scale, 3, "box")


@pytest.fixture
def folder(taipei: Image.Image, tmp_path: Path) -> Path:
    made = tmp_path / "Set5"
    made.mkdir()
    taipei.crop((260, 300, 391, 401)).save(made / "streets.png")
    taipei.crop((100, 340, 220, 440)).convert("L").save(made / "hill.png")
    return made


def test_figures_are_those_of_the_protocol(folder: Path, tmp_path: Path) -> None:
    rows = evaluate.evaluate([folder], ["bicubic-x2", "tiny-x2"], cache=tmp_path / "cache", jobs=2)
    assert [(r.system, r.pictures, r.count, r.scale) for r in rows] == [
        ("bicubic-x2", "Set5", 2, 2),
        ("tiny-x2", "Set5", 2, 2),
    ]
    expected = []
    for name in ("streets", "hill"):
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        height, width = (side // 2 * 2 for side in image.shape[:2])
        image = image[:height, :width]
        small = resize.imresize(image, (width // 2, height // 2))
        restored = resize.imresize(small, (width, height))
        expected.append(metrics.psnr(metrics.luma(image), metrics.luma(restored), border=2))
    assert rows[0].figures["psnr_y"] == pytest.approx(np.mean(expected))
    assert set(rows[0].figures) == set(evaluate.FIGURES)
    assert 0 < rows[0].figures["jpegxl"] < rows[0].figures["jpegls"] < 24
    again = evaluate.evaluate([folder], ["bicubic-x2"], cache=tmp_path / "cache")
    assert again == rows[:1]  # seconds too: read, not measured again
    # rounding luma moves the figures by hundredths
    matlab = evaluate.evaluate(
        [folder], ["bicubic-x2", "tiny-x2"], protocol="matlab", cache=tmp_path / "cache"
    )
    for ours, theirs in zip(rows, matlab, strict=True):
        assert 0 < abs(ours.figures["psnr_y"] - theirs.figures["psnr_y"]) < 0.3


def test_one_systems_lr_into_anothers_upscaler(
    folder: Path, tmp_path: Path, taipei: Image.Image
) -> None:
    image = np.asarray(taipei.crop((260, 300, 390, 400)))
    card = zoo.find("tiny-x2")
    small, restored = evaluate.system("box-x2+tiny-x2").run(image)
    assert (small == resize.downscale(image, 2, "box")).all()
    assert (restored == codec.upscale(small, (130, 100), 8, card)).all()
    small, restored = evaluate.system("tiny-x2+nearest-x2").run(image)
    assert (small == codec.downscale(image, card)).all()
    assert (restored == resize.imresize(small, (130, 100))).all()
    rows = evaluate.evaluate([folder], ["tiny-x2+tiny-x2", "tiny-x2"], cache=tmp_path / "cache")
    one, other = (row.figures | {"seconds": 0} for row in rows)
    assert one == other
    with pytest.raises(CompareError, match="box-x3 is ×3 and tiny-x2 ×2: no pair"):
        evaluate.system("box-x3+tiny-x2")
    with pytest.raises(ModelNotFoundError, match="car-x9"):
        evaluate.system("box-x3+car-x9")


def test_networks_for_luma_get_luma(folder: Path, tmp_path: Path) -> None:
    name = "bicubic-x3+srcnn-bicubic-x3"
    one = evaluate.system(name)
    assert one.planes and not evaluate.system("bicubic-x2+tiny-x2").planes
    image = np.asarray(Image.open(folder / "streets.png").convert("RGB"))[:99, :129]
    y = np.floor(metrics.luma(image) + 0.5).astype(np.uint8)
    expected = metrics.psnr(y, one.run(y)[1], border=3)
    (folder / "hill.png").unlink()
    (row,) = evaluate.evaluate([folder], [name], protocol="matlab", cache=tmp_path / "cache")
    assert row.figures["psnr_y"] == pytest.approx(expected)


def test_command_line_writes_tables_with_papers(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"no")
    files = {form: tmp_path / f"table.{form}" for form in ("json", "csv", "markdown")}
    arguments = ["evaluate", str(folder), "--models", "bicubic-x2,box-x3"]
    arguments += ["--cache", str(tmp_path / "cache")]
    for form, path in files.items():
        arguments += [f"--{form}", str(path)]
    result = CliRunner().invoke(app.app, arguments)
    assert result.exit_code == 1  # of the broken one
    assert "Set5" in result.output and "CAR I: Sun and Chen" in result.output
    data = json.loads(files["json"].read_text())
    assert [row["count"] for row in data["rows"]] == [2, 2]
    papers = {(p["downscaler"], p["upscaler"], p["scale"]) for p in data["published"]}
    assert ("CAR", "EDSR 32×256", 2) in papers and not any(scale == 4 for *_, scale in papers)
    rows = list(csv.reader(files["csv"].read_text().splitlines()))
    assert len({len(row) for row in rows}) == 1
    assert any("33.66" in row for row in rows)  # Set5, bicubic, as printed
    assert files["markdown"].read_text().startswith("| system | × | set |")


def test_a_papers_table_names_what_stands_beside_it(folder: Path, tmp_path: Path) -> None:
    there, missing = evaluate.beside("CAR II")
    assert {"car-x4", "bicubic-x4"} == set(there) and not missing
    assert "dpid-x2" in evaluate.beside("CAR V", [2])[0]
    with pytest.raises(CompareError, match="unknown table 'CAR IX': choose from CAR I, CAR II,"):
        evaluate.beside("CAR IX")
    arguments = ["evaluate", str(folder), "--table", "CAR V", "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app.app, [*arguments, "--models", "box-x2,dpid-x2"])
    assert result.exit_code == 0, result.output
    assert "17.41" in result.output and "CAR I:" not in result.output  # L0-regularized, as printed
    # every pair that a recipe is named for can be trained
    recipes = Path(evaluate.__file__).parent / "training" / "recipes"
    rows = [
        evaluate.Row("x", scale, name, 1, {})
        for scale in (1, 2, 3, 4)
        for name in ("Set5", "Set14", "BSD100", "Urban100")
    ]
    found = [p for label in evaluate.tables() for p in evaluate.published(rows, label)]
    assert len({p.label for p in found}) == len(evaluate.tables())
    named = {p.recipe for p in found if p.recipe} - {"tad-grey"}
    assert all((recipes / f"{name}.toml").is_file() for name in named)
    assert all(set(p.figures) <= set(evaluate.FIGURES) and p.figures for p in found)


def test_dpid_keeps_a_point_that_the_mean_loses() -> None:
    image = np.full((32, 32, 3), 40, np.uint8)
    image[13, 17] = 240
    mean, found = resize.downscale(image, 4, "box"), resize.downscale(image, 4, "dpid")
    assert found[3, 4, 0] > 150 > mean[3, 4, 0] > 40
    assert (np.delete(found.reshape(-1, 3), 3 * 8 + 4, 0) == 40).all()  # nothing else moves
    assert np.abs(resize.dpid(image, 4, 0.0).astype(int) - mean).max() <= 1
    # written as the paper's sums, for one pixel
    noise = np.random.default_rng(5).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    cells = noise.reshape(3, 4, 3, 4, 3).astype(float)
    boxes = cells.mean((1, 3))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    guide = (kernel[..., None] * boxes).sum((0, 1))  # of the middle one of nine
    cell = noise[4:8, 4:8].reshape(-1, 3).astype(float)
    weights = np.linalg.norm(cell - guide, axis=1)
    expected = (weights[:, None] * cell).sum(0) / weights.sum()
    assert np.abs(resize.dpid(noise, 4)[1, 1] - expected).max() <= 0.5


def test_perceptual_keeps_contrast(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((100, 300, 356, 556)))
    plain, found = (resize.downscale(image, 4, k).astype(float) for k in ("box", "perceptual"))
    assert found.std() > plain.std()
    assert np.abs(found.mean() - plain.mean()) < 1
    assert (resize.downscale(np.full((16, 16), 90, np.uint8), 4, "perceptual") == 90).all()
    # where HR has no contrast that LR loses, nothing is added
    steps = np.kron(np.random.default_rng(1).integers(0, 256, (8, 8)), np.ones((4, 4)))
    kept = resize.downscale(steps.astype(np.uint8), 4, "perceptual")
    assert (kept == steps[::4, ::4]).all()


def test_l0_keeps_edges(taipei: Image.Image) -> None:
    # without priors' exceptions and gradients it is the least squares of the bilinear enlargement
    rng = np.random.default_rng(2)
    smooth = np.asarray(Image.fromarray(rng.integers(60, 200, (6, 5), np.uint8)).resize((16, 12)))
    lines = [resize.imresize(np.eye(n // 2), (n // 2, n), "bilinear") for n in smooth.shape[:2]]
    least = np.linalg.pinv(lines[0]) @ smooth.astype(float) @ np.linalg.pinv(lines[1]).T
    found = resize.l0(smooth, 2, far=2.0, weight=0.0)
    assert np.abs(found - least.clip(0, 255)).max() < 0.6
    # edges stand out more than with any other, as the papers' bits say
    image = np.asarray(taipei.crop((100, 300, 356, 556)))
    steep = {
        kind: np.abs(np.diff(resize.downscale(image, 2, kind).astype(float), axis=0)).mean()
        for kind in ("bicubic", "dpid", "perceptual", "l0")
    }
    assert max(steep, key=steep.__getitem__) == "l0"
    # a grey photo has one plane; a flat photo stays flat
    grey, flat = image[:64, :64, 1], np.full((16, 20, 3), 90, np.uint8)
    assert resize.l0(grey, 4).shape == (16, 16)
    assert (resize.downscale(flat, 4, "l0") == 90).all()


def test_wrong_calls(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="car-x9 is not installed"):
        evaluate.evaluate([folder], ["car-x9"], cache=tmp_path)
    with pytest.raises(CompareError, match="unknown protocol 'vdsr': choose from car, matlab"):
        evaluate.evaluate([folder], ["box-x2"], protocol="vdsr", cache=tmp_path)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CarcodecError, match="holds no pictures"):
        evaluate.evaluate([tmp_path / "empty"], ["box-x2"], cache=tmp_path)
    for side in (16, 129, 300):
        Image.new("RGB", (400, side)).save(tmp_path / "empty" / "low.png")
        with pytest.raises(ImageError, match=f"low.png is 400×{side}, too small for box-x128"):
            evaluate.evaluate([tmp_path / "empty"], ["box-x128"], cache=tmp_path)
    assert "bicubic-x2" in evaluate.systems() and "car-x2-avif" not in evaluate.systems()

"""carcodec compare: numbers, cache, codecs of one's own, errors."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import carcodec
from carcodec import app, dial, metrics
from carcodec.compare import (
    Codec,
    Comparison,
    carcodecs,
    codecs,
    compare,
    curves,
    presets,
    standard,
    summary,
)
from carcodec.compare import run as runs
from carcodec.errors import CarcodecError, CompareError, ImageError, MetricError

TINY = Codec(  # GIF is not built in
    name="gif",
    encode=lambda image, colours: saved(image, int(colours)),
    decode=lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    qualities=(4, 16, 64, 256),
)


def saved(image: np.ndarray, colours: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).quantize(colours).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(taipei: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real pictures of 192×160 and 160×192."""
    made = tmp_path_factory.mktemp("pictures")
    (made / "sub").mkdir()
    taipei.crop((260, 300, 452, 460)).save(made / "streets.png")
    taipei.crop((100, 340, 260, 532)).save(made / "sub" / "hill.png")
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(folder: Path, cache: Path) -> Comparison:
    return compare(
        [folder],
        [*carcodecs(["avif", "jpeg2000"], ["tiny-x2"]), *standard(["jpeg", "jpeg2000"]), TINY],
        metrics=["psnr", "ssim"],
        rates=(0.1, 3),
        cache=cache,
        jobs=2,
    )


# ---- curves

RATES = [100.0, 180.0, 400.0, 1000.0]


@given(
    saved=st.floats(0.4, 1.6),
    levels=st.lists(st.floats(0.3, 5), min_size=4, max_size=4),
)
def test_bd_rate_of_a_scaled_curve_is_the_scale(saved: float, levels: list[float]) -> None:
    quality = np.cumsum(levels)
    anchor = list(zip(RATES, quality.tolist(), strict=True))
    test = [(rate * saved, level) for rate, level in anchor]
    assert curves.bd_rate(anchor, test) == pytest.approx(100 * (saved - 1), abs=0.01)
    lifted = [(rate, level + 0.7) for rate, level in anchor]
    assert curves.bd_quality(anchor, lifted) == pytest.approx(0.7, abs=1e-3)


PUBLISHED = [  # anchor, test, BD-rate
    (  # the example of the `bjontegaard` package
        [(9487.76, 40.037), (4593.60, 38.615), (2486.44, 36.845), (1358.24, 34.851)],
        [(9787.80, 40.121), (4469.00, 38.651), (2451.52, 36.970), (1356.24, 34.987)],
        -4.42,
    ),
    (  # the example that goes with most implementations of VCEG-M33
        [(686.76, 40.28), (309.58, 37.18), (157.11, 34.24), (85.95, 31.42)],
        [(893.34, 40.39), (407.80, 37.21), (204.93, 34.17), (112.75, 31.24)],
        31.40,
    ),
]


@pytest.mark.parametrize(("anchor", "test", "percent"), PUBLISHED)
def test_bd_figures_of_published_curves(
    anchor: curves.Curve, test: curves.Curve, percent: float
) -> None:
    """Published curves; VCEG-M33 itself fits one cubic polynomial, near PCHIP where both fit."""
    assert curves.bd_rate(anchor, test) == pytest.approx(percent, abs=0.1)
    (rate_a, level_a), (rate_t, level_t) = np.array(anchor).T, np.array(test).T
    low, high = max(level_a.min(), level_t.min()), min(level_a.max(), level_t.max())
    areas = []
    for rates, levels in ((rate_a, level_a), (rate_t, level_t)):
        whole = np.polyint(np.polyfit(levels, np.log(rates), 3))
        areas.append(np.polyval(whole, high) - np.polyval(whole, low))
    cubic = 100 * (math.exp((areas[1] - areas[0]) / (high - low)) - 1)
    assert cubic == pytest.approx(percent, abs=0.01)
    assert math.copysign(1, curves.bd_quality(anchor, test)) == -math.copysign(1, percent)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(10, 60)), min_size=1, max_size=40))
def test_nothing_lies_above_the_hull(points: curves.Curve) -> None:
    corners = curves.hull(points)
    assert set(corners) <= set(points)
    rates, levels = zip(*corners, strict=True)
    assert list(rates) == sorted(rates) and list(levels) == sorted(levels)
    for rate, level in points:
        if rate >= rates[0]:
            assert level <= np.interp(rate, rates, levels) + 1e-6


def test_curves_that_do_not_meet_have_no_figure() -> None:
    low, high = [(0.1, 20.0), (0.2, 22.0)], [(1.0, 40.0), (2.0, 45.0)]
    assert math.isnan(curves.bd_rate(low, high))
    assert math.isnan(curves.bd_quality(low, high))
    assert curves.crossings(low, high) == []
    assert math.isnan(curves.bd_rate(high, high, 0.1, 0.5))


def test_crossings_say_who_is_ahead() -> None:
    flat = [(0.1, 30.0), (1.0, 31.0), (10.0, 32.0)]
    steep = [(0.1, 28.0), (1.0, 31.5), (10.0, 36.0)]
    ((rate, level, above),) = curves.crossings(flat, steep)
    assert above and 0.3 < rate < 1.0 and 30 < level < 31
    assert curves.crossings(steep, flat)[0][2] is False


# ---- a comparison


def test_points_are_real_files(found: Comparison, folder: Path) -> None:
    image = runs.load(str(folder / "streets.png"))
    codec = standard(["jpeg"])[0]
    for point in found.points:
        if point.codec == "jpeg" and point.picture == "streets":
            data = codec.encode(image, point.quality)
            assert point.bytes == len(data)
            assert point.bpp == 8 * len(data) / (192 * 160)
            assert point.metrics["psnr"] == metrics.psnr(image, codec.decode(data))


def test_qualities_stop_past_the_range(found: Comparison) -> None:
    for name in found.codecs:
        for picture in found.pictures:
            rates = [bpp for bpp, _ in found.curve(name, "psnr", picture.name)]
            assert sum(rate > found.rates[1] for rate in rates) <= 1


def test_fewer_points_are_some_of_them(folder: Path, cache: Path, found: Comparison) -> None:
    few = compare([folder], [TINY], rates=(0.1, 3), cache=cache, points=3)
    assert {p.quality for p in few.points} <= {4, 64, 256} and few.points[0].quality == 4
    one = compare([folder], [TINY], rates=(0.1, 3), cache=cache, points=1)
    assert {p.quality for p in one.points} == {4}


def test_families_are_hulls_of_their_members(found: Comparison) -> None:
    # with one member each, the hulls of the storage codecs would repeat it
    assert found.families == ["carcodec"]
    for picture in ("streets", "sub/hill"):
        members = found.curve("tiny-x2-avif", "psnr", picture)
        members = members + found.curve("tiny-x2-jpeg2000", "psnr", picture)
        assert found.curve("carcodec", "psnr", picture) == curves.hull(members)
    means = found.curve("tiny-x2-avif") + found.curve("tiny-x2-jpeg2000")
    assert found.curve("carcodec") == curves.hull(means)
    with pytest.raises(CompareError, match="no codec 'carcodek' here: choose from carcodec"):
        found.curve("carcodek")


def test_a_self_ensemble_is_compared(folder: Path, cache: Path) -> None:
    both = ["car-x1-jpeg2000", "car-x1-jpeg2000+"]
    chosen = carcodecs(["jpeg2000"], both, engine="onnxruntime:fp32")
    assert [c.name for c in chosen] == both and chosen[1].title.endswith(", self-ensemble")
    one = compare([folder], [*chosen, *standard(["jpeg2000"])], cache=cache, points=4)
    assert set(both) < set(one.codecs) and one.bd_rate(both[0], "psnr")[both[1]].mean < -1
    with pytest.raises(ImageError, match="car-x2-avif"):
        carcodecs(["avif"], ["car-x2-avif+"])
    code, text = run(str(folder), "--models", "car-x2+", "--storages", "png")
    assert code == 1 and "the small image of car-x2 " in text


def test_the_dial_is_a_curve_of_its_own(
    folder: Path, cache: Path, taipei: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --quality alone makes, beside the hull that takes the best model for each picture."""
    part = np.asarray(taipei.crop((260, 300, 452, 460)))
    turned = carcodecs(["avif", "jpeg2000"])[-1]
    assert turned.name == codecs.DIAL
    assert codecs.DIAL not in [c.name for c in carcodecs(["jpeg2000"])]  # auto is AVIF
    for quality in (turned.qualities[0], dial.default_quality(), turned.qualities[-1]):
        usual = carcodec.encode(Image.fromarray(part), quality=quality, threads=1).data
        assert turned.encode(part, quality) == usual
    one = compare([folder], [turned, *standard(["jpeg"])], cache=cache, points=3, rates=(0.05, 9))
    assert (one.ours, one.anchors, one.families) == ([codecs.DIAL], ["jpeg"], [])
    Console(file=sys.stdout, width=100).print(*summary.lines(one))
    assert "carcodec, --quality" in capsys.readouterr().out


def test_mean_of_a_codec_is_by_quality(found: Comparison) -> None:
    points = [p for p in found.points if p.codec == "gif" and p.quality == 16]
    expected = np.mean([p.bpp for p in points]), np.mean([p.metrics["psnr"] for p in points])
    assert len(points) == 2
    assert any(p == pytest.approx(expected) for p in found.curve("gif"))


def test_bd_rate_is_the_mean_over_pictures(found: Comparison) -> None:
    delta = found.bd_rate("jpeg", "psnr")["jpeg2000"]
    assert set(delta.by_picture) == {"streets", "sub/hill"}
    assert delta.mean == pytest.approx(np.mean(list(delta.by_picture.values())))
    assert delta.mean < -10  # JPEG 2000 takes fewer bits than JPEG
    assert found.bd_psnr("jpeg", "psnr")["jpeg2000"].mean > 0
    back = found.bd_rate("jpeg2000", "psnr")["jpeg"]
    for name, value in delta.by_picture.items():
        assert (1 + value / 100) * (1 + back.by_picture[name] / 100) == pytest.approx(1, abs=1e-6)


def test_similarities_are_compared_in_decibels(found: Comparison) -> None:
    point = next(p for p in found.points if p.codec == "jpeg" and p.picture == "streets")
    curve = dict(found.curve("jpeg", "ssim", "streets"))
    assert curve[point.bpp] == pytest.approx(-10 * math.log10(1 - point.metrics["ssim"]))


def test_a_metric_of_ones_own_keeps_its_direction(folder: Path, cache: Path) -> None:
    distance = metrics.Metric(
        "mse", "MSE", lambda a, b: float(((a.astype(float) - b) ** 2).mean()), falling=True
    )
    own = compare([folder], [TINY, *standard(["jpeg2000"])], metrics=[distance], cache=cache)
    for name in own.codecs:
        levels = [level for _, level in own.curve(name, "mse", "streets")]
        assert levels == sorted(levels) and max(levels) <= 0
    assert own.bd_rate("gif")["jpeg2000"].mean < 0  # as by PSNR


def test_rows_make_a_frame_and_json_comes_back(found: Comparison) -> None:
    frame = pandas.DataFrame(found.rows())
    assert len(frame) == len(found.points) and {"bpp", "psnr", "ssim"} <= set(frame.columns)
    assert Comparison.from_json(found.to_json()) == found
    for broken in ("{}", "[]", "no", '{"format": 1}'):
        with pytest.raises(CompareError, match=r"not a comparison's report\.json"):
            Comparison.from_json(broken)
    with pytest.raises(CompareError, match="newer carcodec"):
        Comparison.from_json('{"format": 2}')


def test_a_second_run_measures_nothing(folder: Path, cache: Path, found: Comparison) -> None:
    calls = []

    def encode(image: np.ndarray, quality: float) -> bytes:
        calls.append(quality)
        return TINY.encode(image, quality)

    counting = Codec("gif", encode, TINY.decode, TINY.qualities)
    again = compare([folder], [counting], metrics=["psnr"], rates=(0.1, 3), cache=cache)
    assert not calls
    assert again.points == tuple(
        Comparison.from_json(found.to_json()).points[i]
        for i, p in enumerate(found.points)
        if p.codec == "gif"
    ) or [p.bytes for p in again.points] == [p.bytes for p in found.points if p.codec == "gif"]
    # another metric is added, a codec run another way starts afresh
    compare([folder], [counting], metrics=["psnr", "psnr-y"], rates=(0.1, 3), cache=cache)
    assert len(calls) == len(again.points)
    other = Codec("gif", encode, TINY.decode, TINY.qualities, how="dithered")
    compare([folder], [other], metrics=["psnr"], rates=(0.1, 3), cache=cache)
    assert len(calls) == 2 * len(again.points)


def test_a_report_has_the_metrics_asked_for_whatever_is_remembered(
    folder: Path, tmp_path: Path
) -> None:
    run = {"rates": (0.1, 3), "points": 2, "cache": tmp_path / "cache"}
    compare([folder], [TINY], metrics=["psnr", "psnr-y"], **run)
    both = compare([folder], [TINY, *standard(["jpeg"])], metrics=["psnr"], **run)
    assert {tuple(point.metrics) for point in both.points} == {("psnr",)}
    both.report(tmp_path / "report")
    columns = (tmp_path / "report" / "report.csv").read_text().splitlines()[0].split(",")
    assert "psnr" in columns and "psnr-y" not in columns


def test_jobs_change_no_number(folder: Path, tmp_path: Path, found: Comparison) -> None:
    one = compare([folder], standard(["jpeg", "jpeg2000"]), rates=(0.1, 3), jobs=1, cache=tmp_path)
    several = [(p.bytes, p.metrics["psnr"]) for p in found.points if p.codec.startswith("jpeg")]
    assert [(p.bytes, p.metrics["psnr"]) for p in one.points] == several


def test_a_run_that_fails_keeps_what_it_has(folder: Path, tmp_path: Path) -> None:
    def encode(image: np.ndarray, quality: float) -> bytes:
        if quality > 16:
            raise MemoryError("too many colours")
        return TINY.encode(image, quality)

    failing = Codec("gif", encode, TINY.decode, TINY.qualities)
    with pytest.raises(CompareError, match=r"gif failed on .* at quality 64: too many colours"):
        compare([folder], [failing], rates=(0.1, 3), cache=tmp_path, jobs=1)
    kept = [list(json.loads(path.read_text())) for path in tmp_path.rglob("*.json")]
    assert ["4.0", "16.0"] in kept


@pytest.mark.parametrize("name", ["jpeg", "jpeg-444", "jpeg2000", "webp", "avif", "avif-444",
                                  "avif-tuned", "jpegxl"])  # fmt: skip
def test_standard_codecs_trade_bytes_for_quality(name: str, folder: Path) -> None:
    image = runs.load(str(folder / "streets.png"))
    (codec,) = standard([name])
    assert codec.version().strip() and codec.how
    sizes, levels = [], []
    for quality in (codec.qualities[2], codec.qualities[-3]):
        data = codec.encode(image, quality)
        restored = codec.decode(data)
        assert restored.shape == image.shape and restored.dtype == np.uint8
        sizes.append(len(data))
        levels.append(metrics.psnr(image, restored))
    assert sizes[0] < sizes[1] and levels[0] < levels[1]


# ---- pictures


def test_pictures_become_eight_bit_rgb(taipei: Image.Image, tmp_path: Path) -> None:
    part = taipei.crop((0, 0, 40, 30))
    part.convert("L").save(tmp_path / "grey.png")
    part.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.asarray(part.convert("L"), np.uint16) * 257).save(tmp_path / "deep.png")
    grey = runs.load(str(tmp_path / "grey.png"))
    assert grey.shape == (30, 40, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert (runs.load(str(tmp_path / "alpha.png")) == np.asarray(part)).all()
    assert (runs.load(str(tmp_path / "deep.png")) == grey).all()


def test_large_pictures_are_compared_by_their_middle(folder: Path, cache: Path) -> None:
    found = compare(
        [folder / "streets.png"], [TINY], rates=(0.1, 9), points=1, side=100, cache=cache
    )
    (picture,) = found.pictures
    assert (picture.width, picture.height, picture.left, picture.top) == (100, 100, 46, 30)
    part = runs.load(str(folder / "streets.png"))[30:130, 46:146]
    assert (runs.pixels(picture) == part).all()
    assert found.points[0].bytes == len(saved(part, 4))
    assert found.notes == ("streets: the middle 100×100 pixels of 192×160 were compared",)


def test_what_cannot_be_compared_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 300)).save(tmp_path / "narrow.png")
    codec = standard(["jpeg"])
    for path, message in {
        tmp_path / "empty": "holds no pictures",
        tmp_path / "broken.png": "broken.png",
        tmp_path / "narrow.png": "8×300 pixels: at least 16",
        tmp_path / "missing.png": "missing.png",
    }.items():
        with pytest.raises(ImageError, match=message):
            compare([path], codec, cache=tmp_path)
    complaints: list[CarcodecError] = []
    found = compare(
        [tmp_path / "broken.png", folder / "streets.png"],
        codec, cache=tmp_path / "cache", complain=complaints.append,
    )  # fmt: skip
    assert len(complaints) == 1 and len(found.pictures) == 1 and "broken.png" in found.notes[0]
    with pytest.raises(CompareError, match="none of the pictures"):
        compare([tmp_path / "broken.png"], codec, cache=tmp_path, complain=complaints.append)


def test_wrong_settings_are_said(folder: Path, tmp_path: Path) -> None:
    jpeg = standard(["jpeg"])
    with pytest.raises(CompareError, match="unknown codec 'jpeq': choose from jpeg,"):
        standard(["jpeq"])
    with pytest.raises(CompareError, match="two codecs are called jpeg"):
        compare([folder], jpeg * 2, cache=tmp_path)
    with pytest.raises(CompareError, match="no codec"):
        compare([folder], [], cache=tmp_path)
    with pytest.raises(CompareError, match="rising"):
        compare([folder], jpeg, rates=(2, 1), cache=tmp_path)
    with pytest.raises(CompareError, match="no model is trained for png"):
        carcodecs(["png"])
    with pytest.raises(MetricError, match="unknown metric 'psrn': choose one of psnr, psnr-y"):
        compare([folder], jpeg, metrics=["psrn"], cache=tmp_path)
    with pytest.raises(MetricError, match="lpips needs network weights"):
        compare([folder], jpeg, metrics=["lpips"], cache=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(CompareError, match="name another folder with --cache"):
        compare([folder], jpeg, cache=blocked)


# ---- the command line


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app.app, ["compare", *arguments], catch_exceptions=True)
    if isinstance(result.exception, CarcodecError):
        return 1, str(result.exception)
    return result.exit_code, result.output


def test_summary_names_everything(found: Comparison) -> None:
    console = Console(width=160, file=io.StringIO())
    for line in summary.lines(found, branches=True):
        console.print(line)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "BD-rate, %, at equal PSNR, RGB, 0.1–3 bpp, 2 pictures" in text
    assert "SSIM, Y" in text and "tiny-x2 v1, JPEG 2000" in text and "gif" in text


def test_summary_fits_a_terminal_of_80_columns(found: Comparison) -> None:
    console = Console(width=80, file=io.StringIO())
    for line in summary.lines(found):
        console.print(line)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == len(found.metrics) * len(found.anchors)
    for row, anchor in zip(rows, [*found.anchors] * len(found.metrics), strict=True):
        assert row[1].strip() == found.title(anchor)
    for metric, row in zip(found.metrics, rows[:: len(found.anchors)], strict=True):
        deltas = found.bd_rate(found.anchors[0], metric)
        assert row[2].split()[0] == f"{deltas[found.ours[0]].mean:+.1f}"
    assert "…" not in text


def test_command_line_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    picture = str(folder / "streets.png")
    assert run(picture, "--rates", "2")[0] == 2
    assert run(picture, "--rates", "2:1")[0] == 2
    assert run(picture, "--view", "none")[0] == 2
    assert run(picture, "--against", "jpeq")[0] == 1
    assert run(picture, "--preset", "table9")[1].startswith("unknown preset 'table9'")
    (tmp_path / "file").write_bytes(b"")
    code, text = run(picture, "-o", str(tmp_path / "file" / "report"))
    assert code == 1 and "cannot be written" in text


def test_interrupting_keeps_finished_work(taipei: Image.Image, tmp_path: Path) -> None:
    taipei.save(tmp_path / "taipei.png")
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "carcodec", "compare", str(tmp_path / "taipei.png")]
    command += ["--against", "jpeg,avif", "--models", "tiny-x2", "--cache", str(cache)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    while not list(cache.rglob("*.json")) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted; what is finished is kept in" in said.replace("\n", " ")
    assert "Traceback" not in said
    for path in cache.rglob("*.json"):
        assert json.loads(path.read_text())


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_presets_run_on_installed_models(preset: str, folder: Path, tmp_path: Path) -> None:
    sheets = presets.run(preset, [str(folder)], ["tiny-x2"])
    for sheet in sheets:
        assert all(len(row) == len(sheet.columns) for row in sheet.rows)
    if preset == "rsrnet-table4":
        (sheet,) = sheets
        line = dict(zip(sheet.columns, sheet.rows[0], strict=False))
        small = line["tiny-x2 + JPEG 2000: bytes"]
        assert isinstance(small, float | int) and 0 < small < 192 * 160 / 4 * 1.1
        assert sheet.rows[-1][0] == "mean" and "0.9300" in sheet.notes[-1]
    else:
        bits = {row[0]: row[1] for row in sheets[0].rows}
        assert set(bits) == {
            *(f"{kind}-x2" for kind in ("box", "lanczos3", "bicubic", "perceptual", "dpid", "l0")),
            "tiny-x2",
        }
        for value in bits.values():
            assert isinstance(value, float) and 8 < value < 24  # of a dense street at 96×80
        assert all(row[2] is None for row in sheets[0].rows)  # the paper has other pictures
    presets.save(sheets, tmp_path)
    assert json.loads((tmp_path / f"{preset}.json").read_text())[0]["title"] == sheets[0].title
    rows = list(csv.reader((tmp_path / f"{preset}.csv").read_text().splitlines()))
    assert rows[1] == list(sheets[0].columns)

"""The quality dial and "auto": what is chosen, that it climbs, and that effort never harms."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import carcodec
from carcodec import dial, metrics, refine, zoo
from carcodec.dial import Setting, settle
from carcodec.errors import MissingDependencyError, ModelNotFoundError, StorageError
from carcodec.rate import Target, meet

ENGINE = {"engine": "onnxruntime"}


@pytest.fixture
def part(taipei: Image.Image) -> Image.Image:
    return taipei.crop((240, 300, 496, 460))


@pytest.mark.parametrize(
    ("asked", "setting"),
    [
        ({"quality": None}, Setting("tad-x2-lossless", "jpegxl", None)),
        ({"quality": None, "scale": 3}, Setting("rrnet-x3", "jpegxl", None)),
        ({"quality": None, "scale": 4}, Setting("car-x4", "jpegxl", None)),
        ({"storage_codec": "png"}, Setting("tad-x2-lossless", "png", None)),
        ({"storage_codec": "WebP", "quality": 40.0}, Setting("car-x2", "webp", 40.0)),
        ({"model": "car-x4"}, Setting("car-x4", "jpegxl", None)),
        ({"model": "car-x4", "quality": 70}, Setting("car-x4", "jpegxl", 70)),
        ({"model": "car-x2-avif"}, Setting("car-x2-avif", "avif", 50)),
        ({"model": "car-x2-avif", "quality": 33}, Setting("car-x2-avif", "avif", 33)),
        ({"model": "car-x2-avif", "quality": None}, Setting("car-x2-avif", "avif", None)),
        ({"model": "car-x2-avif", "storage_codec": "png"}, Setting("car-x2-avif", "png", None)),
        ({"scale": 2, "quality": 33}, Setting("car-x2-avif", "avif", 33)),
        ({"scale": 1, "quality": None}, Setting("car-x1-avif", "jpegxl", None)),
        ({"scale": 4}, Setting("car-x4-avif", "avif", 50)),
    ],
)
def test_what_is_left_open_is_chosen(asked: dict[str, object], setting: Setting) -> None:
    assert settle(**asked) == setting  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", ["avif", "jpeg2000", "auto"])
def test_the_dial_climbs_through_the_scales(storage: str) -> None:
    walk = [settle(storage_codec=storage, quality=q / 4) for q in range(401)]
    assert {s.storage for s in walk} == {"avif" if storage == "auto" else storage}
    scales = [zoo.find(s.model).scale for s in walk]
    assert scales == sorted(scales, reverse=True)
    assert len(set(scales)) > 1
    assert zoo.find(settle(storage_codec=storage).model).scale == 2
    for before, after in itertools.pairwise(walk):
        assert before.quality is not None
        assert after.quality is not None
        assert before.model != after.model or before.quality <= after.quality
    assert settle(storage_codec=storage) == settle(
        storage_codec=storage, quality=dial.default_quality(storage)
    )


@pytest.mark.parametrize("storage", ["avif", "jpeg2000"])
def test_where_a_picture_needs_it_the_dial_has_full_size_alone(storage: str) -> None:
    walk = [settle(storage_codec=storage, quality=q, full_size=True) for q in range(101)]
    assert {s.model for s in walk} == {f"car-x1-{storage}"}
    qualities = [s.quality or 0.0 for s in walk]
    assert qualities == sorted(qualities)
    lowest = settle(storage_codec=storage, quality=0).quality
    assert qualities[0] == lowest
    usual = [settle(storage_codec=storage, quality=q) for q in range(101)]
    assert all(s == t for s, t in zip(walk, usual, strict=True) if t.model == s.model)
    # what is asked for is not overruled
    assert settle(scale=2, full_size=True) == settle(scale=2)
    assert settle(model="car-x2", full_size=True) == settle(model="car-x2")
    assert settle(quality=None, full_size=True) == settle(quality=None)


@pytest.mark.parametrize("storage", ["avif", "jpeg2000"])
def test_more_quality_is_more_bytes_and_a_better_photo(storage: str, part: Image.Image) -> None:
    scores: list[tuple[int, float]] = []
    for quality in range(0, 101, 20):
        data = carcodec.encode(part, quality=quality, storage_codec=storage, **ENGINE).data
        restored = np.asarray(carcodec.decode(data, **ENGINE))
        scores.append((len(data), metrics.psnr(np.asarray(part), restored)))
    for before, after in itertools.pairwise(scores):
        assert before[0] < after[0]
        assert before[1] < after[1]


def _own(folder: Path, like: zoo.ModelCard, names: tuple[str, ...], old: str, new: str) -> None:
    """Models of other names, with one change to the card."""
    for name in names:
        copy = folder / f"{name}-v1"
        shutil.copytree(like.folder, copy)
        card = (copy / "card.toml").read_text().replace("tiny-x2", name)
        (copy / "card.toml").write_text(card.replace(old, new))


def test_models_of_ones_own_join(
    tmp_path: Path, tiny: zoo.ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = ("own-x2", "own-x2-hq", "own-x2-fast")
    _own(tmp_path, tiny, forms, "{ batch", '{ codec = "webp", batch')
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path))
    assert dial.branches("webp") == ["own-x2"]  # the others are taken by name only
    assert settle(storage_codec="webp") == Setting("own-x2", "webp", 50)
    for name in forms:
        assert settle(model=name) == Setting(name, "webp", 50)


@pytest.mark.parametrize("form", ["hq", "fast"])
def test_a_form_of_a_model_is_no_stopgap(
    form: str, tmp_path: Path, tiny: zoo.ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own(tmp_path, tiny, (f"a-x5-{form}", "b-x5"), "scale = 2", "scale = 5")
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path))
    assert settle(scale=5, quality=None).model == "b-x5"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(StorageError, match="from 0 to 100, not 101"):
        settle(quality=101)
    with pytest.raises(StorageError, match="unknown storage codec 'gif'"):
        settle(storage_codec="gif")
    with pytest.raises(ModelNotFoundError, match="car-x9"):
        settle(model="car-x9")
    with pytest.raises(StorageError, match="effort must be from 0 to 9"):
        carcodec.encode(np.zeros((8, 8, 3), np.uint8), effort=10)


@pytest.mark.parametrize("bpp", [0.3, 1.5])
def test_a_target_takes_the_best_scale(bpp: float, part: Image.Image) -> None:
    target = Target("bytes", bpp * part.width * part.height / 8)
    original = np.asarray(part)

    def score(**options: object) -> float:
        data = meet(part, target, **ENGINE, **options).encoded.data  # type: ignore[arg-type]
        assert len(data) <= target.value
        return metrics.psnr(original, np.asarray(carcodec.decode(data, **ENGINE)))

    singles = [score(model=name) for name in dial.branches("avif")]
    assert len(singles) > 1
    assert score() == max(singles)


def test_effort_never_makes_it_worse(part: Image.Image) -> None:
    original = np.asarray(part)
    scores = []
    for effort in (5, 6, 7):  # AVIF itself is at the same speed
        data = carcodec.encode(part, quality=30, effort=effort, **ENGINE).data
        psnr = metrics.psnr(original, np.asarray(carcodec.decode(data, **ENGINE)))
        scores.append((len(data), psnr))
    for before, after in itertools.pairwise(scores):
        assert after[0] <= before[0]
        assert after[1] >= before[1]
    # gradient steps find something here; often they do not, and nothing is changed
    size = 1536
    alone, best = (
        meet(part, Target("bytes", size), model="car-x4-avif", effort=effort, **ENGINE)
        for effort in (6, 7)
    )
    assert 0.97 * size <= len(best.encoded.data) <= size
    gains = [
        metrics.psnr(original, np.asarray(carcodec.decode(t.encoded.data, **ENGINE)))
        for t in (alone, best)
    ]
    assert gains[1] > gains[0]


def test_refinement_without_torch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"carcodec\[torch\].*effort up to 6"):
        refine.require()

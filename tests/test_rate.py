"""Targets: a file size or a quality is met by searching real encodes, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import carcodec
from carcodec import coarseness, codec, container, metrics, rate, storage
from carcodec.errors import CarcodecError, StorageError
from carcodec.rate import Target, TargetError, Trial

LOSSY = ["jpeg2000", "jpegxl", "avif", "webp"]
OPTIONS = {"model": "tiny-x2", "engine": "onnxruntime"}


@pytest.fixture
def part(taipei: Image.Image) -> Image.Image:
    return taipei.crop((240, 300, 496, 460))


@pytest.mark.parametrize("stored", LOSSY)
def test_bytes_are_met_from_below(stored: str, part: Image.Image) -> None:
    for bpp in (0.2, 0.3, 0.4, 0.55, 1.0):
        size = bpp * part.width * part.height / 8
        found = rate.meet(part, Target("bytes", size), storage_codec=stored, **OPTIONS)
        assert 0.97 * size <= len(found.encoded.data) <= size
        assert carcodec.decode(found.encoded.data).size == part.size
        assert found.quality is not None
        assert found.encoded.header.quality == round(found.quality)


@pytest.mark.parametrize("effort", [3, 4])
def test_a_step_is_found_out_once(
    effort: int, part: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as storing does, and a search for bytes does not need it on its way."""
    asked: list[float] = []
    real = coarseness.told

    def told(kind: str, codec: storage.StorageCodec, image: object, quality: float, *rest) -> int:  # type: ignore[no-untyped-def]
        asked.append(quality)
        return real(kind, codec, image, quality, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(coarseness, "told", told)
    run = {"model": "car-x1-jpeg2000", "storage_codec": "jpeg2000", "effort": effort}
    found = rate.meet(part, Target("bytes", 2500), **run)  # type: ignore[arg-type]
    assert asked == [found.quality]
    assert found.encoded.data == codec.encode(part, quality=found.quality, **run).data  # type: ignore[arg-type]
    assert 0.97 * 2500 <= len(found.encoded.data) <= 2500


def test_between_two_qualities_of_avif_bytes_buy_quality(part: Image.Image) -> None:
    prepared = codec.prepare(part, **OPTIONS)  # type: ignore[arg-type]
    coarse, fine = (codec.store(prepared, "avif", quality, 1) for quality in (20, 22))
    size = 0.5 * (len(coarse.data) + len(fine.data))
    assert len(coarse.data) < 0.97 * size  # is not near enough
    found = rate.meet(part, Target("bytes", size), storage_codec="avif", threads=1, **OPTIONS)  # type: ignore[arg-type]

    def error(data: bytes) -> float:
        stored = codec.stored_image(container.read(data)).astype(float)
        return float(np.square(stored - prepared.small).mean())

    assert error(fine.data) < error(found.encoded.data) < error(coarse.data)


@pytest.mark.parametrize(("kind", "value", "over"), [("psnr", 22.5, 0.1), ("ssim", 0.7, 0.005)])
@pytest.mark.parametrize("stored", LOSSY)
def test_quality_is_met_with_little_to_spare(
    stored: str, kind: str, value: float, over: float, part: Image.Image
) -> None:
    found = rate.meet(part, Target(kind, value), storage_codec=stored, **OPTIONS)  # type: ignore[arg-type]
    restored = np.asarray(carcodec.decode(found.encoded.data, engine="onnxruntime"))
    measure = metrics.psnr if kind == "psnr" else metrics.ssim
    assert found.score == measure(np.asarray(part), restored)
    assert value <= found.score <= value + over


def test_a_codec_that_no_model_was_trained_for_gets_car(part: Image.Image) -> None:
    # TAD, which --lossless takes, hides detail where a lossy codec loses it
    found = rate.meet(part, Target("bytes", 2500), storage_codec="webp", engine="onnxruntime")
    assert found.encoded.header.model == "car-x2"
    assert not found.encoded.header.lossless_lr


def test_a_generous_target_gets_lossless(part: Image.Image) -> None:
    found = rate.meet(part, Target("bytes", 10**7), **OPTIONS)
    assert found.quality is None
    assert found.encoded.header.lossless_lr


def test_targets_out_of_reach_name_the_nearest(part: Image.Image) -> None:
    with pytest.raises(TargetError, match=r"reaches 90 bytes: the smallest is [\d,]+ bytes"):
        rate.meet(part, Target("bytes", 90), **OPTIONS)
    with pytest.raises(TargetError, match=r"reaches 60 dB PSNR: the best is 2\d\.\d+ dB PSNR"):
        rate.meet(part, Target("psnr", 60), **OPTIONS)
    with pytest.raises(StorageError, match="lossless only"):
        rate.meet(part, Target("bytes", 5000), storage_codec="png", **OPTIONS)
    assert issubclass(TargetError, CarcodecError)


def test_every_quality_is_tried_once(part: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[object, ...]] = []
    real = codec.store

    def counting(*arguments: object, **options: object) -> codec.Encoded:
        tried.append(arguments[1:])
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(codec, "store", counting)
    shares: list[float] = []
    found = rate.meet(part, Target("bytes", 4000), progress=shares.append, **OPTIONS)
    assert isinstance(found, Trial)
    assert len(tried) == len(set(tried)) <= 14
    assert 0 < sum(effort == storage.DEFAULT_EFFORT for *_, effort in tried) <= 5
    assert shares == sorted(shares)
    assert shares[-1] == 1

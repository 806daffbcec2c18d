"""The whole way: fidelity, storages, lies in headers, missing models, golden files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import carcodec
from carcodec import codec, container, ensemble, metrics, pixels, storage, zoo
from carcodec.errors import (
    CarcodecError,
    ImageError,
    LimitError,
    ModelNotFoundError,
    StorageError,
)
from carcodec.zoo import shelf

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
Psnr = Callable[[Image.Image, Image.Image], float]


@pytest.mark.parametrize(
    ("model", "gain"),
    [
        ("car-x2", 1.0),
        ("tad-x2", 1.8),
        ("tad-x2-lossless", 1.8),
        ("rrnet-x2", 1.8),
        ("car-x3", 0.7),
        ("rrnet-x3", 1.5),
        ("car-x4", 0.5),
        ("rrnet-x4", 0.7),
        ("tad-x4", 0.7),
        ("tad-recursive-x2", 1.8),
        ("tad-x8", 0.7),
    ],
)
def test_shipped_models_beat_bicubic(
    model: str, gain: float, taipei: Image.Image, peak_signal: Psnr
) -> None:
    image = taipei.crop((240, 320, 496, 512))
    encoded = carcodec.encode(image, model=model)
    found = peak_signal(image, carcodec.decode(encoded.data))
    small = image.resize(encoded.header.lr_size, Image.Resampling.BICUBIC)
    bicubic = peak_signal(image, small.resize(image.size, Image.Resampling.BICUBIC))
    assert found > bicubic + gain


@pytest.mark.parametrize(
    "model",
    [
        "car-x2",
        "tad-x2",
        "tad-x2-lossless",
        "rrnet-x2",
        "car-x3",
        "rrnet-x3",
        "car-x4",
        "rrnet-x4",
        "tad-x4",
        "tad-recursive-x2",
        "tad-x8",
    ],
)
def test_the_thumbnail_looks_like_the_photo(
    model: str, taipei: Image.Image, peak_signal: Psnr
) -> None:
    small = carcodec.thumbnail(carcodec.encode(taipei.crop((240, 320, 496, 512)), model=model).data)
    bicubic = taipei.crop((240, 320, 496, 512)).resize(small.size, Image.Resampling.BICUBIC)
    assert peak_signal(small, bicubic) > 22


def test_a_grey_file_gives_its_colours_back(taipei: Image.Image, peak_signal: Psnr) -> None:
    image = taipei.crop((240, 320, 495, 511))
    data = carcodec.encode(image, model="tad-grey").data
    assert peak_signal(image, carcodec.decode(data)) > 28  # neon lights: photos have 40
    grey = carcodec.thumbnail(data)
    assert grey.mode == "L" and grey.size == image.size
    assert peak_signal(grey, image.convert("L")) > 28


@pytest.mark.parametrize(
    "model",
    ["car-x1-avif", "car-x1-jpeg2000", "car-x2-avif", "car-x3", "car-x2-bicubic", "tad-x8"],
)
def test_a_region_is_that_part_of_the_whole(model: str, taipei: Image.Image) -> None:
    image = taipei.crop((240, 320, 495, 511))
    made_for = zoo.find(model).storage
    data = carcodec.encode(
        image, model=model, storage_codec=made_for or "png", quality=40 if made_for else None
    ).data
    run = {"engine": "onnxruntime:fp32"}
    whole = carcodec.decode_array(data, **run).astype(int)
    for region in ((0, 0, 40, 30), (107, 61, 190, 122), (240, 180, 255, 191), (3, 0, 4, 191)):
        left, top, right, bottom = region
        part = carcodec.decode_array(data, region=region, **run)
        cut = whole[top:bottom, left:right]
        assert part.shape == cut.shape
        assert np.abs(part - cut).max() <= 1
        assert (part != cut).mean() < 0.01


def test_a_region_of_alpha_and_16_bits() -> None:
    for name in ("la", "rgba", "rgb16", "1"):
        data = (GOLDEN / f"mode-{name}.carimg").read_bytes()
        whole = carcodec.decode_array(data, engine="onnxruntime:fp32").astype(int)
        part = carcodec.decode_array(data, region=(5, 7, 32, 20), engine="onnxruntime:fp32")
        assert part.shape == whole[7:20, 5:32].shape
        assert np.abs(part - whole[7:20, 5:32]).max() <= 1
    image = carcodec.decode((GOLDEN / "mode-rgba.carimg").read_bytes(), region=(5, 7, 32, 20))
    assert image.size == (27, 13) and image.mode == "RGBA"


def test_an_old_file_restored_by_a_later_model(taipei: Image.Image) -> None:
    """The same stored image, another upscaler: nearer to the photo."""
    old = next(c for c in zoo.installed() if (c.name, c.version) == ("car-x2-avif", 3))
    photo = taipei.crop((240, 320, 432, 464))
    file = container.read(carcodec.encode(photo, model="car-x2-avif", quality=50).data)
    header = dataclasses.replace(file.header, model_version=3, model_digest=old.short_digest)
    data = container.write(dataclasses.replace(file, header=header))
    run = {"engine": "onnxruntime:fp32"}
    own, newest, named = (
        carcodec.decode_array(data, model=model, **run) for model in ("", "newest", "car-x2-avif")
    )
    image = np.asarray(photo)
    assert np.array_equal(newest, named) and not np.array_equal(newest, own)
    assert metrics.psnr(image, newest) > metrics.psnr(image, own)
    part = carcodec.decode_array(data, model="newest", region=(20, 30, 90, 100), **run)
    assert np.abs(part - newest[30:100, 20:90].astype(int)).max() <= 1
    # a model that made the small image otherwise, or knows another codec, is refused
    for other in ("car-x2", "car-x2-jpeg2000", "car-x1-avif"):
        with pytest.raises(ImageError, match=f"{other} version .* what is: car-x2-avif"):
            carcodec.decode(data, model=other)
    with pytest.raises(ModelNotFoundError, match="nothing-x9 is not installed"):
        carcodec.decode(data, model="nothing-x9")
    # of one that has no later version or small network, these are its own
    grey = carcodec.encode(photo, model="tad-grey").data
    for asked in ("newest", "fast"):
        assert np.array_equal(
            carcodec.decode_array(grey, model=asked, **run), carcodec.decode_array(grey, **run)
        )


@pytest.mark.parametrize(
    ("model", "quality", "share"), [("car-x2-avif", 50, 0.3), ("car-x1-avif", 30, 0.5)]
)
def test_a_file_restored_quickly(
    model: str, quality: float, share: float, taipei: Image.Image
) -> None:
    """By a small network, which brings most of what the file's own does."""
    photo = taipei.crop((240, 320, 432, 464))
    encoded = carcodec.encode(photo, model=model, quality=quality)
    run = {"engine": "onnxruntime:fp32"}
    own, fast, named = (
        carcodec.decode_array(encoded.data, model=asked, **run)
        for asked in ("", "fast", f"{model}-fast")
    )
    assert np.array_equal(fast, named)
    small = carcodec.thumbnail(encoded.data)
    plain = np.asarray(small.resize(photo.size, Image.Resampling.BICUBIC))
    image = np.asarray(photo)
    best, quick, least = (metrics.psnr(image, found) for found in (own, fast, plain))
    assert 0 < best - quick < share * (best - least)
    sizes = [zoo.find(name).upscaler.parameters or 0 for name in (f"{model}-fast", model)]
    assert 0 < sizes[0] < sizes[1] / 4
    # encoded by that name, it is restored by it
    again = carcodec.encode(photo, model=f"{model}-fast", quality=quality)
    assert np.array_equal(carcodec.decode_array(again.data, **run), fast)


@pytest.mark.parametrize(
    ("model", "gain"),
    [
        ("car-x1-avif", 0.02),
        ("car-x1-jpeg2000", 0.05),
        ("car-x1-jpeg2000-hq", 0.07),
        ("srcnn-bicubic-x3", 0.02),
    ],
)
@pytest.mark.parametrize("size", [(160, 128), (161, 127)])
def test_a_self_ensemble_is_nearer_to_the_photo(
    model: str, gain: float, size: tuple[int, int], taipei: Image.Image
) -> None:
    """Each view alone is as good as any: what mirroring moves is moved to where it was."""
    image = taipei.crop((240, 320, 240 + size[0], 320 + size[1]))
    card = zoo.find(model)
    encoded = codec.encode(
        image,
        model=model,
        storage_codec=card.storage or "png",
        quality=30 if card.storage else None,
    )
    run = {"engine": "onnxruntime:fp32"}
    photo = np.asarray(image.convert("L" if card.grey else "RGB"))
    plain, mean = (
        metrics.psnr(photo, carcodec.decode_array(encoded.data, self_ensemble=asked, **run))
        for asked in (False, True)
    )
    assert mean > plain + gain
    file = container.read(encoded.data)
    single: list[float] = []

    def restored(view: storage.Pixels, whole: tuple[int, int], report: codec.Report) -> np.ndarray:
        told = None if encoded.quality is None else file.header.quality
        found = codec.upscale(view, whole, 8, card, **run, quality=told)
        across, down = photo.shape[1::-1]
        views = [
            v[::a, ::b] for v in (found, found.swapaxes(0, 1)) for a in (1, -1) for b in (1, -1)
        ]
        # only the way back of this view makes the photo
        fits = [v[:down, :across] for v in views if v.shape[0] >= down and v.shape[1] >= across]
        single.append(max(metrics.psnr(photo, np.ascontiguousarray(v)) for v in fits))
        return found

    small = codec.stored_image(file)
    stored = storage.by_number(file.header.storage)
    ensemble.averaged(restored, small, image.size, card, stored, lambda share: None)
    assert len(single) == 8 and max(single) - min(single) < 0.25


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([0, 3]),
    name=st.sampled_from(["jpeg2000", "avif"]),
    bits=st.sampled_from([8, 16]),
)
def test_views_come_back_to_where_they_were(
    size: tuple[int, int], channels: int, name: str, bits: int
) -> None:
    card, stored = zoo.find("car-x1-jpeg2000"), storage.by_name(name)
    shape = (size[1], size[0], 3)[: 2 + bool(channels)]
    random = np.random.default_rng(size[0] * 10 + size[1])
    small = random.integers(0, 256, shape, np.uint8)
    shares: list[float] = []
    shapes: list[tuple[int, ...]] = []

    def same(view: storage.Pixels, whole: tuple[int, int], report: codec.Report) -> pixels.Plane:
        report(1.0)
        assert (whole[1], whole[0]) == view.shape[:2]
        shapes.append(view.shape[:2])
        return view.astype(np.uint16) * 257 if bits == 16 else view

    found = ensemble.averaged(same, small, size, card, stored, shares.append)
    assert np.array_equal(found, small.astype(np.uint16) * 257 if bits == 16 else small)
    assert shares == [(n + 1) / 8 for n in range(8)]
    # wavelets: even pixels stay even; blocks: pairs stay pairs, one pixel for the other
    odd = [n + (n + 1) % 2 for n in shape[:2]] if stored.wavelet else [n + n % 2 for n in shape[:2]]
    wanted = {(h, w) for h in (shape[0], odd[0]) for w in (shape[1], odd[1])}
    assert set(shapes) == wanted | {(w, h) for h, w in wanted}


def test_a_self_ensemble_of_other_pictures(taipei: Image.Image) -> None:
    """Grey, alpha, 16 bits, parts; and models it is not for."""
    run = {"engine": "onnxruntime:fp32", "self_ensemble": True}
    image = taipei.crop((240, 320, 341, 397))
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    deep = np.asarray(image).astype(np.uint16) * 257
    asked = {"model": "car-x1-jpeg2000", "storage_codec": "jpeg2000", "quality": 30}
    for photo in (image.convert("L"), alpha, deep):
        data = codec.encode(photo, **asked).data
        plain = carcodec.decode_array(data, engine="onnxruntime:fp32")
        whole = carcodec.decode_array(data, **run)
        assert whole.dtype == plain.dtype and whole.shape == np.asarray(photo).shape
        assert metrics.psnr(plain, whole) > 38 and not np.array_equal(plain, whole)
        part = carcodec.decode_array(data, region=(51, 13, 90, 60), **run)
        far = np.abs(part.astype(int) - whole[13:60, 51:90]).max()
        assert far <= (257 if photo is deep else 1)
    exact = codec.encode(image, model="car-x1-avif", storage_codec="png").data
    assert np.array_equal(carcodec.decode_array(exact, **run), np.asarray(image))
    for model, words in (("car-x2-avif", "has learned"), ("car-x2-bicubic", "without a network")):
        data = codec.encode(image, model=model, storage_codec="avif", quality=40).data
        with pytest.raises(ImageError, match=f"{model} .*{words}"):
            carcodec.decode(data, self_ensemble=True)


@pytest.mark.parametrize("region", [(0, 0, 41, 34), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 1, 5, 3)])
def test_a_region_beyond_the_photo(region: codec.Region) -> None:
    data = (GOLDEN / "mode-rgb.carimg").read_bytes()
    with pytest.raises(ImageError, match="is not a part of 41×33 pixels"):
        carcodec.decode(data, region=region)


@pytest.mark.parametrize("name", [c.name for c in storage.STORAGES])
def test_every_storage_holds_the_same_small_image(name: str, photo: Image.Image) -> None:
    encoded = carcodec.encode(photo, model="tiny-x2", storage_codec=name)
    plain = carcodec.encode(photo, model="tiny-x2", storage_codec="png")
    assert np.array_equal(carcodec.thumbnail(encoded.data), carcodec.thumbnail(plain.data))
    assert np.array_equal(carcodec.decode(encoded.data), carcodec.decode(plain.data))


def test_encoding_is_deterministic(photo: Image.Image) -> None:
    first, second = (carcodec.encode(photo, model="tiny-x2").data for _ in range(2))
    assert first == second


def test_bpp_counts_the_whole_file(photo: Image.Image) -> None:
    encoded = carcodec.encode(photo, model="tiny-x2")
    assert encoded.bpp == 8 * len(encoded.data) / (photo.width * photo.height)


def _with(data: bytes, **changes: object) -> bytes:
    file = container.read(data)
    header = dataclasses.replace(file.header, **changes)  # type: ignore[arg-type]
    return container.write(dataclasses.replace(file, header=header))


def test_sizes_that_lie(photo: Image.Image) -> None:
    data = carcodec.encode(photo, model="tiny-x2", storage_codec="jpeg2000").data
    for changes in ({"width": 98}, {"height": 1}, {"width": 30000, "height": 30000}, {"mode": 0}):
        with pytest.raises(StorageError):
            carcodec.decode(_with(data, **changes))
    with pytest.raises(LimitError, match="megapixels"):
        carcodec.decode(_with(data, width=65536, height=65536))
    with pytest.raises(LimitError, match="megapixels"):
        carcodec.thumbnail(_with(data, width=2**31 - 1, height=2**31 - 1))
    with pytest.raises(CarcodecError):
        carcodec.decode(_with(data, scale=4))


def test_missing_models_are_named_and_the_thumbnail_still_opens(photo: Image.Image) -> None:
    data = carcodec.encode(photo, model="tiny-x2").data
    for changes, words in (
        ({"model": "car-x9"}, r"car-x9 version 1 \(digest \w{12}\) is not installed; installed: "),
        ({"model_version": 7}, r"tiny-x2 version 7 .* installed of that name: version 1 "),
        ({"model_digest": b"\1\2\3\4\5\6"}, r"digest 010203040506"),
    ):
        other = _with(data, **changes)
        with pytest.raises(ModelNotFoundError, match=words):
            carcodec.decode(other)
        assert carcodec.thumbnail(other).size == (48, 32)


def test_a_scale_other_than_the_models(photo: Image.Image) -> None:
    file = container.read(carcodec.encode(photo, model="tiny-x2").data)
    small = carcodec.thumbnail(file).resize((24, 16))
    header = dataclasses.replace(file.header, scale=4)
    lie = dataclasses.replace(
        file, header=header, lr=storage.by_name("jpegxl").encode(np.asarray(small))
    )
    with pytest.raises(ImageError, match="scale 4"):
        carcodec.decode(lie)


def test_too_large_a_picture(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    monkeypatch.setattr(codec, "MAX_PIXELS", 2**12)
    with pytest.raises(LimitError):
        carcodec.encode(photo, model="tiny-x2")


def test_damage_in_the_whole_file(photo: Image.Image) -> None:
    """Every 97th byte cut or bit flipped: an error of ours, never anything else."""
    data = carcodec.encode(photo.crop((0, 0, 20, 14)), model="tiny-x2").data
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        for damaged in (data[:at], bytes(flipped)):
            with pytest.raises(CarcodecError):
                carcodec.decode(damaged)


@pytest.mark.parametrize("name", sorted(INDEX))
def test_golden_files_decode_for_ever(name: str) -> None:
    expected = INDEX[name]
    data = (GOLDEN / f"{name}.carimg").read_bytes()
    file = container.read(data)
    assert file.header.mode_name == expected["mode"]
    small = np.asarray(codec.stored_image(file)).astype(np.int64)
    assert list(small.shape) == expected["lr_shape"]
    if file.header.lossless_lr:
        assert int(small.sum()) == expected["lr_sum"]
    restored = codec.restore(file, "onnxruntime")
    array = pixels.to_array(restored).astype(np.float64)
    assert list(array.shape) == expected["shape"]
    # engines and lossy decoders may differ in the last level
    assert abs(array.mean() - expected["mean"]) < expected["mean"] / 200
    assert (restored.icc, restored.exif, restored.xmp) == (file.icc, file.exif, file.xmp)
    assert [len(part or b"") for part in (file.icc, file.exif, file.xmp)] == expected["metadata"]


@pytest.mark.parametrize("name", sorted(INDEX))
def test_the_independent_reader_reads_every_sample(name: str) -> None:
    data = (GOLDEN / f"{name}.carimg").read_bytes()
    found = reader.read(data)
    file = container.read(data)
    header = file.header
    assert np.array_equal(found["lr"], codec.stored_image(file))
    assert [found[k] for k in ("mode", "scale", "storage", "quality", "width", "height")] == [
        header.mode_name, header.scale, header.storage, header.quality, header.width, header.height
    ]  # fmt: skip
    assert found["model"] == header.model == "tiny-x2"
    assert found["digest"] == header.model_digest
    assert found["version"] == header.model_version
    assert (found["icc"], found["exif"], found["xmp"]) == (file.icc, file.exif, file.xmp)
    assert (found["preview"] is not None) == name.startswith("preview")
    if found["alpha"] is not None:
        assert np.array_equal(found["alpha"], codec.restore(file).alpha)


def test_large_photos_carry_a_preview(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    monkeypatch.setattr(codec, "PREVIEW_FROM", 48 * 32 - 1)
    monkeypatch.setattr(codec, "PREVIEW_SIDE", 30)
    monkeypatch.setattr(codec, "PREVIEW_SHARE", 1)
    for image in (photo, photo.convert("L")):
        data = carcodec.encode(image, model="tiny-x2").data
        assert reader.read(data)["preview"].shape[:2] == (20, 30)
        preview = carcodec.thumbnail(data, (30, 20))
        assert (preview.size, preview.mode) == ((30, 20), image.mode)
        small = carcodec.thumbnail(data, (31, 20))
        assert small.size == carcodec.thumbnail(data).size == (48, 32)
        error = np.asarray(preview, float) - np.asarray(image.resize((30, 20)), float)
        assert (error**2).mean() < 400
    data = carcodec.encode(photo, model="tiny-x2").data
    whole = container.read(data)
    assert whole.preview is not None
    # a budget that only a smaller preview meets, and one that none does
    for share, sides in ((len(whole.preview.data) / len(whole.lr) - 1e-9, {30, 15}), (0.01, None)):
        monkeypatch.setattr(codec, "PREVIEW_SHARE", share)
        preview = container.read(carcodec.encode(photo, model="tiny-x2").data).preview
        if sides is None:
            assert preview is None
        else:
            assert preview is not None and preview.width in sides
            assert len(preview.data) < len(whole.preview.data)
    monkeypatch.setattr(codec, "PREVIEW_SHARE", 1)
    prepared = codec.prepare(photo, model="tiny-x2")
    other = dataclasses.replace(prepared, small=255 - prepared.small)  # with previews of its own
    stored = [container.read(codec.store(p, "png").data).preview for p in (prepared, other)]
    assert stored[0] == whole.preview != stored[1]
    assert len(prepared.previews) == 1
    monkeypatch.setattr(codec, "PREVIEW_FROM", 48 * 32)
    assert container.read(carcodec.encode(photo, model="tiny-x2").data).preview is None


SHIPPED = [c for c in zoo.installed() if c.folder.parent == shelf.search_path()[-1]]


@pytest.mark.parametrize("card", SHIPPED, ids=lambda c: f"{c.name}-v{c.version}")
def test_files_of_every_shipped_version_still_decode(
    card: zoo.ModelCard, taipei: Image.Image, peak_signal: Psnr
) -> None:
    data = (GOLDEN.parent / "shipped" / f"{card.name}-v{card.version}.carimg").read_bytes()
    header = container.read_header(data)
    assert header.model_digest == card.short_digest
    assert header.model_version == card.version
    restored = carcodec.decode(data, engine="onnxruntime")
    # the crop is no larger than one or two LR pixels of the last two
    floors = {1: 27.0, 2: 23.0, 3: 21.0, 4: 20.0, 8: 19.0, 16: 17.5, 32: 16.0, 64: 13.5, 128: 12.0}
    floor = floors[card.scale] - card.fixed
    assert peak_signal(restored, taipei.crop((380, 380, 461, 443))) > floor


def test_a_version_with_a_successor_decodes_without_its_downscaler(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = carcodec.encode(photo, model="tiny-x2")
    restored = carcodec.decode_array(encoded.data)
    folder = shutil.copytree(GOLDEN.parent / "models" / "tiny-x2-v1", tmp_path / "tiny-x2-v1")
    (folder / "downscaler.onnx").unlink()
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path))
    codec._NETWORKS.clear()
    assert np.array_equal(carcodec.decode_array(encoded.data), restored)
    with pytest.raises(ModelNotFoundError, match="it decodes; encode with the newest"):
        carcodec.encode(photo, model="tiny-x2")
    codec._NETWORKS.clear()


def test_golden_files_cover_every_storage_and_mode() -> None:
    headers = [container.read((GOLDEN / f"{n}.carimg").read_bytes()).header for n in INDEX]
    assert {h.mode for h in headers} == set(container.MODES)
    assert {(h.storage, h.lossless_lr) for h in headers} == {
        (number, lossless)
        for c in storage.STORAGES
        for number in (c.number, *c.older)
        for lossless in ((True, False) if c.lossy else (True,))
    }


def test_effort_is_the_storage_codecs_and_pays(taipei: Image.Image) -> None:
    prepared = codec.prepare(taipei.crop((240, 320, 496, 512)), model="car-x1-avif")
    streams = [storage.by_name("avif").encode(prepared.small, 40, 1, e) for e in range(10)]
    assert len(set(streams[:6])) == 6  # a speed each
    assert len(streams[8]) < len(streams[4]) < len(streams[2])
    for effort in (2, 3):
        stored = codec.store(prepared, "avif", 40, 1, effort).data
        assert container.read(stored).lr == streams[effort]

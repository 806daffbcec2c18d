"""Plans as a GPU would run them: batches, streams, threads, memory, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_on_host
import numpy as np
import pytest
from PIL import Image

from carcodec import codec, engines, zoo
from carcodec.engines import guard, onnxruntime, plans, session


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_on_host.Library:
    """A library whose plans are ONNX graphs, on a device that is the CPU."""
    driver = gpu_on_host.Driver()
    monkeypatch.setattr(session, "_DEVICE", [session.Device(driver)])
    monkeypatch.setattr(plans, "folder", lambda: tmp_path / "plans")
    monkeypatch.setattr(plans, "_BATCH_PIXELS", 4 * 1536**2)  # four tiles of 768 LR pixels at ×2

    def build(
        library: Any, card: zoo.ModelCard, side: str, precision: str, _: str, levels: bool
    ) -> bytes:
        graph = plans.graph(card, side, False, precision == "fp16", levels)
        return bytes(graph.SerializeToString())

    monkeypatch.setattr(plans, "build", build)
    return gpu_on_host.Library(driver)


def tiles(count: int, side: int = 24) -> list[Any]:
    random = np.random.default_rng(3)
    return [random.random((1, 3, side, side), np.float32) for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 30])
@pytest.mark.parametrize("name", ["car-x2-avif", "car-x4"])
def test_a_stream_of_tiles_is_the_tiles_one_by_one(
    gpu: gpu_on_host.Library, name: str, count: int
) -> None:
    card = zoo.find(name)
    network = session.network(gpu, card, "upscaler", "fp32")  # type: ignore[arg-type]
    reference = onnxruntime.load(card, "upscaler", 1, ("fp32",))
    given = [*tiles(count), *tiles(1, 16), *tiles(2)]  # the shape may change on the way
    found = [tile.copy() for tile in engines.over(network, iter(given), 0.3)]
    assert len(found) == len(given)
    for tile, result in zip(given, found, strict=True):
        assert np.abs(result - reference(tile, 0.3)).max() < 1e-5
    assert np.abs(network(given[0], 0.9) - reference(given[0], 0.9)).max() < 1e-5


def test_tiles_are_taken_in_batches(gpu: gpu_on_host.Library, tiny: zoo.ModelCard) -> None:
    network = session.network(gpu, tiny, "upscaler", "fp32")  # type: ignore[arg-type]
    assert isinstance(network, session.Levels)
    assert network.session.batch == network.floats.batch == 4
    taken: list[int] = []

    def given() -> Any:
        for i, tile in enumerate(tiles(20)):
            taken.append(i)
            yield tile

    results = network.stream(given())
    next(results)
    assert 8 <= len(taken) <= 13  # two batches on their way, and what shows that one is full
    list(results)
    assert len(taken) == 20


def test_threads_share_a_session(gpu: gpu_on_host.Library, tiny: zoo.ModelCard) -> None:
    network = session.network(gpu, tiny, "upscaler", "fp32")  # type: ignore[arg-type]
    reference = onnxruntime.load(tiny, "upscaler", 1)

    def one(seed: int) -> bool:
        given = [np.roll(tile, seed) for tile in tiles(11)]
        found = [tile.copy() for tile in network.stream(given)]
        return all(np.abs(a - reference(b)).max() < 1e-5 for a, b in zip(found, given, strict=True))

    with ThreadPoolExecutor(6) as pool:  # more than there are slots for
        assert all(pool.map(one, range(12)))


def test_a_caller_that_stops_early_leaves_no_slot_taken(
    gpu: gpu_on_host.Library, tiny: zoo.ModelCard
) -> None:
    network = session.network(gpu, tiny, "upscaler", "fp32")  # type: ignore[arg-type]
    for _ in range(6):
        results = network.stream(tiles(20))
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert len(list(network.stream(tiles(5)))) == 5


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x4"])
def test_a_photo_through_the_gpu_is_the_photo_through_the_cpu(
    gpu: gpu_on_host.Library, name: str, taipei: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.find(name)
    photo = np.asarray(taipei.crop((100, 100, 341, 297)))
    wanted = codec.downscale(photo, card, "onnxruntime:fp32", 1)
    networks = {
        side: session.network(gpu, card, side, "fp32")  # type: ignore[arg-type]
        for side in ("downscaler", "upscaler")
    }
    restored = codec.upscale(wanted, (241, 197), 8, card, "onnxruntime:fp32", 1, quality=40)
    monkeypatch.setattr(codec, "_network", lambda card, side, *_: networks[side])
    small = codec.downscale(photo, card, tile=48)
    assert (small == wanted).mean() > 0.999
    tile = 2 * card.upscaler.halo + 40
    found = codec.upscale(wanted, (241, 197), 8, card, tile=tile, quality=40)
    assert np.abs(found.astype(int) - restored).max() <= 1 and (found == restored).mean() > 0.99
    network = networks["upscaler"]
    assert isinstance(network, session.Levels) and network._floats is None  # bytes were enough


@pytest.mark.parametrize("kind", ["grey", "16 bits"])
def test_what_is_not_of_8_bits_in_colour_goes_as_floats(
    gpu: gpu_on_host.Library, kind: str, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.find("car-x2-avif")
    given: Any = np.asarray(photo.convert("L" if kind == "grey" else "RGB"))
    bits = 8 if kind == "grey" else 16
    given = given if kind == "grey" else given.astype(np.uint16) * 257
    wanted = codec.downscale(given, card, "onnxruntime:fp32", 1)
    restored = codec.upscale(wanted, photo.size, bits, card, "onnxruntime:fp32", 1, quality=40)
    networks = {
        side: session.network(gpu, card, side, "fp32")  # type: ignore[arg-type]
        for side in ("downscaler", "upscaler")
    }
    monkeypatch.setattr(codec, "_network", lambda card, side, *_: networks[side])
    assert (codec.downscale(given, card) == wanted).mean() > 0.999
    found = codec.upscale(wanted, photo.size, bits, card, quality=40)
    assert np.abs(found.astype(int) - restored).max() <= (1 if bits == 8 else 3)


def test_a_network_that_recurs_goes_as_floats(gpu: gpu_on_host.Library) -> None:
    card = zoo.find("tad-x4")
    assert card.upscaler.steps == 2
    network = session.network(gpu, card.step("upscaler"), "upscaler")  # type: ignore[arg-type]
    assert isinstance(network, session.Session)


def test_memory_is_bounded_by_the_tiles_not_the_photo(
    gpu: gpu_on_host.Library, tiny: zoo.ModelCard
) -> None:
    network = session.network(gpu, tiny, "upscaler", "fp32")  # type: ignore[arg-type]
    assert isinstance(network, session.Levels)
    levels = [np.zeros((24, 24, 3), np.uint8)]
    for run in (
        lambda count: list(network.stream(tiles(count))),
        lambda count: list(network.levels(count * levels)),
    ):
        run(12)
        held = gpu.driver.most
        run(80)
        assert gpu.driver.most == held


def test_half_precision_is_taken_when_it_is_right(
    gpu: gpu_on_host.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.find("car-x2-avif")
    session.network(gpu, card, "upscaler")  # type: ignore[arg-type]
    session.network(gpu, card, "downscaler")  # type: ignore[arg-type]
    names = sorted(path.name for path in plans.folder().iterdir())
    assert [name.split("-")[4:6] for name in names] == [
        ["downscaler", "fp32"], ["upscaler", "fp16"],
    ]  # fmt: skip
    monkeypatch.setattr(guard, "refusal", lambda *_: pytest.fail("it was checked already"))
    session.network(gpu, card, "upscaler")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gain", "reason"),
    [
        (0.0, "one colour"),
        (float("nan"), "one colour|dB from"),
        (float("inf"), "one colour|dB from"),
        (0.98, "dB from the network's"),
    ],
)
def test_a_wrong_plan_is_refused_and_float32_taken(
    gpu: gpu_on_host.Library, gain: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.find("car-x2-avif")
    right = session.Session

    def wrong_in_half(library: Any, device: Any, data: bytes, *rest: Any) -> session.Session:
        library.gain = gain if b"_half" in data else 1.0
        return right(library, device, data, *rest)

    monkeypatch.setattr(session, "Session", wrong_in_half)
    with pytest.raises(plans.PlanRefusedError, match=f"host fp16, the upscaler.*{reason}"):
        session.network(gpu, card, "upscaler", "fp16")  # type: ignore[arg-type]
    with pytest.raises(plans.PlanRefusedError, match=reason):  # and remembered
        session.network(gpu, card, "upscaler", "fp16")  # type: ignore[arg-type]
    network = session.network(gpu, card, "upscaler")  # type: ignore[arg-type]
    assert isinstance(network, session.Levels)
    assert guard.refusal(session._as_floats(network.session), card, "upscaler") == ""
    kept = sorted(path.suffix for path in plans.folder().iterdir())
    assert kept == [".plan", ".refused"]
    gpu.gain = gain  # now float32 is wrong as well
    monkeypatch.setattr(session, "Session", lambda *a: (setattr(a[0], "gain", gain), right(*a))[1])
    with pytest.raises(plans.PlanRefusedError, match=f"host fp32, the downscaler.*{reason}"):
        session.network(gpu, card, "downscaler")  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_where_plans_are_between_floats(
    gpu: gpu_on_host.Library, gain: float
) -> None:
    gpu.gain = gain
    card = zoo.find("car-x2-avif")
    with pytest.raises(plans.PlanRefusedError, match=r"host fp16, the upscaler.*not finite"):
        session.planned(gpu, card, "upscaler", "fp16")  # type: ignore[arg-type]


def test_the_guard_sees_a_few_pixels() -> None:
    """As of a number that overflows: between levels there is nothing that is not finite."""
    card = zoo.find("car-x2-avif")
    network = engines.get("onnxruntime").load(card, "upscaler", 0, ("fp32",))

    def holed(image: Any, quality: float = 1.0) -> Any:
        found = network(image, quality)
        row, column = np.unravel_index(found[0, 1].argmax(), found.shape[2:])
        found[0, 1, row, column] = 0
        return found

    assert "levels from the network's in places" in guard.refusal(holed, card, "upscaler")


@pytest.mark.parametrize("side", ["downscaler", "upscaler"])
@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x3", "car-x4-bicubic"])
def test_the_guard_passes_what_is_right(name: str, side: str) -> None:
    card = zoo.find(name)
    network = engines.get("pytorch").load(card, side, 0)
    assert guard.refusal(network, card, side) == ""

    def cut(image: Any, quality: float = 1.0) -> Any:
        return network(image, quality)[..., :-2]

    assert "shape" in guard.refusal(cut, card, side)

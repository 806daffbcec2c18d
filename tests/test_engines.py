"""Engines agree, load only what the card describes, and say how to get a missing one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from carcodec import codec, engines, zoo
from carcodec.engines import guard, plans
from carcodec.errors import DigestMismatchError, EngineError, MissingDependencyError
from carcodec.zoo import halves

MODELS = ["tiny-x2", "car-x2", "car-x4", "tad-x2", "rrnet-x3"]


@pytest.mark.parametrize("name", MODELS)
def test_engines_agree(name: str, taipei: Image.Image) -> None:
    card = zoo.find(name)
    colour = np.asarray(taipei.crop((240, 320, 432, 464)))
    small = codec.downscale(colour, card, "pytorch", 2)
    restored = codec.upscale(small, (192, 144), 8, card, "pytorch", 2).astype(int)
    other = codec.downscale(colour, card, "onnxruntime", 2)
    assert _agree(small, other)
    exact = codec.upscale(small, (192, 144), 8, card, "onnxruntime:fp32", 2)
    assert _agree(restored, exact)
    from carcodec.engines import openvino

    def float32(side: str, image: np.ndarray) -> np.ndarray:
        levels = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        found = openvino.load(card, side, 2, ("fp32",))(levels)[0].transpose(1, 2, 0)
        return np.clip(found * 255 + 0.5, 0, 255).astype(np.uint8)

    assert _agree(small, float32("downscaler", colour))
    assert _agree(restored, float32("upscaler", small))


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """At most one level of difference on 99.9 % of the pixels."""
    return bool((np.abs(a.astype(int) - b) <= 1).mean() >= 0.999)


@pytest.mark.parametrize("name", ["car-x2", "car-x4"])
def test_bfloat16_stays_close(name: str, taipei: Image.Image) -> None:
    """Where OpenVINO has bfloat16, encoding and decoding lose next to nothing."""
    card = zoo.find(name)
    colour = np.asarray(taipei.crop((240, 320, 432, 464)))
    errors = []
    for engine in ("onnxruntime:fp32", "openvino:bf16"):
        small = codec.downscale(colour, card, engine, 2)
        restored = codec.upscale(small, (192, 144), 8, card, engine, 2).astype(float)
        errors.append(((restored - colour) ** 2).mean())
    assert abs(10 * np.log10(errors[1] / errors[0])) < 0.05  # dB


def test_missing_engines_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = {"openvino", "torch"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else real(name)
    )
    assert engines.available() == ["onnxruntime"]
    assert engines.get("auto").__name__.endswith("onnxruntime")
    with pytest.raises(MissingDependencyError, match=r'pip install "carcodec\[openvino\]"'):
        engines.get("openvino")
    with pytest.raises(MissingDependencyError, match=r'pip install "carcodec\[torch\]"'):
        engines.get("pytorch")
    hidden.add("onnxruntime")
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        engines.get("auto")


@pytest.mark.parametrize("engine", engines.available())
def test_threads_do_not_mix_their_pictures(
    engine: str, tiny: zoo.ModelCard, taipei: Image.Image
) -> None:
    boxes = [(x, 300, x + 64 + 2 * x, 428) for x in range(0, 96, 12)]
    pictures = [np.asarray(taipei.crop(box)) for box in boxes]

    def both(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        small = codec.downscale(image, tiny, engine, 1)
        size = (image.shape[1], image.shape[0])
        return small, codec.upscale(small, size, 8, tiny, engine, 1)

    alone = [both(image) for image in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(both, pictures * 4))
    for expected, found in zip(alone * 4, together, strict=True):
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match=r"choose auto or one of tensorrt, .*openvino"):
        engines.get("abacus")


def test_damaged_weights_are_refused(
    tmp_path: Path, tiny: zoo.ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "upscaler.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    card = zoo.load_card(tmp_path / "copy" / "card.toml")
    for engine in engines.available():
        with pytest.raises(DigestMismatchError, match="install the model again"):
            engines.get(engine).load(card, "upscaler", 1)


def test_auto_passes_over_an_engine_that_cannot_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny: zoo.ModelCard
) -> None:
    if engines.missing("tensorrt-rtx") or engines.has_gpu():
        pytest.skip("tensorrt-rtx is not installed, or there is a GPU")
    monkeypatch.setattr(engines, "_preferred", lambda: ["tensorrt-rtx", "onnxruntime"])
    with caplog.at_level("INFO", "carcodec"):
        network = engines.load("auto", tiny, "upscaler", 1)
    assert network(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 3, 16, 16)
    passed, taken = (record.getMessage() for record in caplog.records)
    assert passed.startswith("tensorrt-rtx is passed over: there is no NVIDIA GPU")
    assert taken == "onnxruntime runs the upscaler of tiny-x2"
    with pytest.raises(EngineError, match="no NVIDIA GPU"):  # named, it is not passed over
        engines.load("tensorrt-rtx", tiny, "upscaler", 1)


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x3", "car-x1-avif"])
@pytest.mark.parametrize("side", ["downscaler", "upscaler"])
@pytest.mark.parametrize("half", [False, True])
def test_pytorch_in_batches_is_pytorch(name: str, side: str, half: bool) -> None:
    """What runs on a GPU, but for the copies' streams: batches, rounding, half precision."""
    import torch

    from carcodec.engines import pytorch

    card = zoo.find(name)
    random = np.random.default_rng(4)
    tiles = [random.random((1, 3, 24, s), np.float32) for s in (24, 24, 24, 36, 24)]
    one = engines.load("pytorch", card, side, 1)
    precision = torch.float16 if half else torch.float32
    network = pytorch.network(card, side)
    many = pytorch.Pipeline(network, torch.device("cpu"), side, 2, precision, folded=half)
    assert isinstance(many, engines.Pipelined)
    found = list(engines.over(many, iter(tiles), 0.4))
    assert [f.shape for f in found] == [one(t, 0.4).shape for t in tiles]
    for tile, result in zip(tiles, found, strict=True):
        difference = np.abs(result - one(tile, 0.4)) * 255
        if side == "downscaler":  # rounded: the same levels, but where a half is near
            assert difference.max() < 1.01 and (difference > 0.5).mean() < (0.1 if half else 0.001)
        else:
            assert difference.max() < (2 if half else 0.01)


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x4"])
@pytest.mark.parametrize("residual", [1.0, 0.5])
def test_a_folded_network_computes_the_same(name: str, residual: float) -> None:
    """What GPUs run in half precision, for one quality after another, borders included."""
    import torch

    from carcodec.engines import folded, pytorch

    network: Any = pytorch.network(zoo.find(name), "upscaler")
    for block in network.body:
        block.residual_scale = residual
    whole = folded.Folded(network, torch.float32)
    image = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(2))
    for quality in (0.3, 0.8, 0.8, 0.3):
        with torch.inference_mode():
            wanted = network(image, torch.full((2,), quality))
        assert (whole(image, quality) - wanted).abs().max() < 1e-5


def test_a_gpu_takes_the_fastest_that_is_right(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from carcodec.engines import folded, pytorch

    # a CPU takes its time over float16
    small = np.ascontiguousarray(guard.photo()[:, :, 48:96, 48:96])
    monkeypatch.setattr(guard, "photo", lambda: small)

    def chosen(name: str, side: str = "upscaler", asked: torch.dtype | None = None) -> Any:
        caplog.clear()
        card = zoo.find(name)
        network = pytorch.network(card, side)
        return pytorch._on_gpu(network, card, side, asked, torch.device("cpu"))

    with caplog.at_level("WARNING", "carcodec"):
        best = chosen("tiny-x2")
        assert best.folded and best.precision == torch.float16 and not caplog.records
        other = chosen("srcnn-bicubic-x3")
        assert other.folded is None and other.precision == torch.float16 and not caplog.records
        assert chosen("tiny-x2", "downscaler").precision == torch.float32 and not caplog.records
        assert chosen("tiny-x2", asked=torch.float16).folded
        whole = chosen("tiny-x2", asked=torch.float32)
        assert whole.folded is None and whole.precision == torch.float32

        def lacking(*given: object) -> torch.Tensor:
            raise RuntimeError("cuDNN cannot do\nthat")

        monkeypatch.setattr(folded, "_rectified", lacking)
        assert chosen("tiny-x2", asked=torch.float16).folded is None
        plain = chosen("tiny-x2")
        assert plain.folded is None and plain.precision == torch.float16
        (record,) = caplog.records
        assert record.getMessage() == (
            "float16 with fused kernels is not taken for the upscaler of tiny-x2: PyTorch failed "
            "on cpu: cuDNN cannot do that"
        )
        monkeypatch.setattr(guard, "LEAST", 115.0)
        with pytest.raises(EngineError, match="PyTorch in float16, the upscaler of tiny-x2: its"):
            chosen("tiny-x2", asked=torch.float16)
        assert chosen("tiny-x2").precision == torch.float32
        assert [r.getMessage().partition(" is not")[0] for r in caplog.records] == [
            "float16 with fused kernels",
            "float16",
        ]


class Levels:
    """A network that enlarges levels by repeating them, and tells what it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def takes(self, tile: Any, peak: int = 255, channels: int = 3) -> bool:
        return True

    def levels(self, tiles: Any, quality: float = 1.0, peak: int = 255, channels: int = 3) -> Any:
        for tile in list(tiles):  # all of them, before any result
            self.shapes.append(tile.shape)
            if len(self.shapes) == 9:
                raise EngineError("it breaks")
            yield tile.repeat(2, 0).repeat(2, 1)


def test_one_photo_at_a_time_has_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tiny: zoo.ModelCard
) -> None:
    """Until its last tile is taken: then the next photo's follow."""
    network = Levels()
    monkeypatch.setattr(codec, "_network", lambda *_: network)
    small = np.random.default_rng(3).integers(0, 256, (60, 70, 3), np.uint8)
    held = []
    report = lambda done: held.append(codec._TURN.locked())  # noqa: E731
    found = codec.upscale(small, (140, 120), 8, tiny, tile=40, progress=report)
    assert (found == small.repeat(2, 0).repeat(2, 1)).all()
    assert len(network.shapes) > 1 and max(map(max, network.shapes)) == 40
    assert held == [False] * len(network.shapes)
    with pytest.raises(EngineError, match="it breaks"):
        for _ in range(3):
            codec.upscale(small, (140, 120), 8, tiny, tile=40)
    assert not codec._TURN.locked()


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "tad-x2", "tad-grey", "rrnet-x3"])
@pytest.mark.parametrize("kind", ["RGB", "grey", "16 bits"])
def test_levels_on_the_device_are_the_photos_levels(
    name: str, kind: str, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the network turns bytes into floats and back, as on a GPU, the photo is the same."""
    import torch

    from carcodec.engines import pytorch

    card = zoo.find(name)
    given: np.ndarray[Any, Any] = np.asarray(photo.convert("L" if kind == "grey" else "RGB"))[:63]
    if kind == "16 bits":
        given = given.astype(np.uint16) * 257 - (given > 128)
    bits, size = (16 if kind == "16 bits" else 8), (given.shape[1], given.shape[0])
    channels = 1 if kind == "grey" else 3
    quality = 40 if card.storage else None

    stored = codec.downscale(given, card, "pytorch", 1)

    def both() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        small = codec.downscale(given, card, "pytorch", 1, tile=64)
        large = codec.upscale(
            stored, size, bits, card, "pytorch", 1, tile=64, quality=quality, channels=channels
        )
        return small, large

    wanted = both()

    def pipeline(engine: str, card: zoo.ModelCard, side: str, threads: int) -> Any:
        network = pytorch.network(card, side)
        return pytorch.Pipeline(network, torch.device("cpu"), side, 2)

    monkeypatch.setattr(engines, "load", pipeline)
    monkeypatch.setattr(codec, "_NETWORKS", {})
    for found, expected in zip(both(), wanted, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        off = np.abs(found.astype(int) - expected)
        assert (off > (8 if found.dtype == np.uint16 else 0)).mean() < 0.002 and off.max() < 9


def test_weights_stored_in_half_precision_are_those_of_float32(
    tmp_path: Path, tiny: zoo.ModelCard, photo: Image.Image
) -> None:
    folder = tmp_path / "half-x2-v1"
    shutil.copytree(tiny.folder, folder)
    exact = onnx.load(folder / "upscaler.onnx")
    model = onnx.load(folder / "upscaler.onnx")
    halves.narrowed(model)
    data = model.SerializeToString()
    (folder / "upscaler.onnx").write_bytes(data)
    text = (folder / "card.toml").read_text()
    text = text.replace(tiny.upscaler.sha256, hashlib.sha256(data).hexdigest())
    (folder / "card.toml").write_text(text)
    card = zoo.load_card(folder / "card.toml")
    # what looks at weights finds the same graph, and kernels rounded
    seen = halves.network(card, card.upscaler)
    assert list(seen.graph.node) == list(exact.graph.node)
    for was, now in zip(exact.graph.initializer, seen.graph.initializer, strict=True):
        before, after = numpy_helper.to_array(was), numpy_helper.to_array(now)
        assert was.name == now.name and after.dtype == before.dtype
        wanted = before.astype(np.float16).astype(np.float32) if before.ndim > 1 else before
        assert np.array_equal(after, wanted)
    # and every engine runs it
    small = codec.downscale(np.asarray(photo), tiny, "onnxruntime", 1)
    wanted = codec.upscale(small, photo.size, 8, tiny, "onnxruntime", 1).astype(int)
    for engine in ("onnxruntime:fp32", "openvino:fp32", "pytorch"):
        found = codec.upscale(small, photo.size, 8, card, engine, 1)
        assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.05
    kinds = {t.data_type for t in plans.graph(card, "upscaler", False).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds


def test_how_many_photos_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    assert {engines.at_once(name) for name in ("auto", "pytorch", "openvino:fp32")} == {2}
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert [engines.at_once(n) for n in ("auto", "pytorch:fp16", "tensorrt")] == [16, 16, 16]
    assert engines.at_once("onnxruntime") == 2
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert engines.at_once("auto") == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnxruntime:bf16", "onnxruntime has no option 'bf16': options are fp32"),
        ("pytorch:fast", "pytorch has no option 'fast': options are fp32, fp16, bf16, compile"),
        ("pytorch:fp16+bf16", "one precision at a time"),
        ("auto:fp16", "options go with an engine's own name"),
    ],
)
def test_options_that_no_engine_has(name: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        engines.load(name, zoo.find("tiny-x2"), "upscaler")


@pytest.mark.parametrize(
    "name", ["openvino:fp32", "openvino:bf16", "pytorch:bf16", "pytorch:fp16", "pytorch:fp32"]
)
def test_a_precision_that_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = zoo.find("car-x1-avif")
    photo = guard.photo()[:, :, :48, :96]
    wanted = engines.load("onnxruntime:fp32", card, "upscaler", 1)(photo, 0.5)
    found = engines.load(name, card, "upscaler", 1)(photo, 0.5)
    error = np.sqrt(np.mean(np.square(found - wanted)))
    assert found.dtype == np.float32 and error < 0.8 / 255
    if name != "openvino:bf16":  # which is what the CPU has
        assert (error > 1e-4) == (name in ("pytorch:bf16", "pytorch:fp16"))
    # LR is kept for good: always in float32
    downscaled = [
        engines.load(n, zoo.find("tiny-x2"), "downscaler", 1)(photo) for n in (name, "onnxruntime")
    ]
    assert _agree(*(np.rint(small * 255) for small in downscaled))
    if name == "pytorch:bf16":
        monkeypatch.setattr(guard, "LEAST", 120.0)
        with pytest.raises(EngineError, match="PyTorch in bfloat16, the upscaler of car-x1-avif"):
            engines.load(name, card, "upscaler", 1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # PyTorch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_networks_are_the_same(caplog: pytest.LogCaptureFixture) -> None:
    card = zoo.find("tiny-x2")
    photo = guard.photo()[:, :, :48, :96]
    with caplog.at_level("INFO", "carcodec"):
        network = engines.load("pytorch:compile", card, "upscaler", 1)
    assert "pytorch:compile runs the upscaler of tiny-x2" in caplog.text
    plain = engines.load("pytorch", card, "upscaler", 1)
    for part in (photo, photo[:, :, :32, :48]):
        assert np.abs(network(part) - plain(part)).max() < 1e-5


FIRST_AT_ONCE = """
import threading, numpy as np
from carcodec import engines, zoo
network = engines.load("openvino", zoo.find("tiny-x2"), "downscaler", 1)
together = threading.Barrier(4)
def run():
    image = np.zeros((1, 3, 16, 16), np.float32)
    together.wait()
    network(image)
threads = [threading.Thread(target=run) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_the_first_inferences_may_come_at_once() -> None:
    for _ in range(4):  # without care, one in four waits for ever
        subprocess.run([sys.executable, "-c", FIRST_AT_ONCE], check=True, timeout=60)

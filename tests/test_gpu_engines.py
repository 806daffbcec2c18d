"""TensorRT without a GPU: graphs, plans, their cache, and what is said of what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import inliner
from typer.testing import CliRunner

from carcodec import app, engines, zoo
from carcodec.engines import plans
from carcodec.errors import EngineError, MissingDependencyError

if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("onnx") is None:
    pytest.skip("cuda-bindings is not installed", allow_module_level=True)
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="no TensorRT-RTX"
)
no_gpu = pytest.mark.skipif(engines.has_gpu(), reason="there is a GPU")


def test_the_plugins_graph_has_a_node_and_no_function() -> None:
    card = zoo.find("car-x2")
    model = plans.graph(card, "downscaler", plugin=True)
    assert not model.functions
    (node,) = (n for n in model.graph.node if n.op_type == plans.RESAMPLER)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {
        "scale": 2, "kernel": 6, "convex": 0, "plugin_namespace": b"carcodec",
        "plugin_version": b"1",
    }  # fmt: skip


def test_the_plain_graph_is_the_same_network() -> None:
    card = zoo.find("car-x4")
    model = plans.graph(card, "downscaler", plugin=False)
    assert all(n.op_type != plans.RESAMPLER for n in model.graph.node)
    image = np.random.default_rng(1).random((1, 3, 64, 96), np.float32)
    results = []
    for data in (model.SerializeToString(), card.weights(card.downscaler)):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"hr": image})[0])
    assert np.abs(results[0] - results[1]).max() < 1.01 / 255
    assert (results[0] == results[1]).mean() > 0.999


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x4"])
def test_batches_are_their_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = zoo.find(name)
    images = np.random.default_rng(2).random((3, 3, 32, 48), np.float32)
    assert plans.batch(card, "upscaler", False) == 1  # its tiles are large enough
    assert plans.batch(zoo.find("tad-x2"), "upscaler", False) == 4
    monkeypatch.setattr(plans, "_BATCH_PIXELS", 2**26)
    assert plans.batch(card, "upscaler", False) > 3
    model = plans.graph(card, "upscaler", plugin=False)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = (
        {"quality": np.array([0.5], np.float32)} if card.upscaler.options.get("conditioned") else {}
    )
    whole = session.run(None, {"lr": images, **given})[0]
    for image, result in zip(images, whole, strict=True):
        alone = session.run(None, {"lr": image[None], **given})[0][0]
        assert np.abs(alone - result).max() < 1e-5


def test_the_resampler_takes_batches_only_as_a_plugin() -> None:
    card = zoo.find("car-x2")
    assert plans.batch(card, "downscaler", plugin=False) == 1
    assert plans.batch(card, "downscaler", plugin=True) > 1
    (image, *_) = plans.graph(card, "downscaler", plugin=True).graph.input
    assert image.type.tensor_type.shape.dim[0].dim_param == "n"


@pytest.mark.parametrize("name", ["car-x2", "car-x2-avif", "car-x1-avif", "car-x3"])
def test_half_precision_is_half_a_level_from_single(name: str, taipei: object) -> None:
    card = zoo.find(name)
    photo = np.asarray(taipei)[300:364, 200:296].transpose(2, 0, 1)[None] / np.float32(255)
    results = []
    for half in (False, True):
        model = plans.graph(card, "upscaler", plugin=True, half=half)
        kinds = {t.data_type for t in model.graph.initializer}
        assert kinds == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        given = {"lr": photo, "quality": np.array([0.5], np.float32)}
        given = {i.name: given[i.name] for i in session.get_inputs()}
        results.append(session.run(None, given)[0])
    error = np.sqrt(np.mean(np.square(results[0] - results[1])))
    assert 0 < error < 0.5 / 255


@rtx
@pytest.mark.parametrize("side", ["downscaler", "upscaler"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("levels", [False, True])
def test_rtx_builds_plans_for_every_tile(side: str, precision: str, levels: bool) -> None:
    from carcodec.engines import tensorrt_rtx

    library = tensorrt_rtx.library()
    data = plans.build(library, zoo.find("car-x2-avif"), side, precision, "", levels)
    assert len(data) > 100_000


@rtx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RTX itself has no use for timings
def test_timings_are_kept_for_one_tensorrt_on_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx_bindings

    monkeypatch.setattr(plans, "folder", lambda: tmp_path)
    library = plans.Library("timed", tensorrt_rtx_bindings, plugin=False, timing=True)
    for device in ("a card", "a card", "another"):
        plans.build(library, zoo.find("tiny-x2"), "upscaler", "fp32", device)
    kept = list(tmp_path.glob("timed-*.timings"))
    assert len(kept) == 2 and all(path.stat().st_size > 0 for path in kept)


@rtx
def test_a_graph_that_cannot_be_read_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from carcodec.engines import tensorrt_rtx

    def broken(*_: object) -> onnx.ModelProto:
        model = inliner.inline_local_functions(
            onnx.load_model_from_string(zoo.find("car-x2").weights(zoo.find("car-x2").upscaler))
        )
        model.graph.node[0].op_type = "Convolve"
        return model

    monkeypatch.setattr(plans, "graph", broken)
    with pytest.raises(EngineError, match=r"^tensorrt-rtx cannot read the upscaler of car-x2: "):
        plans.build(tensorrt_rtx.library(), zoo.find("car-x2"), "upscaler")


@rtx
def test_plans_are_kept_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carcodec.engines import tensorrt_rtx

    monkeypatch.setattr(plans, "folder", lambda: tmp_path / "plans")
    library, card = tensorrt_rtx.library(), zoo.find("car-x1-avif")
    built: list[int] = []
    arguments = (library, card, "upscaler", "fp32")
    first = plans.plan(*arguments, "a card", lambda: built.append(1))
    again = plans.plan(*arguments, "a card", lambda: built.append(1))
    assert again == first and built == [1]
    plans.plan(*arguments, "another card", lambda: built.append(2))
    assert built == [1, 2] and len(list((tmp_path / "plans").iterdir())) == 2
    keys = {
        plans.key(library, other, side, precision, "a card")
        for other in (card, zoo.find("car-x2"))
        for side in ("downscaler", "upscaler")
        for precision in ("fp32", "fp16")
    }
    assert len(keys) == 8
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(plans, "folder", lambda: tmp_path / "file" / "plans")
    with pytest.raises(EngineError, match="cannot be kept"):
        plans.plan(*arguments, "a card")


@rtx
@no_gpu
def test_without_a_gpu_nothing_is_taken_that_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "folder", lambda: tmp_path)
    assert not set(engines.available()) & set(engines.ON_GPU)
    assert engines.resolve() not in engines.ON_GPU
    with pytest.raises(EngineError, match=r"^there is no NVIDIA GPU to run on: "):
        engines.get("tensorrt-rtx").load(zoo.find("car-x2"), "upscaler", 1)


def test_a_missing_tensorrt_names_its_extra() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    with pytest.raises(MissingDependencyError, match=r'pip install "carcodec\[tensorrt\]"'):
        engines.get("tensorrt")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: object) -> None:
    monkeypatch.setattr(plans, "folder", lambda: tmp_path)
    runner = CliRunner()
    listed = runner.invoke(app.app, ["engine", "list"]).output
    assert "onnxruntime" in listed and ", taken" in listed and "comes with carcodec" in listed
    wrong = runner.invoke(app.app, ["engine", "build", "car-x2", "--engine", "openvino"])
    assert isinstance(wrong.exception, EngineError) or "needs no building" in str(wrong.exception)
    if importlib.util.find_spec("tensorrt_rtx_bindings") is not None:
        done = runner.invoke(app.app, ["engine", "build", "tiny-x2", "--engine", "tensorrt-rtx"])
        assert done.exit_code == 0, done.output
        assert len(list(tmp_path.glob("tiny-x2-v1-*.plan"))) == 2
        asked = ["engine", "build", "tiny-x2", "--engine", "tensorrt-rtx:fp32"]
        assert runner.invoke(app.app, asked).exit_code == 0
        assert len(list(tmp_path.glob("tiny-x2-v1-upscaler-fp32-*.plan"))) == 1
        unknown = runner.invoke(app.app, [*asked[:-1], "tensorrt-rtx:bf16"])
        assert "no option 'bf16'" in str(unknown.exception)
    photo.save(tmp_path / "photo.png")  # type: ignore[attr-defined]
    arguments = ["engine", "bench", "tiny-x2", "--photo", str(tmp_path / "photo.png")]
    done = runner.invoke(app.app, [*arguments, "--engine", "onnxruntime,openvino"])
    assert done.exit_code == 0 and "openvino" in done.output and "MP/s" in done.output

"""What importing costs, what it exports, and that the rules of the house hold."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import carcodec
from carcodec import codec, zoo

ROOT = Path(__file__).parent.parent


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    heavy = "torch onnx onnxruntime openvino imagecodecs typer rich platformdirs"
    code = f"import carcodec, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    assert _run(code).strip() == "[]"


def test_a_thumbnail_needs_no_engine() -> None:
    golden = ROOT / "tests" / "golden" / "mode-rgb.carimg"
    code = (
        "import carcodec, sys; from pathlib import Path;"
        f"carcodec.thumbnail(Path({str(golden)!r}).read_bytes()).load();"
        "print([m for m in ('torch', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    assert _run(code).strip() == "[]"


def test_exported_names_are_sorted_and_there() -> None:
    assert carcodec.__all__ == sorted(carcodec.__all__)
    assert all(hasattr(carcodec, name) for name in carcodec.__all__)


def test_leaves_import_none_of_the_others() -> None:
    inside = {
        "container": ["metadata"], "metadata": ["leb128"],
        "storage": ["av1", "j2k", "packets"], "packets": ["j2k", "metrics"],
        "av1": ["leb128"], "j2k": ["leb128"],
    }  # fmt: skip
    leaves = ("pixels", "metrics", "tiling", "atomic", "leb128", *inside)
    for leaf in leaves:
        tree = ast.parse((ROOT / "carcodec" / f"{leaf}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carcodec"):
                own = [alias.name for alias in node.names]  # parts of it
                wrapped = own == inside.get(leaf)
                known = node.module == "carcodec.errors" or wrapped
                assert known, leaf


def test_card_of_every_model_is_complete() -> None:
    code = (
        "import json, dataclasses; from carcodec import zoo;"
        "print(json.dumps([[c.name, c.digest, c.training, c.measured, c.downscaler.halo]"
        " for c in zoo.installed()]))"
    )
    cards = {name: rest for name, *rest in json.loads(_run(code))}
    for name in ("car-x2", "car-x4"):
        digest, training, measured, halo = cards[name]
        assert len(digest) == 64
        assert training["data"]
        assert training["command"]
        assert training["minutes"] >= 60
        assert measured
        assert halo > 0


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_has_a_successor_is_superseded(build: ModuleType) -> None:
    folders = ("a-v1", "a-v2", "a-v10", "a-b-v1", "c-v3")
    files = [Path("models", folder, "upscaler.onnx") for folder in folders]
    assert [f.parent.name for f in build.superseded(files)] == ["a-v1", "a-v2"]


@pytest.mark.parametrize("network", ["upscaler", "downscaler"])
def test_packages_halve_weights_and_change_nothing_else(network: str, build: ModuleType) -> None:
    exact = (ROOT / "tests" / "models" / "tiny-x2-v1" / f"{network}.onnx").read_bytes()
    smaller = build.narrowed(exact)
    assert len(zlib.compress(smaller)) < 0.7 * len(zlib.compress(exact))
    assert build.narrowed(smaller) == smaller
    before, after = onnx.load_from_string(exact), onnx.load_from_string(smaller)
    wide = {f"{w.name}.float32": w.name for w in after.graph.initializer}
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        was, now = numpy_helper.to_array(old), numpy_helper.to_array(new)
        if now.dtype == np.float16:
            assert np.all(np.abs(now - was) <= np.maximum(np.abs(was) * 2.0**-11, 2.0**-25))
        else:
            assert np.array_equal(now, was)
        new.CopyFrom(old)
    nodes = [n for n in after.graph.node if not (n.op_type == "Cast" and n.output[0] in wide)]
    for node in nodes:
        node.input[:] = [wide.get(name, name) for name in node.input]
    assert nodes == list(before.graph.node)
    after.graph.ClearField("node")
    before.graph.ClearField("node")
    assert after == before


def test_a_halved_version_restores_the_same_but_for_single_levels(
    build: ModuleType, taipei: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = carcodec.encode(
        taipei.crop((240, 300, 432, 428)), model="tiny-x2", engine="onnxruntime"
    )
    expected = carcodec.decode_array(encoded.data, engine="onnxruntime").astype(int)
    folder = shutil.copytree(ROOT / "tests" / "models" / "tiny-x2-v1", tmp_path / "tiny-x2-v1")
    digest = zoo.load_card(folder / "card.toml").digest
    smaller = build.narrowed((folder / "upscaler.onnx").read_bytes())
    (folder / "upscaler.onnx").write_bytes(smaller)
    card = (folder / "card.toml").read_text("utf-8")
    card = build.described(card, hashlib.sha256(smaller).hexdigest())
    (folder / "card.toml").write_text(card, "utf-8")
    found = zoo.load_card(folder / "card.toml")
    assert found.digest == digest
    assert found.upscaler.file_sha256 != found.upscaler.sha256
    assert found.downscaler.file_sha256 == ""
    monkeypatch.setenv(zoo.MODELS_VARIABLE, str(tmp_path))
    codec._NETWORKS.clear()
    restored = carcodec.decode_array(encoded.data, engine="onnxruntime")
    codec._NETWORKS.clear()
    assert np.abs(restored - expected).max() <= 1
    assert np.mean(restored != expected) < 0.05

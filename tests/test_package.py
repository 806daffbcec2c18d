"""What importing costs, what it exports, and that the rules of the house hold."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import carcodec

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
    for leaf in ("container", "storage", "pixels", "metrics", "tiling", "atomic", "av1", "j2k"):
        tree = ast.parse((ROOT / "carcodec" / f"{leaf}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carcodec"):
                own = [alias.name for alias in node.names]  # of storage: what goes around
                wrapped = (leaf, own) == ("storage", ["av1", "j2k"])
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

"""What pyproject.toml has no words for; everything else is there.

A .carimg names the model version that restores it, so that every version stays in the package. Of
one that has a successor the upscaler is enough: nothing is encoded with it any more. Upscalers'
weights are stored in float16, with which they restore the same but for single levels and take half
of the room: PyPI takes 100 MB. The repository keeps all of it.
"""

import hashlib
import re
import runpy
from collections.abc import Iterable
from pathlib import Path

import onnx
from setuptools import setup
from setuptools.command.build_py import build_py

_HERE = Path(__file__).parent


def superseded(files: Iterable[Path]) -> list[Path]:
    """Those, among files of models, of models that are there in a newer version too."""
    found: dict[str, dict[int, list[Path]]] = {}
    for file in files:
        if m := re.fullmatch(r"(.+)-v(\d+)", file.parent.name):
            found.setdefault(m[1], {}).setdefault(int(m[2]), []).append(file)
    return [
        file
        for versions in found.values()
        for version, listed in versions.items()
        if version < max(versions)
        for file in listed
    ]


def narrowed(model: bytes) -> bytes:
    """An ONNX file with its weights in float16, as ``carcodec export --half`` writes them."""
    graph = onnx.load_model_from_string(model)
    # not imported: carcodec wants packages that a build has not
    runpy.run_path(str(_HERE / "carcodec" / "zoo" / "halves.py"))["narrowed"](graph)
    found: bytes = graph.SerializeToString()
    return found


def described(card: str, digest: str) -> str:
    """A card that says the digest of its upscaler's file beside the one that names the model."""
    before, title, side = card.partition("[upscaler]\n")
    line = f'\\g<0>\nfile_sha256 = "{digest}"  # of the file, whose weights are in float16'
    return before + title + re.sub(r'^sha256 = ".*"$', line, side, count=1, flags=re.MULTILINE)


class BuildPy(build_py):
    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        files: list[str] = super().find_data_files(package, src_dir)
        left_out = superseded(Path(f) for f in files if Path(f).match("downscaler*.onnx"))
        return [file for file in files if Path(file) not in left_out]

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for weights in Path(self.build_lib).rglob("zoo/models/*/upscaler.onnx"):
            card = weights.with_name("card.toml")
            text, exact = card.read_text("utf-8"), weights.read_bytes()
            if "file_sha256" in text:  # of an earlier build
                continue
            smaller = narrowed(exact)
            if smaller != exact:  # not trained in float16
                weights.write_bytes(smaller)
                card.write_text(described(text, hashlib.sha256(smaller).hexdigest()), "utf-8")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})

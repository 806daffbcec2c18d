"""What pyproject.toml has no words for; everything else is there.

A .carimg names the model version that restores it, so that every version stays in the package. Of
one that has a successor the upscaler is enough: nothing is encoded with it any more. Its weights
are rounded to float16's precision, with which it restores the same but for single levels and takes
a third less of the wheel: PyPI takes 100 MB. The repository keeps all of it.
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_DROPPED = 13  # bits of a float32's 23: float16 keeps 10


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


def rounded(model: bytes) -> bytes:
    """An ONNX file with its float32 weights rounded, which compresses to two thirds.

    The build has no onnx package. Of protocol buffers this needs the numbers of four fields:
    ModelProto.graph, GraphProto.initializer, TensorProto.data_type and .raw_data.
    """
    found = bytearray(model)
    for graph in _fields(model, 0, len(model), 7):
        for tensor in _fields(model, *graph, 5):
            if [start for start, _ in _fields(model, *tensor, 2)] != [1]:  # FLOAT
                continue
            for start, end in _fields(model, *tensor, 9):
                found[start:end] = _rounded(model[start:end])
    return bytes(found)


def _rounded(floats: bytes) -> bytes:
    form = f"<{len(floats) // 4}I"
    half, kept = 1 << (_DROPPED - 1), 0xFFFFFFFF << _DROPPED & 0xFFFFFFFF
    return struct.pack(form, *((value + half) & kept for value in struct.unpack(form, floats)))


def _fields(data: bytes, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the fields of this number begin and end; a whole number's value twice."""
    while at < end:
        key, at = _varint(data, at)
        value, at = _varint(data, at)  # or the length of what follows: these messages have no other
        first, last = value, value
        if key & 7 == 2:
            first, last = at, at + value
            at = last
        if key >> 3 == wanted:
            yield first, last


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            return value, at


def described(card: str, digest: str) -> str:
    """A card that says the digest of its upscaler's file beside the one that names the model."""
    before, title, side = card.partition("[upscaler]\n")
    line = f'\\g<0>\nfile_sha256 = "{digest}"  # of the file, whose weights are rounded'
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
        for card in superseded(Path(self.build_lib).rglob("zoo/models/*/card.toml")):
            text = card.read_text("utf-8")
            if "file_sha256" in text:  # of an earlier build
                continue
            weights = card.with_name("upscaler.onnx")
            smaller = rounded(weights.read_bytes())
            weights.write_bytes(smaller)
            card.write_text(described(text, hashlib.sha256(smaller).hexdigest()), "utf-8")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})

"""What pyproject.toml has no words for; everything else is there.

A .carimg names the model version that restores it, so that every version stays in the package. Of
one that has a successor the upscaler is enough: nothing is encoded with it any more.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def superseded(files: list[str]) -> set[str]:
    """Downscalers, among package files, of models that are there in a newer version too."""
    found: dict[str, dict[int, set[str]]] = {}
    for file in files:
        path = Path(file)
        if path.match("downscaler*.onnx") and (m := re.fullmatch(r"(.+)-v(\d+)", path.parent.name)):
            found.setdefault(m[1], {}).setdefault(int(m[2]), set()).add(file)
    return {
        file
        for versions in found.values()
        for version, files in versions.items()
        if version < max(versions)
        for file in files
    }


class BuildPy(build_py):
    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        files: list[str] = super().find_data_files(package, src_dir)
        left_out = superseded(files)
        return [file for file in files if file not in left_out]


setup(cmdclass={"build_py": BuildPy})

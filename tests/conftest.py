from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

HERE = Path(__file__).parent
os.environ["CARCODEC_MODELS"] = str(HERE / "models")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: more threads only spin

settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

from carcodec import zoo  # noqa: E402  (after the variable is set)


@pytest.fixture(scope="session")
def taipei() -> Image.Image:
    """A real photo, 768×640 RGB."""
    with Image.open(HERE / "photos" / "taipei.png") as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def photo(taipei: Image.Image) -> Image.Image:
    """A detailed part of it, 96×64."""
    return taipei.crop((260, 340, 356, 404))


@pytest.fixture
def data(tmp_path: Path, taipei: Image.Image) -> Path:
    """A folder of photos: four parts of it, 128×128."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        taipei.crop((160 * i, 320, 160 * i + 128, 448)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def tiny() -> zoo.ModelCard:
    """The model the tests run: its weights never change."""
    return zoo.find("tiny-x2")


@pytest.fixture
def peak_signal() -> Callable[[Image.Image, Image.Image], float]:
    """PSNR of two pictures, alpha left out."""

    def measure(a: Image.Image, b: Image.Image) -> float:
        error = np.asarray(a.convert("RGB"), float) - np.asarray(b.convert("RGB"), float)
        return float(10 * np.log10(255**2 / max((error**2).mean(), 1e-9)))

    return measure

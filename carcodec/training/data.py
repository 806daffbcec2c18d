"""Training photos: images of a folder, held in memory as 8-bit RGB, cut into random patches."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from carcodec.errors import DataError

__all__ = ["Patches", "load_images", "split"]

Source = Path | zipfile.Path
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm"}


def split(folder: Path) -> tuple[list[Source], list[Source]]:
    """Training and validation files under ``folder``: images, loose or packed in ZIP files.

    ``folder/train`` and ``folder/val`` where both exist; otherwise one file in fifty (at most
    ten, at least one) is held out for validation.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train, held_out = _images(folder / "train"), _images(folder / "val")
    else:
        everything = _images(folder)
        stride = max(50, -(-len(everything) // 10))
        held_out = everything[::stride]
        train = [path for i, path in enumerate(everything) if i % stride]
    if not train or not held_out:
        raise DataError(f"{folder} holds too few images to train on: at least two are needed")
    return train, held_out


def _images(folder: Path) -> list[Source]:
    """Images under a folder, and those packed in ZIP files there."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of training images")
    found: list[Source] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix.lower() in _SUFFIXES:
            found.append(path)
        elif path.suffix.lower() == ".zip":
            try:
                names = sorted(zipfile.ZipFile(path).namelist())
                shard = zipfile.Path(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"cannot read the packed images {path}: {error}") from error
            found += [shard / name for name in names if Path(name).suffix.lower() in _SUFFIXES]
    return found


def load_images(
    paths: Sequence[Source], minimum: int = 1
) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Read images as ``(H, W, 3)`` uint8, leaving out those smaller than ``minimum`` on a side."""

    def read(path: Source) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            with path.open("rb") as file, Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read the training image {path}: {error}") from error

    with ThreadPoolExecutor(2) as pool:
        images = [i for i in pool.map(read, paths) if min(i.shape[:2]) >= minimum]
    if not images:
        raise DataError(f"no training image is at least {minimum} pixels on each side")
    return images


class Patches:
    """Random square patches, flipped and transposed, drawn uniformly over the set's pixels.

    A share of them, ``decimate``, is every second row and column of patches twice the size, where
    the image is large enough.
    """

    def __init__(
        self,
        images: list[np.ndarray[Any, np.dtype[np.uint8]]],
        patch: int,
        seed: int,
        decimate: float = 0.0,
    ) -> None:
        self.images = images
        self.patch = patch
        self.decimate = decimate
        self.random = np.random.default_rng(seed)
        area = np.array([i.shape[0] * i.shape[1] for i in images], float)
        self.chances = np.cumsum(area / area.sum())

    def batch(self, size: int, device: torch.device | None = None) -> Tensor:
        """``(size, 3, patch, patch)`` float32 in [0, 1], channels last."""
        # bytes go to the device, and become floats there
        levels = torch.from_numpy(self._levels(size)).to(device)
        return levels.permute(0, 3, 1, 2).float().div_(255)

    def _levels(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        p = self.patch
        out = np.empty((size, p, p, 3), np.uint8)
        picks = np.minimum(
            np.searchsorted(self.chances, self.random.random(size)), len(self.images) - 1
        )
        for slot, pick in enumerate(picks):
            image = self.images[pick]
            step = 2 if self.decimate and self.random.random() < self.decimate else 1
            reach = step * (p - 1) + 1
            if min(image.shape[:2]) < reach:
                step, reach = 1, p
            top = self.random.integers(image.shape[0] - reach + 1)
            left = self.random.integers(image.shape[1] - reach + 1)
            crop = image[top : top + reach : step, left : left + reach : step]
            turn = self.random.integers(8)
            crop = crop[::-1] if turn & 1 else crop
            crop = crop[:, ::-1] if turn & 2 else crop
            out[slot] = crop.swapaxes(0, 1) if turn & 4 else crop
        return out

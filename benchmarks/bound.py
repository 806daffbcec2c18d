"""How far models that bicubic enlargement restores are from the best LR there can be for it.

    python benchmarks/bound.py EVAL/Set5 EVAL/Kodak … [--models car-x2-bicubic car-x4-bicubic]

Enlargement is linear, one matrix for rows and one for columns, so the LR whose enlargement is
nearest to the photo follows by least squares, photo by photo: no downscaler's LR can be restored
better but for rounding to 8 bits. PSNR of RGB, and of Y without the border (docs/PROTOCOL.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from rich.table import Table

from carcodec import codec, metrics, zoo
from carcodec.commands.terminal import printed


def inverse(count: int, scale: int) -> Any:
    """Pseudo-inverse ``(count, count * scale)`` of enlarging ``count`` samples."""
    samples = Image.fromarray(np.eye(count, dtype=np.float32))
    larger = samples.resize((count, count * scale), Image.Resampling.BICUBIC)
    return np.linalg.pinv(np.asarray(larger, np.float64))


def best(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = (side // scale for side in image.shape[:2])
    rows, columns = inverse(height, scale), inverse(width, scale)
    planes = [rows @ image[..., c].astype(np.float64) @ columns.T for c in range(3)]
    return np.stack(planes, -1).clip(0, 255).round().astype(np.uint8)


def scores(image: np.ndarray, small: np.ndarray, card: zoo.ModelCard) -> list[float]:
    size = (image.shape[1], image.shape[0])
    restored = np.asarray(codec.upscale(small, size, 8, card, channels=3))
    y = metrics.luma(image), metrics.luma(restored)
    return [metrics.psnr(*y, border=card.scale), metrics.psnr(image, restored)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--models", nargs="*", default=["car-x2-bicubic", "car-x4-bicubic"])
    parser.add_argument("--engine", default="openvino:fp32")
    arguments = parser.parse_args()
    table = Table("model", "set", "Y", "least squares", "RGB", "least squares")
    for name in arguments.models:
        card = zoo.find(name)
        if card.upscaler.family != "bicubic":
            raise SystemExit(f"{name} is not restored by bicubic enlargement")
        for folder in arguments.folders:
            found = []
            for path in track(sorted(folder.glob("*.png")), f"{name}, {folder.name}"):
                with Image.open(path) as photo:
                    image = np.asarray(photo.convert("RGB"))
                height, width = (side // card.scale * card.scale for side in image.shape[:2])
                image = np.ascontiguousarray(image[:height, :width])
                small = codec.downscale(image, card, arguments.engine)
                ours, theirs = (scores(image, s, card) for s in (small, best(image, card.scale)))
                found.append([ours[0], theirs[0], ours[1], theirs[1]])
            table.add_row(name, folder.name, *(f"{v:.3f}" for v in np.mean(found, 0)))
    printed.print(table)


if __name__ == "__main__":
    main()

"""PSNR and SSIM of models on folders of photos under the CAR paper's protocol, with LR's bits.

    python benchmarks/quality.py EVAL/Set5 EVAL/Set14 … [--models car-x2 car-x4]
        [--checkpoints runs/bicubic-x2/checkpoint.pt …] [--json figures.json] [--no-rates]

Photos are cropped to multiples of the scale, LR is rounded to 8 bits, and Y of the rounded RGB
result is compared with Y of the original, `scale` pixels of border left out (docs/PROTOCOL.md).
"LR bpp" is the lossless JPEG XL codestream of LR in bits per HR pixel; "JPEG bpp" what JPEG (4:4:4,
optimised, progressive) needs for at least the same RGB PSNR. Checkpoints serve the baselines,
which are not exported.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from carcodec import codec, metrics, storage, zoo

Pair = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def installed(name: str, engine: str, threads: int) -> tuple[int, Pair]:
    card = zoo.find(name)

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        small = codec.downscale(image, card, engine, threads)
        size = (image.shape[1], image.shape[0])
        channels = 3 if image.ndim == 3 else 1
        restored = codec.upscale(small, size, 8, card, engine, threads, channels=channels)
        return small, np.asarray(restored)

    return card.scale, run


def checkpoint(path: Path) -> tuple[str, int, Pair]:
    import torch

    from carcodec.training.export import checkpoint_networks

    recipe, downscaler, upscaler, _ = checkpoint_networks(path)

    @torch.inference_mode()
    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        multiple = 2 * recipe.scale
        pad = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
        source = torch.from_numpy(np.pad(image, pad, "edge")).permute(2, 0, 1)[None] / 255
        small = downscaler(source).clamp(0, 1).mul(255).round()
        restored = upscaler(small / 255).clamp(0, 1).mul(255).round()
        big, little = (x[0].permute(1, 2, 0).byte().numpy() for x in (restored, small))
        return little[: height // recipe.scale, : width // recipe.scale], big[:height, :width]

    return recipe.name, recipe.scale, run


def jpeg_bits(image: np.ndarray, psnr: float) -> int:
    """Bits of the smallest JPEG whose RGB PSNR is at least ``psnr``; of quality 100 if none is."""
    low, high, best = 1, 100, 0
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        picture = Image.fromarray(image)
        picture.save(
            buffer, "JPEG", quality=quality, subsampling=0, optimize=True, progressive=True
        )
        if metrics.psnr(image, np.asarray(Image.open(buffer))) >= psnr:
            high, best = quality - 1, len(buffer.getvalue())
        else:
            low = quality + 1
            best = best or (len(buffer.getvalue()) if quality == 100 else 0)
    return 8 * best


def scores(path: Path, scale: int, pair: Pair, rates: bool) -> tuple[float, ...]:
    """Y PSNR, Y SSIM, RGB PSNR and, if asked for, LR bpp and JPEG bpp of one photo."""
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    height, width = (side // scale * scale for side in image.shape[:2])
    image = np.ascontiguousarray(image[:height, :width])
    small, restored = pair(image)
    y = metrics.luma(image), metrics.luma(restored)
    rgb = metrics.psnr(image, restored)
    found = (metrics.psnr(*y, border=scale), metrics.ssim(*y, border=scale), rgb)
    if not rates:
        return found
    bits = 8 * len(storage.by_name("jpegxl").encode(small))
    return (*found, bits / (height * width), jpeg_bits(image, rgb) / (height * width))


def options(what: str, models: list[str]) -> argparse.ArgumentParser:
    """Options of a command that runs models and checkpoints over folders."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--models", nargs="*", default=models)
    parser.add_argument("--checkpoints", nargs="*", type=Path, default=[])
    parser.add_argument("--engine", default="onnxruntime:fp32")
    parser.add_argument("--threads", type=int, default=0)
    return parser


def chosen(arguments: argparse.Namespace) -> dict[str, tuple[int, Pair]]:
    """Name to scale and system, of what :func:`options` were given."""
    systems = {
        name: installed(name, arguments.engine, arguments.threads) for name in arguments.models
    }
    for path in arguments.checkpoints:
        name, scale, pair = checkpoint(path)
        systems[name] = (scale, pair)
    return systems


def main() -> None:
    parser = options(__doc__.splitlines()[0], ["car-x2", "car-x4"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-rates", action="store_true", help="leave out the bpp columns")
    arguments = parser.parse_args()
    systems = chosen(arguments)
    keys = ["Y PSNR dB", "Y SSIM", "RGB PSNR dB"]
    keys += [] if arguments.no_rates else ["LR bpp", "JPEG bpp"]
    table = Table("model", "set", "photos", *(key.removesuffix(" dB") for key in keys))
    figures: dict[str, dict[str, Any]] = {}
    for name, (scale, pair) in systems.items():
        for folder in arguments.folders:
            photos = sorted(folder.glob("*.png"))
            found = np.array([scores(p, scale, pair, not arguments.no_rates) for p in photos])
            means = [float(v) for v in found.mean(0)]
            assert all(map(math.isfinite, means))
            row = [f"{v:.{d}f}" for v, d in zip(means, (2, 4, 2, 3, 3), strict=False)]
            table.add_row(name, folder.name, str(len(photos)), *row)
            figures.setdefault(name, {})[folder.name] = dict(
                zip(keys, map(float, row), strict=True)
            )
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One page of pictures per paper: its figures' scenes, through its systems and plain bicubic.

    python benchmarks/pictures.py EVAL OUT

EVAL holds the evaluation sets as folders of PNG files. OUT gets car.png, rsrnet.png, tad.png,
tad-extreme.png and index.html. Each row is a crop of one scene: the photo, then for every system
LR (enlarged by repeating pixels) and what is restored from it, with Y PSNR and SSIM of the whole
picture.
tad-extreme has whole photos, made smaller, as the paper shows ×64 and ×128. Models that are not
installed are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from carcodec import atomic, evaluate, metrics
from carcodec.errors import ModelNotFoundError

Pixels = NDArray[np.uint8]
Cells = list[tuple[str, Image.Image]]
Middle = tuple[float, float] | None
Scene = tuple[str, str, Middle]
SIDE, GAP, LINE = 168, 6, 20
# paper → its name, the systems, and its figures' scenes: set, picture, middle of the crop if any
PAPERS: dict[str, tuple[str, tuple[str, ...], tuple[Scene, ...]]] = {
    "car": (
        "CAR, IEEE TIP 2020: figures 3 and 5",
        ("bicubic-x4", "car-x4-bicubic", "car-x4"),
        (
            ("Set14", "barbara", (0.75, 0.55)),
            ("Set14", "comic", (0.5, 0.3)),
            ("Set14", "ppt3", (0.35, 0.2)),
            ("Set5", "butterfly", (0.5, 0.5)),
        ),
    ),
    "rsrnet": (
        "RSRNet, 2018: figures 9, 10 and 11",
        ("bicubic-x3", "rrnet-x3", "car-x3"),
        (
            ("Set14", "lenna", (0.5, 0.5)),
            ("Set14", "baboon", (0.5, 0.2)),
            ("Set14", "ppt3", (0.35, 0.2)),
            ("Set5", "butterfly", (0.5, 0.5)),
        ),
    ),
    "tad": (
        "TAD, ECCV 2018: figures 3 and 6",
        ("bicubic-x2", "tad-x2", "tad-grey", "car-x2"),
        (
            ("Set14", "ppt3", (0.35, 0.2)),
            ("Set14", "comic", (0.5, 0.3)),
            ("Set5", "butterfly", (0.5, 0.5)),
        ),
    ),
    "tad-extreme": (
        "TAD, ECCV 2018: figure 5, on photos of Kodak",
        ("tad-x8", "tad-x16", "tad-x32", "tad-x64", "tad-x128"),
        (
            ("Kodak", "kodim03", None),
            ("Kodak", "kodim23", None),
            ("Kodak", "kodim24", None),
        ),
    ),
}


def crop(image: Pixels, middle: Middle, multiple: int) -> tuple[int, int, int]:
    """Left, top and side of a crop that lies on LR's grid, or of all of it."""
    if middle is None:
        return 0, 0, max(image.shape)
    side = min(SIDE, *image.shape[:2]) // multiple * multiple
    left, top = (
        int(min(max(share * length - side / 2, 0), length - side)) // multiple * multiple
        for share, length in zip(middle, (image.shape[1], image.shape[0]), strict=True)
    )
    return left, top, side


def tile(image: Pixels) -> Image.Image:
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    page = Image.new("RGB", (SIDE, SIDE), "#ddd")
    found = Image.fromarray(colour)
    found.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    page.paste(found, ((SIDE - found.width) // 2, (SIDE - found.height) // 2))
    return page


def row(path: Path, middle: Middle, systems: list[evaluate.System]) -> Cells:
    photo = np.asarray(Image.open(path).convert("RGB"))
    scale = max(system.scale for system in systems)
    height, width = (length // (2 * scale) * 2 * scale for length in photo.shape[:2])
    photo = np.ascontiguousarray(photo[:height, :width])
    left, top, side = crop(photo, middle, 2 * scale)
    window = slice(top, top + side), slice(left, left + side)
    cells = [(path.stem, tile(photo[window]))]
    for system in systems:
        small, restored = system.run(photo)
        s = system.scale
        lr = small[top // s : (top + side) // s, left // s : (left + side) // s]
        cells.append((f"{system.name}: LR", tile(lr.repeat(s, 0).repeat(s, 1))))
        pair = metrics.luma(photo), metrics.luma(restored)
        psnr, ssim = metrics.psnr(*pair, border=s), metrics.ssim(*pair, border=s)
        cells.append((f"{psnr:.2f} dB / {ssim:.4f}", tile(restored[window])))
    return cells


def page(rows: list[Cells]) -> Image.Image:
    columns = max(map(len, rows))
    size = columns * (SIDE + GAP) - GAP, len(rows) * (SIDE + LINE + GAP) - GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, cells in enumerate(rows):
        top = i * (SIDE + LINE + GAP)
        for j, (title, picture) in enumerate(cells):
            draw.text((j * (SIDE + GAP), top + 2), title, "black", font)
            sheet.paste(picture, (j * (SIDE + GAP), top + LINE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    html = ["<!doctype html><meta charset=utf-8><title>The papers' scenes</title>"]
    for name, (title, wanted, scenes) in PAPERS.items():
        systems = []
        for system in wanted:
            try:
                systems.append(evaluate.system(system))
            except ModelNotFoundError:
                print(f"{system} is not installed: left out")
        rows = [
            row(arguments.folder / group / f"{picture}.png", middle, systems)
            for group, picture, middle in scenes
        ]
        page(rows).save(arguments.out / f"{name}.png", optimize=True)
        html.append(f"<h1>{title}</h1><img src={name}.png style='image-rendering:pixelated'>")
    atomic.write(arguments.out / "index.html", "\n".join(html).encode())


if __name__ == "__main__":
    main()

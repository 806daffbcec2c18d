"""How far the colour of flat-looking areas goes off: R − G and B − G, averaged over 8×8 pixels.

    python benchmarks/tints.py EVAL/Kodak EVAL/Urban100 [--models tad-x2-lossless car-x2]
        [--checkpoints runs/…/checkpoint.pt] [--pictures FOLDER]

Networks that hide detail in colour can give it back as a tint, which PSNR hardly sees and people
do. For each photo, with LR rounded to 8 bits: the root mean square of those errors, the largest
one, and the share of pixels where they exceed 4 levels (of 255). Each is averaged over a folder;
the worst photo is named. --pictures writes the worst 96×96 pixels of each folder, photo beside
result, enlarged three times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from quality import chosen, options
from rich.console import Console
from rich.table import Table
from scipy import ndimage

SEEN = 4  # levels
SIDE = 96


def tints(image: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Larger of the two blurred colour errors at each pixel of ``(H, W, 3)``, in levels."""
    error = restored.astype(np.float32) - image
    differences = error[..., ::2] - error[..., 1:2]
    return np.abs(ndimage.uniform_filter(differences, (8, 8, 0))).max(-1)


def main() -> None:
    parser = options(__doc__.splitlines()[0], ["tad-x2-lossless", "car-x2"])
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    table = Table("model", "set", "rms", "largest", f"% over {SEEN}", "worst photo", "there")
    for name, (_, pair) in chosen(arguments).items():
        for folder in arguments.folders:
            rows: list[tuple[float, float, float]] = []
            worst, where, crop = -1.0, "", np.zeros((1, 1, 3), np.uint8)
            for photo in sorted(folder.glob("*.png")):
                with Image.open(photo) as opened:
                    image = np.asarray(opened.convert("RGB"))
                restored = pair(image)[1]
                off = tints(image, restored)
                rows.append((float((off**2).mean()), float(off.max()), float((off > SEEN).mean())))
                if rows[-1][1] > worst:
                    worst, where = rows[-1][1], photo.stem
                    at = np.unravel_index(off.argmax(), off.shape)
                    corner = [
                        int(np.clip(a - SIDE // 2, 0, max(0, s - SIDE)))
                        for a, s in zip(at, off.shape, strict=True)
                    ]
                    part = np.s_[corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE]
                    crop = np.concatenate((image[part], restored[part]), 1)
            mean = np.mean(rows, 0)
            table.add_row(
                name, folder.name, f"{mean[0] ** 0.5:.2f}", f"{mean[1]:.1f}",
                f"{100 * mean[2]:.2f}", where, f"{worst:.1f}",
            )  # fmt: skip
            if arguments.pictures:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                drawn = Image.fromarray(crop)
                drawn = drawn.resize((drawn.width * 3, drawn.height * 3), Image.Resampling.NEAREST)
                drawn.save(arguments.pictures / f"{name}-{folder.name}.png")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

"""Draw docs/picture.png for the README: original, stored thumbnail and restored, a crop at 1:1.

python benchmarks/picture.py [--model car-x2] [--box LEFT TOP RIGHT BOTTOM]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import carcodec

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="car-x2")
    parser.add_argument("--box", type=int, nargs=4, default=(200, 290, 472, 562))
    arguments = parser.parse_args()
    with Image.open(ROOT / "tests" / "photos" / "taipei.png") as opened:
        photo = opened.convert("RGB")
    encoded = carcodec.encode(photo, model=arguments.model, engine="onnxruntime")
    restored = carcodec.decode(encoded.data, engine="onnxruntime")
    small = carcodec.thumbnail(encoded.data)
    scale = encoded.header.scale
    box = tuple(arguments.box)
    side, gap, line = box[2] - box[0], 8, 22
    sheet = Image.new("RGB", (3 * side + 2 * gap, side + line), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    little = small.crop(tuple(edge // scale for edge in box))
    middle = Image.new("RGB", (side, side), "#ddd")
    middle.paste(little, ((side - little.width) // 2, (side - little.height) // 2))
    parts = (
        ("original", photo.crop(box)),
        (f"stored small image (1/{scale} a side), at 1:1", middle),
        (f"restored from it, {encoded.bpp:.2f} bpp", restored.crop(box)),
    )
    for i, (title, part) in enumerate(parts):
        draw.text((i * (side + gap), 2), title, "black", font)
        sheet.paste(part, (i * (side + gap), line))
    sheet.save(ROOT / "docs" / "picture.png", optimize=True)


if __name__ == "__main__":
    main()

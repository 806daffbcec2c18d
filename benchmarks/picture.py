"""Draw docs/picture.png for the README, a crop at 1:1: original, stored thumbnail, restored, and
JPEG (libjpeg-turbo, optimised, progressive, 4:2:0) in no fewer bytes.

python benchmarks/picture.py [--model auto] [--box LEFT TOP RIGHT BOTTOM]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import carcodec

ROOT = Path(__file__).parent.parent


def as_jpeg(photo: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True, subsampling=2)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--box", type=int, nargs=4, default=(216, 306, 456, 546))
    arguments = parser.parse_args()
    with Image.open(ROOT / "tests" / "photos" / "taipei.png") as opened:
        photo = opened.convert("RGB")
    encoded = carcodec.encode(photo, model=arguments.model, engine="onnxruntime")
    restored = carcodec.decode(encoded.data, engine="onnxruntime")
    small = carcodec.thumbnail(encoded.data)
    jpeg = next(j for q in range(1, 96) if len(j := as_jpeg(photo, q)) >= len(encoded.data))
    scale = encoded.header.scale
    box = tuple(arguments.box)
    side, gap, line = box[2] - box[0], 8, 22
    sheet = Image.new("RGB", (4 * side + 3 * gap, side + line), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    little = small.crop(tuple(edge // scale for edge in box))
    middle = Image.new("RGB", (side, side), "#ddd")
    middle.paste(little, ((side - little.width) // 2, (side - little.height) // 2))
    parts = (
        ("original", photo.crop(box)),
        (f"stored small image, 1/{scale} a side", middle),
        (f"restored from it: {len(encoded.data):,} bytes", restored.crop(box)),
        (f"JPEG: {len(jpeg):,} bytes", Image.open(io.BytesIO(jpeg)).crop(box)),
    )
    for i, (title, part) in enumerate(parts):
        draw.text((i * (side + gap), 2), title, "black", font)
        sheet.paste(part, (i * (side + gap), line))
    sheet.save(ROOT / "docs" / "picture.png", optimize=True)


if __name__ == "__main__":
    main()

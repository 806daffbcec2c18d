"""Makes tests/golden. Its files are never made again: they must decode for ever.

Run again, it adds what there is none of yet: a storage codec in a new form, and in tests/shipped
every shipped model.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
os.environ["CARCODEC_MODELS"] = str(HERE / "models")

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image, ImageCms  # noqa: E402

from carcodec import codec, container, pixels, storage, zoo  # noqa: E402
from carcodec.zoo import shelf  # noqa: E402


def shipped() -> None:
    folder = HERE / "shipped"
    folder.mkdir(exist_ok=True)
    with Image.open(HERE / "photos" / "taipei.png") as image:
        crop = image.convert("RGB").crop((380, 380, 461, 443))
    cards = [c for c in zoo.installed() if c.folder.parent == shelf.search_path()[-1]]
    for card in cards:
        path = folder / f"{card.name}-v{card.version}.carimg"
        if path.exists():
            continue
        photo = pixels.from_image(crop)
        small = codec.downscale(photo.colour, card, "onnxruntime:fp32")
        prepared = codec.Prepared(photo, card, small, None, 0, None)
        quality = 60 if card.storage else None
        path.write_bytes(codec.store(prepared, card.storage or "png", quality).data)


def profile(curve: NDArray[np.float64]) -> bytes:
    """As much of an ICC profile as has a curve."""
    tag = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + curve.astype(">u2").tobytes()
    table = struct.pack(">I4sII", 1, b"rTRC", 144, len(tag))
    return bytes(128) + table + tag


def main() -> None:
    shipped()
    folder = HERE / "golden"
    folder.mkdir(exist_ok=True)
    listed = folder / "index.json"
    index = json.loads(listed.read_text()) if listed.exists() else {}
    with Image.open(HERE / "photos" / "taipei.png") as image:
        crop = image.convert("RGB").crop((380, 380, 421, 413))
    grey, colour = np.asarray(crop.convert("L")), np.asarray(crop)
    alpha = np.linspace(0, 255, grey.size).astype(np.uint8).reshape(grey.shape)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x013B] = "carcodec"
    photos = {
        "l": pixels.from_array(grey),
        "la": pixels.from_array(np.dstack([grey, alpha])),
        "rgb": pixels.Photo("RGB", colour, None, icc, b"Exif\0\0" + exif.tobytes()[6:], b"<x/>"),
        "rgba": pixels.from_array(np.dstack([colour, alpha])),
        "rgba-opaque": pixels.from_array(np.dstack([colour, np.full_like(alpha, 255)])),
        "1": pixels.from_image(crop.convert("1")),
        "i16": pixels.from_array(grey.astype(np.uint16) * 257),
        "rgb16": pixels.from_array(colour.astype(np.uint16) * 257),
        "rgba16": pixels.from_array(np.dstack([colour, alpha]).astype(np.uint16) * 257),
    }
    runs = [(f"mode-{name}", photo, "png", None, None) for name, photo in photos.items()]
    runs.append(("alpha-lossy", photos["rgba"], "png", None, 40))
    for c in storage.STORAGES:
        form = {7: "av1", 8: "j2k"}.get(c.number, c.name)  # "avif", "jpeg2000": older forms
        for kind in ("rgb", "l"):
            runs.append((f"{form}-lossless-{kind}", photos[kind], c.name, None, None))
            if c.lossy:
                runs.append((f"{form}-70-{kind}", photos[kind], c.name, 70, None))
    runs.append(("preview", photos["rgb"], "png", None, None))
    curved = replace(photos["rgb"], icc=profile(np.linspace(0, 255, 200) ** 2))
    runs.append(("preview-av1", photos["rgb"], "png", None, None))  # "preview" has WebP
    runs.append(("metadata", curved, "png", None, None))  # packed
    for name, photo, codec_name, quality, alpha_quality in runs:
        if name in index:
            continue
        codec.PREVIEW_FROM = 1 if name.startswith("preview") else 2**19
        codec.PREVIEW_SIDE = 16
        codec.PREVIEW_SHARE = 1
        encoded = codec.encode(
            photo, model="tiny-x2", storage_codec=codec_name, quality=quality,
            alpha_quality=alpha_quality, engine="onnxruntime",
        )  # fmt: skip
        (folder / f"{name}.carimg").write_bytes(encoded.data)
        file = container.read(encoded.data)
        small = np.asarray(codec.stored_image(file))
        array = pixels.to_array(codec.restore(file, "onnxruntime:fp32"))
        index[name] = {
            "mode": encoded.header.mode_name,
            "lr_shape": list(small.shape),
            "lr_sum": int(small.astype(np.int64).sum()),
            "shape": list(array.shape),
            "mean": round(float(array.mean()), 4),
            "metadata": [len(part or b"") for part in (file.icc, file.exif, file.xmp)],
        }
    listed.write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()

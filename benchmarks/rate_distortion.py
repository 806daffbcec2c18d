"""Rate-distortion of carcodec against standard codecs: BD-rates over a range of bpp.

    python benchmarks/rate_distortion.py EVAL/Kodak [--range 0.1 0.5] [--models car-x2 car-x4]
        [--storages jpeg2000 avif] [--against jpeg avif …] [--cache rd.json] [--limit 6]

Bits are those of whole files. Every photo is coded at every quality of every codec once; results
are kept in --cache, by the digest of the photo and the settings, so that a run goes on where it
stopped. carcodec is the hull: at every rate the best of its models, storages and qualities.
BD-rate is computed per photo (PCHIP, the `bjontegaard` package of the compare extra) on
the parts of both curves inside the range, then averaged over photos; negative is better.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bjontegaard
import imagecodecs
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.interpolate import PchipInterpolator

import carcodec
from carcodec import atomic, metrics, storage, zoo

Point = tuple[float, float]  # bpp, dB
Coder = Callable[[np.ndarray], tuple[int, np.ndarray]]  # photo to bytes and restored photo


def pillow(kind: str, **options: Any) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        return len(buffer.getvalue()), np.asarray(Image.open(buffer).convert("RGB"))

    return run


def jpeg2000(level: float) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        data = imagecodecs.jpeg2k_encode(image, level=level, reversible=False, codecformat="j2k")
        return len(data), imagecodecs.jpeg2k_decode(data)

    return run


def avif(level: int, sampling: str) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        data = imagecodecs.avif_encode(
            image, level=level, speed=6, pixelformat=sampling, numthreads=2
        )
        return len(data), imagecodecs.avif_decode(data)

    return run


def jpegxl(level: int) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        data = imagecodecs.jpegxl_encode(
            image, level=level, lossless=False, effort=7, usecontainer=False
        )
        return len(data), imagecodecs.jpegxl_decode(data)

    return run


def ours(model: str, storage_codec: str, quality: int, engine: str) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        options: dict[str, Any] = {"model": model, "storage_codec": storage_codec}
        data = carcodec.encode(image, quality=quality, engine=engine, **options).data
        return len(data), carcodec.decode_array(data, engine=engine)

    return run


def anchors() -> dict[str, dict[str, Coder]]:
    """Codec, then setting, then what codes with it."""
    jpeg = {"optimize": True, "progressive": True}
    low = (*range(1, 16, 2), *range(16, 97, 5))
    return {
        "jpeg": {f"q{q}": pillow("JPEG", quality=q, subsampling=2, **jpeg) for q in low},
        "jpeg-444": {f"q{q}": pillow("JPEG", quality=q, subsampling=0, **jpeg) for q in low},
        "jpeg2000": {f"{d} dB": jpeg2000(d) for d in np.arange(20, 45, 1.5).tolist()},
        "webp": {f"q{q}": pillow("WEBP", quality=q, method=6) for q in (0, *low)},
        "avif": {f"q{q}": avif(q, "420") for q in range(2, 97, 4)},
        "jpegxl": {f"q{q}": jpegxl(q) for q in range(2, 97, 5)},
    }


def branches(models: list[str], storages: list[str], engine: str) -> dict[str, dict[str, Coder]]:
    """carcodec's models and storages; a card's digest is part of the setting."""
    found: dict[str, dict[str, Coder]] = {}
    for model in models:
        digest = zoo.find(model).short_digest.hex()
        for name in storages:
            qualities = (2, 6, 10, 15, 20, 26, 32, 40, 48, 56, 64, 72, 80, 88, 95)
            found[f"{model} {name}"] = {
                f"{digest} q{q}": ours(model, name, q, engine) for q in qualities
            }
    return found


def hull(points: list[Point]) -> list[Point]:
    """The upper convex hull of (bpp, dB), from the lowest rate to the highest quality."""
    best: list[Point] = []
    for point in sorted(points):
        if best and point[1] <= best[-1][1]:
            continue
        while len(best) > 1 and _turn(best[-2], best[-1], point) >= 0:
            best.pop()
        best.append(point)
    return best


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def inside(points: list[Point], low: float, high: float) -> list[Point]:
    """A curve's part between two rates, ends interpolated in log rate."""
    rates, quality = np.array(sorted(points)).T
    quality = np.maximum.accumulate(quality)
    keep = np.concatenate(([True], np.diff(quality) > 1e-9))
    rates, quality = rates[keep], quality[keep]
    line = PchipInterpolator(np.log(rates), quality)
    ends = [max(low, rates[0]), min(high, rates[-1])]
    middle = rates[(rates > ends[0]) & (rates < ends[1])]
    at = [ends[0], *middle.tolist(), ends[1]]
    return [(rate, float(line(np.log(rate)))) for rate in at]


def bd_rate(anchor: list[Point], test: list[Point], low: float, high: float) -> float:
    """Per cent of the anchor's rate that the test saves (negative) at equal quality."""
    curves = [np.array(inside(points, low, high)).T for points in (anchor, test)]
    if any(curve.shape[1] < 3 or curve[0, 0] >= curve[0, -1] for curve in curves):
        return float("nan")
    (rate_a, db_a), (rate_t, db_t) = curves
    if max(db_a[0], db_t[0]) >= min(db_a[-1], db_t[-1]):
        return float("nan")  # no quality in common
    return float(
        bjontegaard.bd_rate(
            rate_a, db_a, rate_t, db_t, method="pchip", require_matching_points=False, min_overlap=0
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--range", nargs=2, type=float, default=(0.1, 0.5))
    parser.add_argument("--models", nargs="*", default=["car-x2", "car-x4"])
    parser.add_argument("--storages", nargs="*", default=["jpeg2000", "avif"])
    parser.add_argument("--against", nargs="*", default=list(anchors()), choices=list(anchors()))
    parser.add_argument("--metric", default="rgb", choices=["rgb", "y"])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("rate_distortion.json"))
    parser.add_argument("--limit", type=int, help="only the first so many photos")
    arguments = parser.parse_args()
    known: dict[str, list[float]] = {}
    if arguments.cache.exists():
        known = json.loads(arguments.cache.read_text())
    mine = branches(arguments.models, arguments.storages, arguments.engine)
    codecs = {name: anchors()[name] for name in arguments.against} | mine
    photos = sorted(arguments.folder.glob("*.png"))[: arguments.limit]
    curves: dict[str, list[list[Point]]] = {name: [] for name in codecs}
    for path in track(photos, "coding"):
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
        digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        for name, settings in codecs.items():
            curve: list[Point] = []
            for setting, coder in settings.items():
                key = f"{digest} {name} {setting}"
                if key not in known:
                    size, restored = coder(image)
                    y = metrics.luma(image), metrics.luma(restored)
                    bpp = 8 * size / (image.shape[0] * image.shape[1])
                    known[key] = [bpp, metrics.psnr(image, restored), metrics.psnr(*y)]
                bpp, rgb, luma = known[key]
                curve.append((bpp, rgb if arguments.metric == "rgb" else luma))
            curves[name].append(curve)
        atomic.write(arguments.cache, json.dumps(known, indent=0).encode())
    hulls = [hull([p for name in mine for p in curves[name][i]]) for i in range(len(photos))]
    low, high = arguments.range
    title = f"BD-rate in %, {low}–{high} bpp, {arguments.metric} PSNR, {len(photos)} photos"
    table = Table("carcodec", *arguments.against, title=title)
    for name, tested in (*((n, curves[n]) for n in mine), ("hull", hulls)):
        row = []
        for other in arguments.against:
            pairs = zip(curves[other], tested, strict=True)
            rates = np.array([bd_rate(a, t, low, high) for a, t in pairs])
            valid = rates[np.isfinite(rates)]
            short = "" if len(valid) == len(rates) else f" ({len(valid)} photos)"
            row.append(f"{valid.mean():+.1f}{short}" if len(valid) else "no overlap")
        table.add_row(name, *row)
    Console(width=120).print(table)
    print("storages:", ", ".join(s.name for s in storage.STORAGES), "| imagecodecs", end=" ")
    print(imagecodecs.__version__)


if __name__ == "__main__":
    main()

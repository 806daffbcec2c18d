"""Rate-distortion of carcodec against standard codecs: BD-rates over ranges of bpp.

    python benchmarks/rate_distortion.py EVAL/Kodak [--ranges 0.1:0.5 0.05:0.25] [--metric ssim]
        [--storages avif jpeg2000] [--models …] [--against jpeg avif …] [--effort 3]
        [--cache rd.json] [--figures figures.json] [--limit 6]

Bits are those of whole files. Every photo is coded at every quality of every codec once; results
are kept in --cache, by the digest of the photo and the settings, so that a run goes on where it
stopped. carcodec's rows are its models, each with the storage codec that it was trained for
(--models adds others), and the hulls of each storage codec's models and of all: at every rate the
best of models and qualities. BD-rate is computed per photo (PCHIP, the `bjontegaard` package of
the compare extra) on the parts of both curves inside the range, then averaged over photos;
negative is better. In brackets: the worst photo, and how many had an overlap where not all had.
Metrics are RGB PSNR, Y PSNR and Y SSIM (as -10 log10(1 - SSIM)). --figures writes what cards hold.
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
from carcodec import atomic, codec, dial, metrics, storage, zoo

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


def ours(model: str, storage_codec: str, quality: int, engine: str, effort: int) -> Coder:
    def run(image: np.ndarray) -> tuple[int, np.ndarray]:
        key = (model, hashlib.sha256(image.tobytes()).hexdigest())
        if key not in _PREPARED:
            _PREPARED.clear()  # qualities of a model follow each other
            _PREPARED[key] = codec.prepare(image, model=model, engine=engine)
        data = codec.store(_PREPARED[key], storage_codec, quality, effort=effort).data
        return len(data), carcodec.decode_array(data, engine=engine)

    return run


_PREPARED: dict[tuple[str, str], codec.Prepared] = {}


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
        "avif-444": {f"q{q}": avif(q, "444") for q in range(2, 97, 4)},
        "jpegxl": {f"q{q}": jpegxl(q) for q in range(2, 97, 5)},
    }


# Where each storage codec's LR makes sense, at most; what does not reach a range is left out of it
QUALITIES = {
    "avif": (5, 12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 92),
    "jpeg2000": (4, 9, 14, 19, 24, 29, 34, 39, 45, 52),
}


def branches(pairs: list[tuple[str, str]], engine: str, effort: int) -> dict[str, dict[str, Coder]]:
    """carcodec's models and storages; a card's digest is part of the setting."""
    found: dict[str, dict[str, Coder]] = {}
    for model, name in pairs:
        digest = zoo.find(model).short_digest.hex()
        found[f"{model} {name}"] = {
            f"{digest} e{effort} q{q}": ours(model, name, q, engine, effort)
            for q in QUALITIES.get(name, tuple(range(5, 96, 10)))
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
    rates, quality = np.array(sorted(dict(sorted(points)).items())).T  # the best of each rate
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


def measured(image: np.ndarray, size: int, restored: np.ndarray, ssim: bool) -> list[float]:
    """bpp, RGB PSNR, Y PSNR, and, as it takes the most time, only if asked for: Y SSIM in dB."""
    y = metrics.luma(image), metrics.luma(restored)
    bpp = 8 * size / (image.shape[0] * image.shape[1])
    found = [bpp, metrics.psnr(image, restored), metrics.psnr(*y)]
    return [*found, -10 * float(np.log10(max(1 - metrics.ssim(*y), 1e-6)))] if ssim else found


METRICS = {"rgb": "RGB PSNR", "y": "Y PSNR", "ssim": "Y SSIM"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranges", nargs="*", default=["0.1:0.5", "0.05:0.25"])
    parser.add_argument("--models", nargs="*", default=[], help="others, with every --storages")
    parser.add_argument("--storages", nargs="*", default=["avif", "jpeg2000"])
    parser.add_argument("--against", nargs="*", default=list(anchors()), choices=list(anchors()))
    parser.add_argument("--metric", default="rgb", choices=list(METRICS))
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--effort", type=int, default=storage.DEFAULT_EFFORT)
    parser.add_argument("--cache", type=Path, default=Path("rate_distortion.json"))
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--limit", type=int, help="only the first so many photos")
    arguments = parser.parse_args()
    column = 1 + list(METRICS).index(arguments.metric)
    known: dict[str, list[float]] = {}
    if arguments.cache.exists():
        known = json.loads(arguments.cache.read_text())
    pairs = [(m, s) for s in arguments.storages for m in dial.branches(s)]
    pairs += [(m, s) for m in arguments.models for s in arguments.storages if (m, s) not in pairs]
    mine = branches(pairs, arguments.engine, arguments.effort)
    codecs = {name: anchors()[name] for name in arguments.against} | mine
    photos = sorted(arguments.folder.glob("*.png"))[: arguments.limit]
    curves: dict[str, list[list[list[float]]]] = {name: [] for name in codecs}
    for path in track(photos, "coding"):
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
        digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        for name, settings in codecs.items():
            for setting, coder in settings.items():
                key = f"{digest} {name} {setting}"
                if len(known.get(key, [])) <= column:
                    known[key] = measured(image, *coder(image), column == 3)
            curves[name].append([known[f"{digest} {name} {s}"] for s in settings])
        atomic.write(arguments.cache, json.dumps(known, indent=0).encode())

    def points(name: str) -> list[list[Point]]:
        return [[(row[0], row[column]) for row in curve] for curve in curves[name]]

    tested = {name: points(name) for name in mine}
    groups = {f"hull, {s}": [n for n in mine if n.endswith(f" {s}")] for s in arguments.storages}
    for title, names in (*groups.items(), ("hull, all", list(mine))):
        if len(names) > 1:
            merged = [[p for n in names for p in points(n)[i]] for i in range(len(photos))]
            tested[title] = [hull(all_points) for all_points in merged]
    figures: dict[str, dict[str, Any]] = {}
    for text in arguments.ranges:
        low, high = map(float, text.split(":"))
        kind = METRICS[arguments.metric]
        title = f"BD-rate in %, {low}–{high} bpp, {kind}, {len(photos)} photos"
        table = Table("carcodec", *arguments.against, title=title)
        for name, test in tested.items():
            row = []
            for other in arguments.against:
                both = zip(points(other), test, strict=True)
                rates = np.array([bd_rate(a, t, low, high) for a, t in both])
                valid = rates[np.isfinite(rates)]
                if not len(valid):
                    row.append("no overlap")
                    continue
                short = "" if len(valid) == len(rates) else f", {len(valid)} photos"
                row.append(f"{valid.mean():+.1f} ({valid.max():+.0f}{short})")
                if not short and name in mine:
                    entry = figures.setdefault(name.split()[0], {}).setdefault(
                        arguments.folder.name, {}
                    )
                    entry[f"BD-rate % {kind} {text} bpp against {other}"] = round(valid.mean(), 1)
            table.add_row(name, *row)
        Console(width=140).print(table)
    for name in mine:
        means = np.array(curves[name]).mean(0)
        entry = figures.setdefault(name.split()[0], {}).setdefault(arguments.folder.name, {})
        for setting, row in zip(mine[name], means, strict=True):
            entry[setting.split()[-1]] = [round(float(v), 3) for v in row[:3]]
    if arguments.figures:
        atomic.write(arguments.figures, json.dumps(figures, indent=1).encode())
    print(f"imagecodecs {imagecodecs.__version__}, effort {arguments.effort}")


if __name__ == "__main__":
    main()

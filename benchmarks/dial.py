"""Measure the quality dial: which model serves which part of it (carcodec/zoo/dial.toml).

    python benchmarks/dial.py PHOTOS [--storages avif jpeg2000] [--write] [--check EVAL/Kodak]

Needs the compare extra.

PHOTOS are ones that no evaluation uses; storage codecs that are not named keep their dials. For
each storage codec, its models are coded at many qualities; the upper convex hull of the means over
photos says which models serve, in which order. A model serves up to the last quality at which the
median photo takes no more bits than the next model needs for the same PSNR: by SSIM it then takes
fewer. Where one model hands over to the next, the next begins at the first quality at which every
photo is both larger and better than at the last quality of the one before, so that the dial climbs
in bytes and in quality. Between ends, the dial is linear in the codec's quality, and the share of
the dial that a model gets is its share of the logarithm of bits.

--check walks the finished dial over other photos and counts the steps that fall.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

import carcodec
from carcodec import atomic, codec, container, dial, metrics, zoo
from carcodec.compare import curves

Grid = dict[float, np.ndarray]  # quality to (photos, 2): bpp and PSNR
DIAL = Path(zoo.__file__).parent / "dial.toml"
HEAD = "# Written by benchmarks/dial.py, which says how. Qualities are the storage codec's.\n"


def load(folder: Path, limit: int | None) -> list[np.ndarray]:
    found = []
    for path in sorted(folder.glob("*.png"))[:limit]:
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def measure(photos: list[np.ndarray], model: str, storage: str, grid: list[float]) -> Grid:
    table: dict[float, list[Any]] = {q: [] for q in grid}
    gains: dict[float, list[float]] = {q: [] for q in grid}
    for photo in track(photos, f"{model} {storage}"):
        prepared = codec.prepare(photo, model=model)
        for quality in grid:
            encoded = codec.store(prepared, storage, quality)
            file = container.read(encoded.data)
            found = metrics.psnr(photo, codec.restore(file).colour)
            table[quality].append((encoded.bpp, found))
            if prepared.card.scale == 1:
                gains[quality].append(found - metrics.psnr(photo, codec.stored_image(file)))
    # without downscaling, a network that no longer restores anything ends its dial
    kept = [q for q in grid if not gains[q] or np.mean(gains[q]) > 0]
    return {q: np.array(table[q]) for q in kept}


def vertices(grids: dict[str, Grid]) -> list[tuple[str, float]]:
    """(model, quality) of the vertices, by rate: means of log bits and of PSNR over photos."""
    points = {
        (float(np.exp(np.log(rows[:, 0]).mean())), float(rows[:, 1].mean())): (model, quality)
        for model, grid in grids.items()
        for quality, rows in grid.items()
    }
    return [points[corner] for corner in curves.hull(list(points))]


def dearer(rows: np.ndarray, grid: Grid) -> float:
    """Logarithm of bits over those that another model needs for the same PSNR; median of photos."""
    curve = np.stack([grid[q] for q in sorted(grid)])  # (qualities, photos, 2)
    found = [
        np.log(bits) - np.interp(level, curve[:, i, 1], np.log(curve[:, i, 0]))
        for i, (bits, level) in enumerate(rows)
        if curve[0, i, 1] <= level <= curve[-1, i, 1]
    ]
    return float(np.median(found)) if found else np.inf


def parts(grids: dict[str, Grid]) -> list[tuple[str, float, float]]:
    """(model, first quality, last quality) by rising rate."""
    found: list[tuple[str, float, float]] = []
    for model, quality in vertices(grids):
        if found and found[-1][0] == model:
            found[-1] = (model, found[-1][1], quality)
        elif model not in [m for m, _, _ in found]:
            found.append((model, quality, quality))
    for i, (model, first, last) in enumerate(found[:-1]):
        after = grids[found[i + 1][0]]
        cheap = [q for q, rows in grids[model].items() if dearer(rows, after) <= 0]
        found[i] = (model, first, max([last, *cheap]))
    # a model's first quality: where every photo has left the model before behind
    for i in range(1, len(found)):
        before = grids[found[i - 1][0]][found[i - 1][2]]
        model, _, last = found[i]
        clear = [q for q, rows in grids[model].items() if (rows > before).all() and q <= last]
        if not clear:
            raise SystemExit(f"{model} never leaves {found[i - 1][0]} behind on every photo")
        found[i] = (model, min(clear), last)
    return found


def toml(storage: str, chosen: list[tuple[str, float, float]], grids: dict[str, Grid]) -> str:
    spans = []
    for model, low, high in chosen:
        ends = [float(np.log(grids[model][q][:, 0]).mean()) for q in (low, high)]
        spans.append(max(ends[1] - ends[0], 1e-6))
    ends = np.rint(100 * np.cumsum(spans) / sum(spans)).astype(int).tolist()
    found, first = [], 0
    for (model, low, high), last in zip(chosen, ends, strict=True):
        found.append(dial._Part(model, (first, last), (low, high)))
        first = last + 1
    return listed(storage, found)


def listed(storage: str, found: Iterable[dial._Part]) -> str:
    lines = [
        f'    {{ model = "{p.model}", dial = [{p.dial[0]:g}, {p.dial[1]:g}], '
        f"quality = [{p.quality[0]:g}, {p.quality[1]:g}] }},"
        for p in found
    ]
    return "\n".join([f"{storage} = [", *lines, "]"])


def check(photos: list[np.ndarray], storage: str) -> None:
    falls, steps, worst = 0, 0, [0.0, 0.0]
    for photo in track(photos, f"checking {storage}"):
        made: dict[str, codec.Prepared] = {}
        before: tuple[int, float] | None = None
        seen = None
        for turned in range(0, 101, 2):
            setting = dial.settle(storage_codec=storage, quality=turned)
            if setting == seen:
                continue
            seen = setting
            if setting.model not in made:
                made[setting.model] = codec.prepare(photo, model=setting.model)
            data = codec.store(made[setting.model], setting.storage, setting.quality).data
            now = (len(data), metrics.psnr(photo, carcodec.decode_array(data)))
            if before is not None:
                steps += 1
                falls += now[0] < before[0] or now[1] < before[1]
                worst[0] = min(worst[0], now[0] / before[0] - 1)
                worst[1] = min(worst[1], now[1] - before[1])
            before = now
    print(
        f"{storage}: {falls} of {steps} steps fall; "
        f"worst {100 * worst[0]:.2f} % of bytes, {worst[1]:.3f} dB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--storages", nargs="*", default=["avif", "jpeg2000"])
    parser.add_argument("--step", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    photos = load(arguments.photos, arguments.limit)
    texts = {name: listed(name, found) for name, found in dial._table().dials.items()}
    for storage in arguments.storages:
        grid = [float(q) for q in range(3, 99, arguments.step)]
        grids = {m: measure(photos, m, storage, grid) for m in dial.branches(storage)}
        for model, quality in vertices(grids):
            bpp, psnr = grids[model][quality].mean(0)
            print(f"{storage} hull: {model} q{quality:g} {bpp:.3f} bpp {psnr:.2f} dB")
        texts[storage] = toml(storage, parts(grids), grids)
    kept = [f'{scale} = "{model}"' for scale, model in dial._table().lossless.items()]
    lossless = ["[lossless]  # which model stores LR losslessly, by scale; chosen by hand", *kept]
    text = "\n".join([HEAD + 'auto = "avif"\n', *lossless, "", "[dials]", *texts.values()])
    text += "\n"
    print(text)
    if arguments.write:
        atomic.write(DIAL, text.encode())
        dial._table.cache_clear()
    if arguments.check:
        for storage in arguments.storages:
            check(load(arguments.check, None), storage)


if __name__ == "__main__":
    main()

"""Encode and decode megapixels per second and peak memory, per engine, model and storage.

    python benchmarks/speed.py [PHOTO] [--megapixels 6] [--threads 2] [--engines …] [--models …]

The photo (the one the repository ships by default) is tiled to the size asked for. Each row
runs in a process of its own, so that peak memory is its own; times are the best of --repeat
runs after one that loads the network. "network" is the downscaler or upscaler alone, tiles
and conversions included; "codec" the storage codec alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import carcodec
from carcodec import codec, container, engines, storage, zoo

PHOTO = Path(__file__).parent.parent / "tests" / "photos" / "taipei.png"


def best(action: Callable[[], Any], repeat: int) -> float:
    action()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def load(path: Path, megapixels: float) -> np.ndarray:
    with Image.open(path) as image:
        colour = np.asarray(image.convert("RGB"))
    times = max(1, round((megapixels * 1e6 / (colour.shape[0] * colour.shape[1])) ** 0.5))
    mirrored = np.concatenate([colour, colour[:, ::-1]], 1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]], 0)
    repeats = -(-times // 2)
    tiled = np.tile(mirrored, (repeats, repeats, 1))
    return np.ascontiguousarray(tiled[: colour.shape[0] * times, : colour.shape[1] * times])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One row, in this process."""
    colour = load(arguments.photo, arguments.megapixels)
    model, engine, stored = arguments.row
    card = zoo.find(model)
    chosen = storage.by_name(stored)
    run = {"engine": engine, "threads": arguments.threads}
    options = {"model": model, "storage_codec": stored, **run}
    megapixels = colour.shape[0] * colour.shape[1] / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encode = best(lambda: carcodec.encode(colour, **options), arguments.repeat)
    data = carcodec.encode(colour, **options).data
    file = container.read(data)
    small = codec.stored_image(file)
    size = (file.header.width, file.header.height)
    decode = best(lambda: carcodec.decode_array(data, **run), arguments.repeat)
    down = best(lambda: codec.downscale(colour, card, **run), 1)
    up = best(lambda: codec.upscale(small, size, 8, card, **run), 1)
    store = best(lambda: chosen.encode(small), 1)
    fetch = best(lambda: codec.stored_image(file), 1)
    header = best(lambda: container.read_header(data[:100]), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "encode MP/s": megapixels / encode,
        "network": megapixels / down,
        "codec": megapixels / store,
        "decode MP/s": megapixels / decode,
        "network ": megapixels / up,
        "codec ": megapixels / fetch,
        "thumbnail ms": 1000 * fetch,
        "header ms": 1000 * header,
        "peak MiB": peak / 1024,
        "before MiB": before / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", type=Path, default=PHOTO)
    parser.add_argument("--megapixels", type=float, default=6)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--engines", nargs="*", default=engines.available())
    parser.add_argument("--models", nargs="*", default=["car-x2", "car-x4"])
    parser.add_argument("--storages", nargs="*", default=["jpegxl", "png"])
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments)))
        return
    rows = [
        (m, e, s) for m in arguments.models for e in arguments.engines for s in arguments.storages
    ]
    table: Table | None = None
    for row in rows:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--row", *row], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        if table is None:
            table = Table("model", "engine", "storage", *found)
        table.add_row(*row, *(f"{v:.2f}" if v < 100 else f"{v:.0f}" for v in found.values()))
    if table is not None:
        Console(width=170).print(table)


if __name__ == "__main__":
    main()

"""Score downscaler-upscaler pairs as the papers do: fidelity, and the bits of lossless LR."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from carcodec import codec, metrics, pixels, resize, zoo
from carcodec.compare.run import cache_folder, fingerprint, keep, load, paths, recall
from carcodec.errors import CarcodecError, CompareError, ImageError, ModelNotFoundError

__all__ = [
    "BITS", "FIGURES", "LARGEST_SCALE", "PROTOCOLS", "Published", "Row", "System", "as_csv",
    "as_json", "beside", "evaluate", "markdown", "printed", "published", "sources", "speeds",
    "system", "systems", "table", "tables",
]  # fmt: skip

Pixels = NDArray[np.uint8]
# of the papers' tables, whose pictures are too small for more; TAD's ×8 … ×128 are taken by name
LARGEST_SCALE = 4
Protocol = Literal["car", "matlab"]
PROTOCOLS: tuple[Protocol, ...] = ("car", "matlab")

# figure → heading, decimals
FIGURES: dict[str, tuple[str, int]] = {
    "psnr_y": ("PSNR Y", 2),
    "ssim_y": ("SSIM Y", 4),
    "psnr_rgb": ("PSNR RGB", 2),
    "jpegls": ("JPEG-LS", 2),
    "jpeg2000": ("J2K", 2),
    "jpegxl": ("JXL", 3),
    "seconds": ("s/MP", 2),
}


BITS = "Lossless bits: JPEG-LS and JPEG 2000 (J2K) per LR pixel, JPEG XL (JXL) per HR pixel."


@dataclass(frozen=True)
class System:
    """A downscaler and an upscaler of one scale.

    Attributes:
        name: ``car-x2``, ``bicubic-x2``, …
        run: RGB ``(H, W, 3)`` uint8, sides multiples of the scale, to LR and the restored picture.
        identity: changes when results would; results are remembered by it.
        kernel: of a plain resizer, which the ``matlab`` protocol applies to luma alone.
        planes: whether its networks, if any, take planes one by one: then ``run`` takes luma
            ``(H, W)``, which is all that the ``matlab`` protocol gives it.
    """

    name: str
    scale: int
    run: Callable[[Pixels], tuple[Pixels, Pixels]]
    identity: str
    kernel: str = ""
    planes: bool = False


@dataclass(frozen=True)
class Row:
    """Means of one system over one set of pictures; see :data:`FIGURES`, bits per pixel.

    JPEG-LS (no colour transform) and JPEG 2000 count bits per LR pixel as CAR's table V does,
    JPEG XL bits per HR pixel; ``seconds`` are wall clock per HR megapixel.
    """

    system: str
    scale: int
    pictures: str
    count: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Published:
    """A paper's figures for one pair on one set; ``label`` stands for ``source`` in tables.

    ``recipe`` is what ``carcodec train`` takes to train the pair, "" if there is none, and ``ours``
    the systems to set beside it.
    """

    label: str
    source: str
    downscaler: str
    upscaler: str
    scale: int
    pictures: str
    figures: dict[str, float]
    recipe: str = ""
    ours: tuple[str, ...] = ()


def system(name: str, engine: str = "auto") -> System:
    """An installed model, or a resizer, such as ``bicubic-x2``, with ``-x2`` … ``-x128``.

    Resizers are those of :func:`carcodec.resize.downscale`; what they shrink is enlarged with
    bicubic, as MATLAB's imresize does it. ``A+B`` shrinks with A and enlarges with B:
    ``bicubic-x2+car-x2``.

    Raises:
        ModelNotFoundError: neither.
        CompareError: a pair that cannot be one.
    """
    first, plus, second = name.partition("+")
    if not plus and (resizer := _as_resizer(name)):
        return _resizer(name, *resizer)
    pair = _pair(name, first, second if plus else first, engine)
    return pair if plus else replace(pair, identity=f"{zoo.find(name).digest} {engine}")


def _as_resizer(name: str) -> tuple[str, int] | None:
    kernel, _, scale = name.rpartition("-x")
    if kernel in resize.DOWNSCALERS and scale in {str(s) for s in range(2, 129)}:
        return kernel, int(scale)
    return None


def _one_plane(side: zoo.Side) -> bool:
    return side.options.get("channels") == 1 or side.family == "bicubic"


def _pair(name: str, first: str, second: str, engine: str) -> System:
    """One's downscaler and the other's upscaler."""
    down, up = _as_resizer(first), _as_resizer(second)
    shrinks = None if down else zoo.find(first)
    enlarges = None if up else zoo.find(second)
    scale = shrinks.scale if shrinks else down[1] if down else 0
    other = enlarges.scale if enlarges else up[1] if up else 0
    if scale != other:
        raise CompareError(f"{first} is ×{scale} and {second} ×{other}: no pair")
    if first != second and any(c is not None and c.grey for c in (shrinks, enlarges)):
        raise CompareError(f"{name}: a model that stores colour in grey goes with no other")

    def run(image: Pixels) -> tuple[Pixels, Pixels]:
        size = (image.shape[1], image.shape[0])
        if shrinks:
            small = codec.downscale(image, shrinks, engine, 1)
        else:
            small = resize.downscale(image, scale, first.rpartition("-x")[0])
        if not enlarges:
            return small, resize.imresize(small, size)
        channels = 3 if image.ndim == 3 else 1
        found = codec.upscale(small, size, 8, enlarges, engine, 1, channels=channels)
        return small, np.asarray(found)

    digests = [card.digest if card else "resize 1" for card in (shrinks, enlarges)]
    planes = (shrinks is None or _one_plane(shrinks.downscaler)) and (
        enlarges is None or _one_plane(enlarges.upscaler)
    )
    return System(name, scale, run, " ".join((name, *digests, engine)), planes=planes)


def systems() -> list[str]:
    """What is evaluated unless something is named: models for lossless LR, and bicubic beside.

    Scales go to :data:`LARGEST_SCALE`.
    """
    lossless = [c for c in zoo.installed() if not (c.storage or c.fixed)]
    names = sorted({c.name for c in lossless if 1 < c.scale <= LARGEST_SCALE})
    scales = sorted({zoo.find(name).scale for name in names})
    return [*names, *(f"bicubic-x{scale}" for scale in scales)]


def _resizer(name: str, kernel: str, scale: int) -> System:
    def run(image: Pixels) -> tuple[Pixels, Pixels]:
        height, width = image.shape[:2]
        small = resize.downscale(image, scale, kernel)
        return small, resize.imresize(small, (width, height))

    plain = kernel if kernel in resize.KERNELS else ""
    return System(name, scale, run, f"resize 1 {kernel}", plain)


def speeds(
    image: pixels.Plane,
    card: zoo.ModelCard,
    engine: str = "auto",
    threads: int = 0,
    repeat: int = 1,
) -> tuple[float, float]:
    """HR megapixels per second of the downscaler and the upscaler on a picture, tiles included.

    Each runs once before, which loads it, and then ``repeat`` times, of which the best counts.
    """
    size = (image.shape[1], image.shape[0])
    small = codec.downscale(image, card, engine, threads)
    quality = 50 if card.storage else None
    channels = 3 if image.ndim == 3 else 1

    def down() -> object:
        return codec.downscale(image, card, engine, threads)

    def up() -> object:
        return codec.upscale(
            small, size, 8, card, engine, threads, quality=quality, channels=channels
        )

    up()
    found = []
    for action in (down, up):
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        found.append(size[0] * size[1] / 1e6 / min(times))
    return found[0], found[1]


def evaluate(
    folders: Sequence[str | Path],
    names: Sequence[str] = (),
    *,
    protocol: Protocol = "car",
    engine: str = "auto",
    jobs: int = 0,
    cache: Path | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
    complain: Callable[[CarcodecError], None] | None = None,
) -> list[Row]:
    """Score systems on folders of pictures, each folder a set.

    Args:
        folders: or single files, which make sets of one.
        names: see :func:`system`; :func:`systems` if there are none.
        protocol: ``car`` measures luma that is not rounded, of 8-bit RGB. ``matlab`` rounds luma to
            8 bits first, and has plain resizers work on that luma alone, LR unrounded: what the
            bicubic rows of super-resolution papers are. Networks for single planes get it, too,
            with LR in 8 bits. See docs/PROTOCOL.md.
        engine, jobs: what runs networks, and pictures at a time, each on one thread.
        cache: folder in which each picture's figures are kept; a run that was interrupted goes on.
        progress, complain: as for :func:`carcodec.compare.compare`.

    Raises:
        ModelNotFoundError: an unknown system.
        ImageError: a picture cannot be read, unless ``complain`` takes the error.
        CompareError: there are no pictures, or the cache cannot be written.
    """
    if protocol not in PROTOCOLS:
        raise CompareError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    chosen = [system(name, engine) for name in names or systems()]
    sets: dict[str, list[str]] = {}
    for folder in folders:
        found = [path for path, _ in paths([folder], complain)]
        if found:
            sets.setdefault(Path(folder).stem, []).extend(found)
    tasks = [(one, name, path) for one in chosen for name in sets for path in sets[name]]
    if not tasks:
        raise CompareError("no pictures to evaluate on")
    done = 0

    def score(task: tuple[System, str, str]) -> dict[str, float] | CarcodecError:
        nonlocal done
        progress(f"{task[0].name}, {task[1]}", done / len(tasks))
        try:
            one, _, path = task
            image, scale = load(path), one.scale
            if min(image.shape[:2]) // scale * scale < 2 * scale + 11:
                raise ImageError(
                    f"{path} is {image.shape[1]}×{image.shape[0]}, too small for {one.name}: "
                    f"what is left within a border of {scale} is scored"
                )
            return _score(one, image, protocol, cache or cache_folder("evaluate"))
        except CompareError:
            raise
        except CarcodecError as error:
            if complain is None:
                raise
            return error
        finally:
            done += 1

    pool = ThreadPoolExecutor(jobs or os.cpu_count())
    try:
        scores = list(pool.map(score, tasks))
    finally:  # an interruption waits for what is being scored, not for all the rest
        pool.shutdown(cancel_futures=True)
    grouped: dict[tuple[str, str], list[dict[str, float]]] = {}
    said: set[str] = set()
    for (one, name, _), figures in zip(tasks, scores, strict=True):
        if not isinstance(figures, CarcodecError):
            grouped.setdefault((one.name, name), []).append(figures)
        elif complain is not None and str(figures) not in said:
            said.add(str(figures))
            complain(figures)
    by_name = {one.name: one for one in chosen}
    return [
        Row(
            one, by_name[one].scale, name, len(rows),
            {key: float(np.mean([row[key] for row in rows])) for key in FIGURES},
        )
        for (one, name), rows in grouped.items()
    ]  # fmt: skip


def _score(one: System, image: Pixels, protocol: Protocol, cache: Path) -> dict[str, float]:
    key = f"{one.name} {one.identity} {protocol}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = cache / fingerprint(image)[:24] / f"{name}.json"
    known = recall(path)
    if set(known) != set(FIGURES):
        known = _measured(one, image, protocol)
        keep(path, known)
    return known


def _measured(one: System, image: Pixels, protocol: Protocol) -> dict[str, float]:
    import imagecodecs

    scale = one.scale
    height, width = (side // scale * scale for side in image.shape[:2])
    image = np.ascontiguousarray(image[:height, :width])
    start = time.perf_counter()
    small, restored = one.run(image)
    seconds = time.perf_counter() - start
    pair: tuple[NDArray[Any], NDArray[Any]] = metrics.luma(image), metrics.luma(restored)
    if protocol == "matlab":
        original = _rounded(pair[0])
        if one.kernel:
            size = (width // scale, height // scale)
            lr = resize.imresize(original.astype(np.float64), size, one.kernel)
            pair = original, _rounded(resize.imresize(lr, (width, height)))
        elif one.planes:
            pair = original, one.run(original)[1]
        else:
            pair = original, _rounded(pair[1])
    small_area, area = small.shape[0] * small.shape[1], height * width
    lossless = imagecodecs.jpeg2k_encode(small, level=0, reversible=True, codecformat="j2k")
    xl = imagecodecs.jpegxl_encode(small, lossless=True, effort=6, usecontainer=False, numthreads=1)
    return {
        "psnr_y": metrics.psnr(*pair, border=scale),
        "ssim_y": metrics.ssim(*pair, border=scale),
        "psnr_rgb": metrics.psnr(image, restored),
        "jpegls": 8 * len(imagecodecs.jpegls_encode(small)) / small_area,
        "jpeg2000": 8 * len(lossless) / small_area,
        "jpegxl": 8 * len(xl) / area,
        "seconds": seconds / (area / 1e6),
    }


def _rounded(plane: NDArray[np.float64]) -> Pixels:
    """MATLAB's uint8(): halves away from zero."""
    return np.floor(np.clip(plane, 0, 255) + 0.5).astype(np.uint8)


@functools.cache
def _all_published() -> tuple[Published, ...]:
    data = tomllib.loads((Path(__file__).parent / "published.toml").read_text("utf-8"))
    return tuple(
        Published(
            entry["label"],
            entry["source"],
            entry["downscaler"],
            entry["upscaler"],
            int(scale),
            name,
            row if isinstance(row, dict) else dict(zip(FIGURES, row, strict=False)),
            entry.get("recipe", "").format(scale),
            tuple(ours.replace("{}", scale) for ours in entry.get("ours", ())),
        )
        for entry in data["tables"]
        for scale, sets in entry["scale"].items()
        for name, row in sets.items()
    )


def tables() -> list[str]:
    """The papers' tables that are known, by label: ``CAR I``, …"""
    return list(dict.fromkeys(p.label for p in _all_published()))


def printed(label: str) -> list[Published]:
    """All that one of :func:`tables` holds."""
    return [p for p in _all_published() if p.label == label]


def published(rows: Sequence[Row], label: str = "") -> list[Published]:
    """What papers print for the scales and sets of ``rows``.

    All rows of one of :func:`tables`, or the papers' own systems, each once, and bicubic.
    """
    wanted = {(row.scale, row.pictures) for row in rows}
    found: dict[tuple[str, ...], Published] = {}
    for p in _all_published():
        own = p.recipe or (p.downscaler, p.upscaler) == ("bicubic", "bicubic")
        if (p.scale, p.pictures) in wanted and (p.label == label if label else own):
            found.setdefault((str(p.scale), p.pictures, p.downscaler, p.upscaler), p)
    return list(found.values())


def beside(label: str, scales: Sequence[int] = ()) -> tuple[list[str], list[str]]:
    """Systems that a paper's table is to be compared with: those there are, and those missing.

    Raises:
        CompareError: no such table.
    """
    if label not in tables():
        raise CompareError(
            f"unknown table {label!r}: choose from {', '.join(tables())}, or for RSRNet 4 see "
            "`carcodec compare --preset rsrnet-table4`"
        )
    chosen = [p for p in printed(label) if p.scale in (scales or [p.scale])]
    wanted = sorted({name for p in chosen for name in p.ours}, key=_by_scale)
    there, missing = [], []
    for name in wanted:
        try:
            system(name)
        except ModelNotFoundError:
            missing.append(name)
        else:
            there.append(name)
    return there, missing


def _by_scale(name: str) -> tuple[str, str]:
    return name.rpartition("-x")[2], name


def table(rows: Sequence[Row], papers: Sequence[Published] = ()) -> list[list[str]]:
    """Cells as text, a heading first; a paper's lines follow ours of the same scale and set."""
    lines = [["system", "×", "set", "n", *(title for title, _ in FIGURES.values())]]
    for key in dict.fromkeys((row.scale, row.pictures) for row in rows):
        for row in rows:
            if (row.scale, row.pictures) == key:
                cells = [f"{row.figures[k]:.{digits}f}" for k, (_, digits) in FIGURES.items()]
                lines.append([row.system, str(row.scale), row.pictures, str(row.count), *cells])
        for p in papers:
            if (p.scale, p.pictures) == key:
                title = " + ".join(filter(None, (p.downscaler, p.upscaler))) + f" ({p.label})"
                cells = [
                    f"{p.figures[k]:.{digits}f}" if k in p.figures else ""
                    for k, (_, digits) in FIGURES.items()
                ]
                lines.append([title, str(p.scale), p.pictures, "", *cells])
    return lines


def markdown(rows: Sequence[Row], papers: Sequence[Published] = ()) -> str:
    """The table in Markdown."""
    head, *body = table(rows, papers)
    lines = [head, ["---"] * len(head), *body]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + "".join(f"\n{line}\n" for line in [BITS, *sources(papers)])


def sources(papers: Sequence[Published]) -> list[str]:
    """What the labels of a table's papers stand for, and how to train its pairs."""
    found = list(dict.fromkeys(f"{p.label}: {p.source}" for p in papers))
    recipes = dict.fromkeys(
        f"{p.downscaler} + {p.upscaler}: {p.recipe}" for p in papers if p.recipe
    )
    if recipes:
        found.append("Recipes at the papers' sizes (carcodec train): " + "; ".join(recipes))
    return found


def as_csv(rows: Sequence[Row], papers: Sequence[Published] = ()) -> str:
    """The table as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table(rows, papers))
    return buffer.getvalue()


def as_json(rows: Sequence[Row], papers: Sequence[Published] = ()) -> str:
    """Rows in full precision, and the papers'."""
    content = {"rows": [asdict(r) for r in rows], "published": [asdict(p) for p in papers]}
    return json.dumps(content, indent=1, ensure_ascii=False)

"""Two comparisons that papers print, run on the user's pictures with the installed models.

``rsrnet-table4``: Cai et al., RSRNet, table 4. Luma only. LR stored as a PGM (a PPM, where LR is
in colour) through 7-Zip's LZMA, and by lossless JPEG 2000, against JPEG of quality 44, JPEG 2000 at
13:1, and both at no less SSIM than the network's.

``car-table5``: Sun and Chen, CAR, table V. Bits per LR pixel that JPEG-LS (no colour transform)
needs for each downscaler's LR.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from carcodec import atomic, codec, evaluate, metrics, resize, zoo
from carcodec.compare.run import load, paths
from carcodec.errors import CarcodecError, CompareError

__all__ = ["PRESETS", "Sheet", "rendered", "run", "save"]

Pixels = NDArray[np.uint8]
Report = Callable[[str, float], None]
Complain = Callable[[CarcodecError], None]


@dataclass(frozen=True)
class Sheet:
    """A table: ``rows`` under ``columns``, the first of which names them.

    On the screen, so many of the other columns share one as ``grouped`` says.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    notes: tuple[str, ...] = ()
    grouped: int = 1


def run(
    preset: str,
    inputs: Sequence[str],
    models: Sequence[str] = (),
    *,
    engine: str = "auto",
    progress: Report = lambda what, share: None,
    complain: Complain | None = None,
) -> list[Sheet]:
    """Run one of :data:`PRESETS` on pictures and folders.

    Raises:
        CompareError: no such preset, or no pictures.
        ModelNotFoundError: a model of ``models`` is not installed.
    """
    if preset not in PRESETS:
        raise CompareError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    pictures: list[tuple[str, str, Pixels]] = []
    for path, name in paths(inputs, complain):
        try:
            pictures.append((name, Path(path).parent.name, load(path)))
        except CarcodecError as error:
            if complain is None:
                raise
            complain(error)
    if not pictures:
        raise CompareError("no pictures to compare")
    return PRESETS[preset](pictures, list(models), engine, progress)


# ---- RSRNet, table 4

_TABLE4 = {
    "RSRNet ×3 + 7-Zip": (9017, 0.6587, 0.9300),
    "RSRNet ×3 + JPEG 2000": (8095, 0.5800, 0.9300),
    "JPEG q 44": (9320, 0.7353, 0.9290),
    "JPEG 2000 13:1": (8366, 0.5902, 0.9272),
}


def _table4(
    pictures: list[tuple[str, str, Pixels]], models: list[str], engine: str, progress: Report
) -> list[Sheet]:
    notes: list[str] = []
    if not models:
        models = [c.name for c in _plain_models() if c.name in ("rsrnet-x3", "rrnet-x3")]
        if not models:
            models = [c.name for c in _plain_models()]
            notes.append(
                "neither rsrnet-x3 nor rrnet-x3 is installed: these are the installed models for "
                "lossless LR, at their own scales"
            )
    sheets = []
    for number, model in enumerate(models):
        scale = zoo.find(model).scale
        names = ("7-Zip", "JPEG 2000", "JPEG q 44", "JPEG 2000 13:1", "JPEG", "JPEG 2000 =")
        rows: list[list[str | float | None]] = []
        for at, (name, _, image) in enumerate(pictures):
            progress(f"{name}, {model}", (number + at / len(pictures)) / len(models))
            rows.append([name, *_row4(image, model, scale, engine)])
        columns = ["picture"]
        for title, prefix in zip(names, (model, model, "", "", "", ""), strict=True):
            label = f"{prefix} + {title}" if prefix else title
            label = {"JPEG": "JPEG, SSIM no less", "JPEG 2000 =": "JPEG 2000, SSIM no less"}.get(
                label, label
            )
            columns += [f"{label}: bytes", "bpp", "SSIM"]
        own = list(notes)
        if zoo.find(model).mixes:
            own.append(f"{model} was trained in colour: of luma, too, its LR has three planes")
        published = ", ".join(f"{k} {v[0]} / {v[1]:.4f} / {v[2]:.4f}" for k, v in _TABLE4.items())
        sheets.append(
            Sheet(
                "rsrnet-table4",
                f"RSRNet table 4 with {model}: luma, ×{scale}, LR lossless",
                tuple(columns),
                (*map(tuple, rows), _means(rows)),
                (*own, f"published means on Set5 (bytes / bpp / SSIM): {published}"),
                grouped=3,
            )
        )
    return sheets


def _row4(image: Pixels, model: str, scale: int, engine: str) -> list[float | None]:
    import imagecodecs

    height, width = (side // scale * scale for side in image.shape[:2])
    luma = np.rint(metrics.luma(image[:height, :width])).astype(np.uint8)
    prepared = codec.prepare(luma, model=model, engine=engine)
    small = prepared.small
    encoded = codec.store(prepared, "png", None)
    restored = np.asarray(codec.decode_array(encoded.data, engine=engine))
    reached = metrics.ssim(luma, restored)
    kind = "P5" if small.ndim == 2 else "P6"
    portable = f"{kind} {small.shape[1]} {small.shape[0]} 255\n".encode() + small.tobytes()
    seven = len(lzma.compress(portable, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))
    lossless = len(imagecodecs.jpeg2k_encode(small, level=0, reversible=True, codecformat="j2k"))

    def jpeg(quality: int) -> tuple[int, float]:
        buffer = io.BytesIO()
        Image.fromarray(luma).save(buffer, "JPEG", quality=quality, optimize=True)
        with Image.open(buffer) as back:
            return len(buffer.getvalue()), metrics.ssim(luma, np.asarray(back))

    def jpeg2000(level: float) -> tuple[int, float]:
        options: dict[str, Any] = {"level": level, "reversible": False, "codecformat": "j2k"}
        data = imagecodecs.jpeg2k_encode(luma, **options)
        return len(data), metrics.ssim(luma, np.asarray(imagecodecs.jpeg2k_decode(data)))

    budget = luma.size / 13  # OpenJPEG -r 13; the paper prints "13 %", its bits are of 13:1
    ratio = _largest(lambda level: jpeg2000(level / 10), 200, 600, lambda r: r[0] <= budget)
    equal = _smallest(jpeg, 1, 100, lambda r: r[1] >= reached)
    equal2 = _smallest(lambda level: jpeg2000(level / 10), 200, 600, lambda r: r[1] >= reached)
    found: list[float | None] = []
    for result in ((seven, reached), (lossless, reached), jpeg(44), ratio, equal, equal2):
        if result is None:
            found += [None, None, None]
        else:
            found += [result[0], 8 * result[0] / luma.size, result[1]]
    return found


def _smallest(
    run: Callable[[int], tuple[int, float]],
    low: int,
    high: int,
    enough: Callable[[tuple[int, float]], bool],
) -> tuple[int, float] | None:
    """The result of the lowest setting that is enough, by bisection; None if none is."""
    best = None
    while low <= high:
        middle = (low + high) // 2
        result = run(middle)
        if enough(result):
            best, high = result, middle - 1
        else:
            low = middle + 1
    return best


def _largest(
    run: Callable[[int], tuple[int, float]],
    low: int,
    high: int,
    fits: Callable[[tuple[int, float]], bool],
) -> tuple[int, float] | None:
    return _smallest(lambda v: run(low + high - v), low, high, fits)


# ---- CAR, table V


def _table5(
    pictures: list[tuple[str, str, Pixels]], models: list[str], engine: str, progress: Report
) -> list[Sheet]:
    cards = [zoo.find(name) for name in models] or _plain_models()
    printed = {
        (name, p.pictures): p.figures["jpegls"]
        for p in evaluate.printed("CAR V")
        for name in p.ours
    }
    sheets = []
    scales = sorted({card.scale for card in cards if card.scale > 1})
    for number, scale in enumerate(scales):
        own = [card.name for card in cards if card.scale == scale]
        bits: dict[str, list[list[float]]] = {}
        for at, (name, group, image) in enumerate(pictures):
            progress(f"{name}, ×{scale}", (number + at / len(pictures)) / len(scales))
            height, width = (side // (2 * scale) * 2 * scale for side in image.shape[:2])
            if min(height, width) < 4 * scale:
                continue
            cropped = np.ascontiguousarray(image[:height, :width])
            smalls = [resize.downscale(cropped, scale, kind) for kind in _KINDS]
            smalls += [codec.prepare(cropped, model=m, engine=engine).small for m in own]
            bits.setdefault(group, []).append([_jpegls_bits(s) for s in smalls])
        columns = ["downscaler"]
        rows: list[list[str | float | None]] = [[f"{kind}-x{scale}"] for kind in _KINDS]
        rows += [[name] for name in own]
        for group, values in bits.items():
            columns += [f"{group}, {len(values)} pictures", "published"]
            for row, mean in zip(rows, np.mean(values, 0).tolist(), strict=True):
                row += [mean, printed.get((str(row[0]), group))]
        sheets.append(
            Sheet(
                "car-table5",
                f"CAR table V, ×{scale}: bits per LR pixel, JPEG-LS",
                tuple(columns),
                tuple(map(tuple, rows)),
                (
                    "the paper prints more bits per pixel for ×2 than for ×4, where any photo has "
                    "fewer: its two blocks may have changed places",
                ),
                grouped=2,
            )
        )
    return sheets


_KINDS = ("box", "lanczos3", "bicubic", "perceptual", "dpid", "l0")


def _jpegls_bits(small: Pixels) -> float:
    import imagecodecs

    if small.ndim == 2:  # a grey picture counts as colour, as the paper's sets do
        small = np.repeat(small[..., None], 3, 2)
    data = imagecodecs.jpegls_encode(np.ascontiguousarray(small))
    return float(8 * len(data) / (small.shape[0] * small.shape[1]))


def _plain_models() -> list[zoo.ModelCard]:
    """The newest version of every installed model for lossless LR of the papers' scales."""
    newest: dict[str, zoo.ModelCard] = {}
    for card in zoo.installed():
        if not (card.storage or card.fixed) and 1 < card.scale <= evaluate.LARGEST_SCALE:
            newest.setdefault(card.name, card)
    if not newest:
        raise CompareError("no model for lossless LR is installed: name some with --models")
    return list(newest.values())


def _means(rows: list[list[str | float | None]]) -> tuple[str | float | None, ...]:
    columns = list(zip(*rows, strict=True))[1:]
    means: list[str | float | None] = ["mean"]
    for column in columns:
        numbers = [v for v in column if isinstance(v, (int, float))]
        means.append(float(np.mean(numbers)) if len(numbers) == len(column) else None)
    return tuple(means)


def rendered(sheet: Sheet) -> Table:
    """The sheet for Rich to print."""
    size = sheet.grouped
    starts = range(1, len(sheet.columns), size)
    table = Table(
        sheet.columns[0],
        *(" / ".join(sheet.columns[i : i + size]) for i in starts),
        title=sheet.title,
        title_justify="left",
        caption="\n".join(sheet.notes),
        caption_justify="left",
    )
    for row in sheet.rows:
        cells = [_cell(value) for value in row]
        table.add_row(cells[0], *(" / ".join(cells[i : i + size]) for i in starts))
    return table


def _cell(value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    if math.isnan(value):
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:g}" if value == int(value) else f"{value:.4f}"


def save(sheets: Sequence[Sheet], folder: Path) -> None:
    """Write ``PRESET.json`` and ``PRESET.csv`` into ``folder``.

    Raises:
        CompareError: it cannot be written.
    """
    content: list[dict[str, Any]] = [
        {"title": s.title, "columns": s.columns, "rows": s.rows, "notes": s.notes} for s in sheets
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for sheet in sheets:
        writer.writerow([sheet.title])
        writer.writerow(sheet.columns)
        writer.writerows(sheet.rows)
    try:
        atomic.write(folder / f"{sheets[0].name}.json", json.dumps(content, indent=1).encode())
        atomic.write(folder / f"{sheets[0].name}.csv", buffer.getvalue().encode())
    except OSError as error:
        raise CompareError(f"{folder} cannot be written: {error.strerror}") from error


PRESETS: dict[str, Callable[[list[tuple[str, str, Pixels]], list[str], str, Report], list[Sheet]]]
PRESETS = {"rsrnet-table4": _table4, "car-table5": _table5}

"""The report: one HTML file that needs nothing else, the data, and plots for papers."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carcodec import atomic
from carcodec.compare import curves, plot
from carcodec.compare.codecs import Codec, Pixels
from carcodec.compare.comparison import Comparison, Picture
from carcodec.compare.run import keep, pixels, recall
from carcodec.errors import CompareError

__all__ = ["SIDE", "check", "write"]

SIDE = 1024  # larger pictures are shown by their middle
_TRIES = 7


def check(folder: Path) -> None:
    """Make the folder and look that plots can be drawn, before hours of work are spent.

    Raises:
        CompareError: the folder cannot be written.
        MissingDependencyError: what the plots need is missing.
    """
    try:
        atomic.write(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise CompareError(f"{folder} cannot be written: {error.strerror}") from error
    plot.require()


def write(
    comparison: Comparison,
    folder: Path,
    *,
    codecs: Sequence[Codec] = (),
    views: Sequence[float] = (0.25,),
    pictures: int = 24,
    cache: Path | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Path:
    """Write ``index.html``, ``report.json``, ``report.csv`` and ``METRIC.png`` and ``.svg``.

    Args:
        folder: made if missing; files of these names are replaced.
        codecs: those compared; they encode again for the page's viewer, which without them
            is left out.
        views: rates (bpp) at which the viewer sets codecs side by side. carcodec's point of the
            hull nearest to that rate gives the bytes; every other codec gets the fewest bytes
            that are not fewer.
        pictures: how many of them the viewer holds at most.
        cache: folder in which the viewer's pictures are kept for the next report.
        progress: called with what is being done and the finished share.

    Returns:
        The page's path.

    Raises:
        OSError: the folder cannot be written.
        MissingDependencyError: what the plots need is missing.
    """
    atomic.write(folder / "report.json", comparison.to_json().encode())
    atomic.write(folder / "report.csv", _table(comparison))
    for metric in comparison.metrics:
        for kind in ("png", "svg"):
            data = plot.rendered(plot.figure(comparison, metric), kind)
            atomic.write(folder / f"{metric}.{kind}", data)
    page = folder / "index.html"
    shown = _views(comparison, codecs, views, pictures, cache, progress) if codecs else []
    atomic.write(page, _page(comparison, shown).encode())
    return page


def _table(comparison: Comparison) -> bytes:
    buffer = io.StringIO()
    rows = comparison.rows()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _page(comparison: Comparison, views: list[dict[str, Any]]) -> str:
    def part(name: str) -> str:
        return resources.files("carcodec.compare").joinpath("page", name).read_text("utf-8")

    # "</" would end the script element, whatever it stands in
    data = json.dumps(_content(comparison) | {"views": views}, allow_nan=False).replace(
        "</", "<\\/"
    )
    count = len(comparison.pictures)
    title = f"carcodec compared on {count} picture{'s' * (count != 1)}, {comparison.date}"
    page = part("page.html")
    for key, value in {
        "TITLE": html.escape(title),
        "CHART_STYLE": part("uPlot.min.css"),
        "STYLE": part("page.css"),
        "CHART": part("uPlot.iife.min.js"),
        "SCRIPT": part("page.js"),
        "DATA": data,  # last: nothing in it is taken for a key
    }.items():
        page = page.replace(f"@@{key}@@", value)
    return page


def _content(comparison: Comparison) -> dict[str, Any]:
    names = comparison.names
    usual = set(plot.usual(comparison))
    spans = [comparison.rates]
    spans += [s for s in ((0.05, 0.25), (0.1, 0.5), (0.25, 1.0)) if s != comparison.rates]
    return {
        "date": comparison.date,
        "notes": list(comparison.notes),
        "rates": list(comparison.rates),
        "metrics": [
            {"name": m.name, "title": m.title, "axis": m.axis}
            for m in map(comparison.measure, comparison.metrics)
        ],
        "codecs": [
            {
                "name": name,
                "title": comparison.title(name),
                "colour": plot.colour(comparison, name),
                "ours": name not in comparison.anchors,
                "shown": name in usual,
                "how": comparison.codecs.get(name, {}).get(
                    "how", "convex hull over its models and their qualities"
                ),
                "version": comparison.codecs.get(name, {}).get("version", ""),
                "seconds": _seconds(comparison, name),
            }
            for name in names
        ],
        "pictures": [
            {"name": p.name, "width": p.width, "height": p.height} for p in comparison.pictures
        ],
        "curves": {
            metric: {
                picture: {
                    name: [
                        [plot.finite(x, 5), plot.finite(y, 4)]
                        for x, y in curves.monotone(comparison.curve(name, metric, picture))
                    ]
                    for name in names
                }
                for picture in ["", *(p.name for p in comparison.pictures)]
            }
            for metric in comparison.metrics
        },
        "spans": [list(span) for span in spans],
        "deltas": {
            metric: [_deltas(comparison, metric, span) for span in spans]
            for metric in comparison.metrics
        },
        "crossovers": {
            metric: [
                {"codec": c.codec, "anchor": c.anchor, "bpp": round(c.bpp, 3),
                 "value": round(c.value, 2), "above": c.better_above}
                for anchor in comparison.anchors
                for c in comparison.crossovers(anchor, metric) if c.codec in comparison.ours
            ]
            for metric in comparison.metrics
        },
    }  # fmt: skip


def _deltas(comparison: Comparison, metric: str, span: tuple[float, float]) -> dict[str, Any]:
    """Anchor → codec → [mean BD-rate, mean BD gain, pictures, {picture: BD-rate}]."""
    found: dict[str, Any] = {}
    for anchor in comparison.anchors or comparison.names:
        gains = comparison.bd_psnr(anchor, metric, span)
        found[anchor] = {
            name: [
                plot.finite(delta.mean, 2),
                plot.finite(gains[name].mean, 3),
                delta.overlapping,
                {p: plot.finite(v, 2) for p, v in delta.by_picture.items()},
            ]
            for name, delta in comparison.bd_rate(anchor, metric, span).items()
        }
    return found


def _seconds(comparison: Comparison, name: str) -> list[float | None]:
    """Mean encode and decode seconds per megapixel."""
    megapixels = {p.name: p.width * p.height / 1e6 for p in comparison.pictures}
    points = [p for p in comparison.points if p.codec == name]
    if not points:
        return [None, None]
    total = sum(megapixels[p.picture] for p in points)
    return [
        plot.finite(sum(p.encode_seconds for p in points) / total, 3),
        plot.finite(sum(p.decode_seconds for p in points) / total, 3),
    ]


def _views(
    comparison: Comparison,
    codecs: Sequence[Codec],
    rates: Sequence[float],
    limit: int,
    cache: Path | None,
    progress: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """For each picture and rate: every codec's picture at the same bytes, as data URLs."""
    jobs = [(p, rate) for p in comparison.pictures[:limit] for rate in rates]
    done = 0

    def one(job: tuple[Picture, float]) -> dict[str, Any]:
        nonlocal done
        path = cache and cache / _view_name(comparison, *job)
        found = recall(path) if path else {}
        if "shown" not in found:
            found = _view(comparison, codecs, *job)
            if path:
                keep(path, found)
        found["picture"] = job[0].name
        done += 1
        progress(f"pictures of {job[0].name}", done / len(jobs))
        return found

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(pool.map(one, jobs))
    finally:  # an interruption waits for what is being done, not for all the rest
        pool.shutdown(cancel_futures=True)


def _view_name(comparison: Comparison, picture: Picture, rate: float) -> str:
    """Where a view is kept: by the picture's pixels and everything that decides what it shows."""
    points = [(p.codec, p.quality, p.bytes) for p in comparison.points if p.picture == picture.name]
    about = [rate, SIDE, comparison.metrics, comparison.codecs, points]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return f"{picture.digest[:24]}/view-{digest}.json"


def _view(
    comparison: Comparison, codecs: Sequence[Codec], picture: Picture, rate: float
) -> dict[str, Any]:
    image = pixels(picture)
    metric = comparison.metrics[0]
    height, width = image.shape[:2]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    part = np.s_[top : top + SIDE, left : left + SIDE]
    whole = height <= SIDE and width <= SIDE
    ours = [c for c in codecs if "carcodec" in c.families]
    shown = [{"name": "original", "title": "original", "source": _embedded(image[part], 95)}]
    budget = rate * width * height / 8
    best = _best(comparison, ours, metric, picture.name, rate)
    if best is not None:
        codec, quality = best
        data = codec.encode(image, quality)
        budget = len(data)
        entry = _entry(comparison, codec, quality, data, image, part, whole)
        shown.append(entry | {"name": "carcodec", "title": f"carcodec ({codec.name})"})
        if codec.small is not None:
            small = codec.small(data)
            title = f"thumbnail, {small.shape[1]}×{small.shape[0]}"
            step = height / small.shape[0]
            cut = small[
                round(top / step) : round((top + SIDE) / step),
                round(left / step) : round((left + SIDE) / step),
            ]
            shown.append({"name": "thumbnail", "title": title, "source": _embedded(cut, 90)})
    for codec in codecs:
        if codec.families:
            continue
        quality, data = _fewest(comparison, codec, picture.name, image, budget)
        shown.append(_entry(comparison, codec, quality, data, image, part, whole))
    return {
        "picture": picture.name,
        "rate": rate,
        "width": min(width, SIDE),
        "height": min(height, SIDE),
        "whole": whole,
        "shown": shown,
    }


def _best(
    comparison: Comparison, ours: Sequence[Codec], metric: str, picture: str, rate: float
) -> tuple[Codec, float] | None:
    """The branch and quality that make the point of carcodec's hull nearest to a rate."""
    if not ours:
        return None
    vertices = comparison.curve("carcodec", metric, picture)
    bpp = min(vertices, key=lambda p: abs(math.log(p[0] / rate)))[0]
    by_name = {c.name: c for c in ours}
    for point in comparison.points:
        if point.picture == picture and point.bpp == bpp and point.codec in by_name:
            return by_name[point.codec], point.quality
    return None


def _fewest(
    comparison: Comparison, codec: Codec, picture: str, image: Pixels, budget: float
) -> tuple[float, bytes]:
    """The smallest file of at least ``budget`` bytes, by bisection; the largest if none is."""
    points = sorted(
        (p.quality, p.bytes)
        for p in comparison.points
        if p.picture == picture and p.codec == codec.name
    )
    above = [quality for quality, size in points if size >= budget]
    if not above:
        return points[-1][0], codec.encode(image, points[-1][0])
    high = min(above)
    low = max((q for q, _ in points if q < high), default=None)
    data = codec.encode(image, high)
    for _ in range(_TRIES):
        if low is None or len(data) <= budget * 1.005:
            break
        middle = (low + high) / 2
        if codec.whole:
            middle = float(round(middle))
        if middle in (low, high):
            break
        tried = codec.encode(image, middle)
        if len(tried) >= budget:
            high, data = middle, tried
        else:
            low = middle
    return high, data


def _entry(
    comparison: Comparison,
    codec: Codec,
    quality: float,
    data: bytes,
    image: Pixels,
    part: Any,
    whole: bool,
) -> dict[str, Any]:
    restored = codec.decode(data)
    figures = {
        m.name: plot.finite(m.compare(image, restored), 4 if m.to_db else 2)
        for m in map(comparison.measure, comparison.metrics[:2])
    }
    if codec.shown_as and whole:  # the very file
        source = _url(data, codec.shown_as)
    else:
        source = _embedded(restored[part], 90)
    return {
        "name": codec.name,
        "title": codec.title or codec.name,
        "quality": round(quality, 2),
        "bytes": len(data),
        "bpp": round(8 * len(data) / (image.shape[0] * image.shape[1]), 4),
        "figures": figures,
        "source": source,
    }


def _embedded(image: Pixels, quality: int) -> str:
    """A picture as browsers can show it: AVIF 4:4:4 of a quality whose loss is not seen."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    try:
        picture.save(buffer, "AVIF", quality=quality, subsampling="4:4:4", speed=9, max_threads=1)
    except (KeyError, ValueError):  # a Pillow without AVIF
        picture.save(buffer := io.BytesIO(), "WEBP", quality=quality, method=2)
        return _url(buffer.getvalue(), "image/webp")
    return _url(buffer.getvalue(), "image/avif")


def _url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

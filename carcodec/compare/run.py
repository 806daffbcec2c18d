"""Measure pictures × codecs × qualities, in parallel, remembering what was measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from carcodec import atomic, files
from carcodec import metrics as measures
from carcodec.compare.codecs import Codec, Pixels, carcodecs, standard
from carcodec.compare.comparison import Comparison, Picture, Point
from carcodec.errors import CarcodecError, CompareError, ImageError

__all__ = [
    "AGAINST", "SMALLEST", "cache_folder", "compare", "fingerprint", "keep", "load", "paths",
    "pixels", "recall",
]  # fmt: skip

AGAINST = ("jpeg", "jpeg2000", "webp", "avif", "jpegxl")
SMALLEST = 16  # pixels a side

Report = Callable[[str, float], None]


def cache_folder(name: str = "compare") -> Path:
    """Where results are remembered unless another place is named."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("carcodec", False)) / name


def load(path: str) -> Pixels:
    """A picture file as 8-bit RGB; grey becomes R = G = B, 16 bits eight, alpha is left out.

    Raises:
        ImageError: unreadable, of an unsupported mode, or under 16 pixels a side.
    """
    colour = files.read_photo(path).colour
    if min(colour.shape[:2]) < SMALLEST:
        raise ImageError(
            f"{path} is {colour.shape[1]}×{colour.shape[0]} pixels: at least {SMALLEST} a side are "
            "needed to compare codecs"
        )
    if colour.dtype != np.uint8:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, 2))


def fingerprint(image: Pixels) -> str:
    """SHA-256 of a picture's size and pixels, hexadecimal."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def pixels(picture: Picture) -> Pixels:
    """What was compared of a picture."""
    right, bottom = picture.left + picture.width, picture.top + picture.height
    return np.ascontiguousarray(load(picture.path)[picture.top : bottom, picture.left : right])


def compare(
    inputs: Sequence[str | Path],
    codecs: Sequence[Codec] | None = None,
    *,
    metrics: Sequence[str | measures.Metric] = ("psnr",),
    rates: tuple[float, float] = (0.05, 2.0),
    points: int = 0,
    side: int = 0,
    jobs: int = 0,
    cache: Path | None = None,
    progress: Report = lambda what, share: None,
    complain: Callable[[CarcodecError], None] | None = None,
) -> Comparison:
    """Encode and decode every picture with every codec at every quality, and measure.

    Args:
        inputs: picture files, and folders whose pictures are taken, subfolders too.
        codecs: by default carcodec's models (:func:`carcodecs`) and the standard codecs
            :data:`AGAINST`.
        metrics: names (see :mod:`carcodec.metrics`) or metrics of your own.
        rates: bpp range of interest: BD figures are over it, and qualities beyond its end are not
            tried once one has passed it.
        points: how many of each codec's qualities to take, evenly, ends included; 0 is all.
        side: of larger pictures the middle of so many pixels a side is taken; 0 takes all.
        jobs: pictures and codecs at a time, each on one thread; 0 is one for each core. It changes
            the times only.
        cache: folder in which each result is kept as soon as it is there, under the digest of
            the picture and the codec's name, ``how`` and version; ``None`` is
            :func:`cache_folder`. A run that was interrupted goes on from it.
        progress: called with what is being done and the finished share.
        complain: called with each picture's error, and the picture is left out; ``None`` raises.

    Raises:
        CompareError: nothing to compare, two codecs of one name, or a codec failed.
        ImageError, LimitError: a picture cannot be taken.
        MetricError: a metric is unknown or cannot be computed here.
    """
    low, high = rates
    if not 0 <= low < high:
        raise CompareError(f"rates must be two rising numbers of bits per pixel, not {low}:{high}")
    chosen = list(codecs) if codecs is not None else [*carcodecs(), *standard(AGAINST)]
    if points:
        chosen = [dataclasses.replace(c, qualities=_evenly(c.qualities, points)) for c in chosen]
    names = [codec.name for codec in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise CompareError(f"two codecs are called {twice[0]}" if twice else "no codec to compare")
    versions = {codec.name: codec.version() for codec in chosen}
    wanted = [measures.by_name(m) if isinstance(m, str) else m for m in metrics]
    if not wanted:
        raise CompareError("no metric to compare by")
    pictures: list[Picture] = []
    notes: list[str] = []

    def left_out(error: CarcodecError) -> None:
        if complain is None:
            raise error
        complain(error)
        notes.append(" ".join(str(error).split()))

    for path, name in paths(inputs, left_out):
        try:
            image = load(path)
        except CarcodecError as error:
            left_out(error)
            continue
        whole = image.shape[:2]
        top, left = (max(0, (length - side) // 2) if side else 0 for length in whole)
        if top or left:
            image = np.ascontiguousarray(image[top:, left:][:side, :side])
            notes.append(
                f"{name}: the middle {image.shape[1]}×{image.shape[0]} pixels of "
                f"{whole[1]}×{whole[0]} were compared"
            )
        size = image.shape[1], image.shape[0]
        pictures.append(Picture(name, path, *size, fingerprint(image), left, top))
    if not pictures:
        raise CompareError("none of the pictures could be read" if notes else "no pictures")
    folder = cache or cache_folder()
    tasks = [(picture, codec) for picture in pictures for codec in chosen]
    runner = _Runner(wanted, high, folder, versions, progress, len(tasks))
    found = runner.run(tasks, jobs or os.cpu_count() or 1)
    comparison = Comparison(
        pictures=tuple(pictures),
        codecs={
            codec.name: {
                "title": codec.title or codec.name,
                "how": codec.how,
                "version": versions[codec.name],
                "families": list(codec.families),
            }
            for codec in chosen
        },
        points=tuple(point for points in found for point in points),
        metrics=tuple(metric.name for metric in wanted),
        rates=(low, high),
        date=date.today().isoformat(),
        notes=tuple(notes),
    )
    comparison._memory["codecs"] = tuple(chosen)  # for its report, which encodes again
    comparison._memory["metrics"] = {metric.name: metric for metric in wanted}
    return comparison


def _evenly(qualities: tuple[float, ...], count: int) -> tuple[float, ...]:
    at = np.rint(np.linspace(0, len(qualities) - 1, max(count, 1))).astype(int)
    return tuple(qualities[i] for i in sorted(set(at.tolist())))


def paths(
    inputs: Iterable[str | Path], complain: Callable[[CarcodecError], None] | None = None
) -> list[tuple[str, str]]:
    """Picture files of files and folders, each with a short name that no other has.

    Raises:
        ImageError: a folder holds no pictures, unless ``complain`` takes the error.
    """
    listed: list[tuple[Path, Path]] = []
    for one in map(Path, inputs):
        if not one.is_dir():
            listed.append((one, Path(one.name)))
            continue
        inside = files.within(one, files.PICTURES)
        if not inside:
            error = ImageError(f"the folder {one} holds no pictures")
            if complain is None:
                raise error
            complain(error)
        listed += [(p, p.relative_to(one)) for p in inside]
    names: set[str] = set()
    found = []
    for path, short in dict.fromkeys(listed):
        name = short.with_suffix("").as_posix()
        if name in names:
            name = path.as_posix()
        names.add(name)
        found.append((str(path), name))
    return found


class _Runner:
    """Runs (picture, codec) tasks; each thread holds the picture it works on."""

    def __init__(
        self,
        metrics: Sequence[measures.Metric],
        high: float,
        cache: Path,
        versions: dict[str, str],
        progress: Report,
        total: int,
    ) -> None:
        self.metrics, self.high, self.cache = metrics, high, cache
        self.versions, self.progress, self.total = versions, progress, total
        self.local = threading.local()
        self.done = 0.0
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def run(self, tasks: Sequence[tuple[Picture, Codec]], jobs: int) -> list[list[Point]]:
        pool = ThreadPoolExecutor(jobs)
        try:
            futures: list[Future[list[Point]]] = [pool.submit(self.task, *task) for task in tasks]
            pending = set(futures)
            while pending:
                # with a timeout, so that Ctrl-C is heard
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
            return [future.result() for future in futures]
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)

    def task(self, picture: Picture, codec: Codec) -> list[Point]:
        path = self.cache / self._key(picture, codec)
        known = recall(path)
        found: list[Point] = []
        for number, quality in enumerate(codec.qualities):
            if self.stop.is_set():
                return found
            self.progress(f"{picture.name}, {codec.name}", self.done / self.total)
            name = repr(float(quality))
            old = known.get(name, {})
            if not all(m.name in old.get("metrics", {}) for m in self.metrics):
                known[name] = self._measure(picture, codec, quality, old)
                keep(path, known)
            kept = known[name]["metrics"]  # others too, where an earlier run asked for them
            asked = {metric.name: kept[metric.name] for metric in self.metrics}
            about = {**known[name], "metrics": asked}
            point = Point(picture.name, codec.name, float(quality), **about)
            found.append(point)
            with self.lock:
                self.done += 1 / len(codec.qualities)
            if point.bpp > self.high and number:
                break
        with self.lock:
            self.done += 1 - len(found) / len(codec.qualities)
            self.progress(f"{picture.name}, {codec.name}", self.done / self.total)
        return found

    def _key(self, picture: Picture, codec: Codec) -> str:
        """Picture, codec, and what the machine's libraries are."""
        settings = json.dumps([codec.name, codec.how, self.versions[codec.name]])
        digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in codec.name)
        return f"{picture.digest[:24]}/{name}-{digest}.json"

    def _measure(
        self, picture: Picture, codec: Codec, quality: float, old: dict[str, Any]
    ) -> dict[str, Any]:
        image = self._image(picture)
        start = time.perf_counter()
        try:
            data = codec.encode(image, quality)
            middle = time.perf_counter()
            restored = codec.decode(data)
        except CarcodecError as error:
            raise CompareError(f"{codec.name} failed on {picture.path}: {error}") from error
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise CompareError(
                f"{codec.name} failed on {picture.path} at quality {quality:g}: {text}"
            ) from error
        end = time.perf_counter()
        if restored.shape != image.shape or restored.dtype != np.uint8:
            raise CompareError(
                f"{codec.name} made {restored.shape} {restored.dtype} of {picture.path}, which is "
                f"{image.shape} uint8"
            )
        figures = dict(old.get("metrics", {}))
        for metric in self.metrics:
            if metric.name not in figures:
                value = metric.compare(image, restored)
                # equal pictures have no PSNR: 100 dB is beyond what 8 bits can tell
                figures[metric.name] = 100.0 if value == math.inf else value
        return {
            "bytes": len(data),
            "bpp": 8 * len(data) / (picture.width * picture.height),
            "metrics": figures,
            "encode_seconds": round(middle - start, 4),
            "decode_seconds": round(end - middle, 4),
        }

    def _image(self, picture: Picture) -> Pixels:
        held = getattr(self.local, "held", None)
        if held is None or held[0] != picture.digest:
            self.local.held = held = (picture.digest, pixels(picture))
        image: Pixels = held[1]
        return image


def recall(path: Path) -> dict[str, Any]:
    """Results that :func:`keep` wrote; none if there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(path: Path, known: dict[str, Any]) -> None:
    """Remember results in a file.

    Raises:
        CompareError: it cannot be written.
    """
    try:
        atomic.write(path, json.dumps(known).encode())
    except OSError as error:
        raise CompareError(
            f"results cannot be kept in {path.parent}: {error.strerror}; free some space there or "
            "name another folder with --cache"
        ) from error

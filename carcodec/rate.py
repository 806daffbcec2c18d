"""Choose a setting and encode: by the quality dial, or to meet a size or a quality.

Targets are met by searching the storage codec's quality over real encodes, each quality at most
once; the downscaler runs once for each model that is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec import codec, container, dial, metrics, pixels, storage
from carcodec.dial import AUTO, Quality
from carcodec.errors import StorageError
from carcodec.target import MOST_TRIALS, Target, TargetError, Trial, bisect, fill, gap, once

__all__ = ["ALTERNATIVES", "REFINEMENT", "Target", "TargetError", "Trial", "encode", "meet"]

Report = Callable[[float], None]
Picture = Image.Image | NDArray[Any] | pixels.Photo

ALTERNATIVES = 6  # the effort from which other models are tried,
REFINEMENT = 7  # and LR is refined; see _STEPS
_STEPS = {7: 10, 8: 25, 9: 60}
_DRAFT = 1  # the effort at which a search that is for a higher one begins


def encode(
    photo: Picture,
    *,
    quality: Quality = AUTO,
    model: str = AUTO,
    scale: int = 0,
    storage_codec: str = AUTO,
    alpha_quality: int | None = None,
    engine: str = "auto",
    threads: int = 0,
    effort: int = storage.DEFAULT_EFFORT,
    progress: Report = lambda share: None,
) -> codec.Encoded:
    """Encode a Pillow image, a uint8/uint16 array, or a :class:`carcodec.pixels.Photo`.

    Args:
        photo: see :func:`carcodec.pixels.from_image` and :func:`~carcodec.pixels.from_array`
            for the modes and shapes accepted.
        quality: 0…100; ``None`` stores the small image losslessly. What the number means is
            said at :func:`carcodec.dial.settle`.
        model: an installed model, of which the newest version is taken, or ``auto``.
        scale: 0 leaves it open. Where the model is, too, a picture that half the size would lose
            (:mod:`carcodec.detail`) is stored at full size, unless losslessly.
        storage_codec: png, jpegls, jpeg2000, jpegxl, avif, webp or ``auto``.
        alpha_quality: 0…100 stores alpha lossily as WebP; ``None`` losslessly.
        engine, threads: what runs the networks, and on how many threads everything; 0 is all.
        effort: 0…9. Up to 5 it is the storage codec's; from 6 on the other models of the same
            storage codec are tried at the same size; from 7 on the small image is refined by
            gradient steps through the upscaler, which needs the torch extra and minutes.
        progress: called with the finished share, 0…1.

    Raises:
        ImageError, LimitError: the picture cannot be taken.
        ModelNotFoundError, EngineError, StorageError: as their names say.
        MissingDependencyError: the effort needs an extra that is not installed.
    """
    asked = (model, storage_codec, scale, quality)
    dial.settle(*asked)  # what is wrong with these comes first
    taken = pixels.from_any(photo)
    setting = dial.suited(taken.colour, *asked)
    run: dict[str, Any] = {"alpha_quality": alpha_quality, "engine": engine, "threads": threads}
    search = _Search(taken, run, effort, progress)
    if effort < ALTERNATIVES or setting.quality is None:
        return search.encode(setting)
    others = [setting.model]
    if model == AUTO:
        others += [m for m in dial.branches(setting.storage, scale) if m != setting.model]
    search.share = 1 / len(others)
    first = search.encode(setting)
    best = search.best(
        search.at_most(len(first.data), name, setting.storage) for name in others[1:]
    )
    mine = Trial(setting.quality, first, search.psnr(first))
    if best is not None and best.score > mine.score:
        mine = best
    return search.refined(mine, len(first.data)).encoded


def meet(
    photo: Picture,
    target: Target,
    *,
    model: str = AUTO,
    scale: int = 0,
    storage_codec: str = AUTO,
    alpha_quality: int | None = None,
    engine: str = "auto",
    threads: int = 0,
    effort: int = storage.DEFAULT_EFFORT,
    progress: Report = lambda share: None,
) -> Trial:
    """Encode ``photo`` so that it just meets ``target``; other arguments as :func:`encode`'s.

    Where model and scale are open, every model trained for the storage codec is tried: the best
    PSNR within a byte target wins, or the smallest file that reaches a quality. Above effort 1 that
    is found out at effort 1, where AVIF takes a tenth of the time, and so is the quality from which
    the search starts. A byte target is never exceeded, and met within 3 %: where the codec's steps
    are wider than that, as AVIF's 64 are, the small image is made a little easier to code. Lossless
    storage counts as the highest quality.

    Raises:
        TargetError: out of reach; says what the nearest is.
        StorageError: the storage codec is lossless only.
    """
    setting = dial.settle(model, storage_codec, scale, dial.USUAL_QUALITY)
    chosen = storage.by_name(setting.storage)
    if not chosen.lossy:
        raise StorageError(f"{chosen.title} is lossless only: it has no quality to search")
    run: dict[str, Any] = {"alpha_quality": alpha_quality, "engine": engine, "threads": threads}
    search = _Search(pixels.from_any(photo), run, effort, progress)
    names = dial.branches(setting.storage, scale) if model == AUTO else []
    names = names or [setting.model]
    any_storage = storage_codec == AUTO
    best = None
    if chosen.paced and effort > _DRAFT:
        draft = _Search(search.photo, {**run, "alpha_quality": alpha_quality}, _DRAFT, search.draft)
        draft.small = search.small
        try:
            found = draft.choose(target, names, setting.storage, any_storage)
            start = 100.0 if found.quality is None else found.quality
            name = found.encoded.header.model
            best = search.choose(target, [name], setting.storage, any_storage, start)
        except TargetError:  # perhaps within reach without the draft
            pass
    if best is None:
        best = search.choose(target, names, setting.storage, any_storage)
    progress(1.0)
    if effort < REFINEMENT or best.quality is None:
        return best
    return search.refined(best, len(best.encoded.data), target)


class _Search:
    """Encodes of one photo: LR of each model is made once, each setting stored once."""

    def __init__(
        self, photo: pixels.Photo, run: dict[str, Any], effort: int, progress: Report
    ) -> None:
        if not 0 <= effort <= 9:
            raise StorageError(f"effort must be from 0 to 9, not {effort}")
        if effort >= REFINEMENT:
            from carcodec import refine

            refine.require()
        self.photo, self.run, self.effort, self.report = photo, run, effort, progress
        self.alpha_quality = run.pop("alpha_quality")
        self.small: dict[str, codec.Prepared] = {}
        self.stored: dict[tuple[str, str, float | None, int | None], codec.Encoded] = {}
        self.share = 1.0  # of the progress, for one model
        self.done = 0.0

    def prepared(self, model: str, share: float = 1.0) -> codec.Prepared:
        if model not in self.small:
            start = self.done

            def report(part: float) -> None:
                self.done = start + part * share * self.share
                self.report(min(self.done, 1.0))

            alpha = self.alpha_quality
            self.small[model] = codec.prepare(
                self.photo, model=model, alpha_quality=alpha, progress=report, **self.run
            )
        return self.small[model]

    def encode(self, setting: dial.Setting, told: int | None = None) -> codec.Encoded:
        key = (setting.model, setting.storage, setting.quality, told)
        if key not in self.stored:
            self.stored[key] = codec.store(
                self.prepared(setting.model),
                setting.storage,
                setting.quality,
                self.run["threads"],
                self.effort,
                told=told,
            )
        return self.stored[key]

    def draft(self, share: float) -> None:
        """Progress of a search that goes before this one."""
        self.done = 0.5 * share
        self.report(self.done)

    def choose(
        self,
        target: Target,
        models: list[str],
        storage_codec: str,
        any_storage: bool,
        start: float | None = None,
    ) -> Trial:
        """The best of several models' searches; the rest is said at :meth:`meet`.

        Raises: TargetError: no model meets the target.
        """
        self.share = (1 - self.done) / len(models)
        found: list[Trial] = []
        refused: list[TargetError] = []
        for name in models:
            try:
                found.append(self.meet(target, name, storage_codec, any_storage, start))
            except TargetError as error:
                refused.append(error)
        if not found:
            # the smallest scale reaches furthest up, the largest furthest down
            raise refused[0 if target.kind == "bytes" else -1]
        if target.kind != "bytes":
            return min(found, key=lambda trial: len(trial.encoded.data))
        if len(found) == 1:
            return found[0]
        return max(found, key=lambda trial: self.psnr(trial.encoded))

    def restored(self, encoded: codec.Encoded) -> pixels.Plane:
        return codec.restore(encoded.data, **self.run).colour

    def psnr(self, encoded: codec.Encoded) -> float:
        return metrics.psnr(self.photo.colour, self.restored(encoded))

    def best(self, trials: Iterator[Trial | None]) -> Trial | None:
        scored = [replace(t, score=self.psnr(t.encoded)) for t in trials if t is not None]
        return max(scored, key=lambda t: t.score, default=None)

    def at_most(self, size: int, model: str, storage_codec: str) -> Trial | None:
        try:
            return self.meet(Target("bytes", size), model, storage_codec)
        except TargetError:
            return None

    def meet(
        self,
        target: Target,
        model: str,
        storage_codec: str,
        any_storage: bool = False,
        start: float | None = None,
    ) -> Trial:
        """One model's search; ``any_storage`` takes the smallest lossless codec where it ends.

        ``start`` is a quality that is near already.
        """
        made = self.prepared(model, 0.5)
        # bytes are the same whatever the upscaler is told: that is found out at the end
        late = 0 if target.kind == "bytes" and made.card.told == "step" else None
        tried = 0
        begun = self.done

        def attempt(quality: float | None) -> Trial:
            stored = "jpegxl" if quality is None and any_storage else storage_codec
            return judged(quality, self.encode(dial.Setting(model, stored, quality), late))

        def judged(quality: float | None, encoded: codec.Encoded) -> Trial:
            nonlocal tried
            score = float(len(encoded.data))
            if target.kind != "bytes":
                measure = metrics.psnr if target.kind == "psnr" else metrics.ssim
                score = measure(self.photo.colour, self.restored(encoded))
            tried += 1
            self.done = begun + 0.5 * self.share * min(1.0, tried / MOST_TRIALS)
            self.report(min(self.done, 1.0))
            return Trial(quality, encoded, score)

        whole = storage.by_name(storage_codec).whole
        found, other = bisect(once(attempt), target, 1.0 if whole else 0.05, start)
        if other is not None and abs(found.score - target.value) > gap(target):
            low, high = (found, other) if target.kind == "bytes" else (other, found)
            moved = self.moved(low, high)
            nearer = fill(lambda share: judged(high.quality, moved(share)), low, high, target)
            if nearer and (target.kind != "bytes" or self.error(nearer) < self.error(found)):
                return nearer
        if late is None:
            return found
        encoded = codec.tell(found.encoded, made, self.run["threads"], self.effort)
        return replace(found, encoded=encoded)

    def moved(self, low: Trial, high: Trial) -> Callable[[float], codec.Encoded]:
        """Encodes at ``high``'s quality LR that has moved by a share towards what ``low`` stores.

        ``low`` and ``high`` are neighbouring qualities of a codec whose steps are wide. What moves
        is what the coarser step would lose. Up to a share of 0.1 sizes and PSNR lie on the line
        between the two, within 0.1 dB; at 0.2 ``low`` itself would be as good, and smaller.
        """
        original = self.prepared(low.encoded.header.model)
        start, end = original.small, self.stored_image(low)
        name = storage.by_number(low.encoded.header.storage).name

        def encode(share: float) -> codec.Encoded:
            small = np.empty_like(start)
            for rows in _strips(start):
                step = end[rows].astype(np.float32) - start[rows]
                small[rows] = np.rint(start[rows] + share * step)
            changed = replace(original, small=small)
            return codec.store(changed, name, high.quality, self.run["threads"], self.effort)

        return encode

    def stored_image(self, trial: Trial) -> storage.Pixels:
        return codec.stored_image(container.read(trial.encoded.data), self.run["threads"])

    def error(self, trial: Trial) -> float:
        """Sum of the squared errors of LR as it is stored."""
        small = self.prepared(trial.encoded.header.model).small
        return metrics.squared_error(small, self.stored_image(trial))

    def refined(self, trial: Trial, most: int, target: Target | None = None) -> Trial:
        """The trial with LR refined, if that is better: a higher PSNR in at most ``most`` bytes.

        Where there is a target, it is met again: by a higher PSNR, or a smaller file.
        """
        steps = _STEPS.get(self.effort, 0)
        header = trial.encoded.header
        name = storage.by_number(header.storage).name
        if not steps or trial.quality is None:
            return trial
        from carcodec import refine

        original = self.prepared(header.model)
        small = refine.refine(original, name, trial.quality, steps, self.run["threads"])
        if small is None:
            return trial
        other = _Search(self.photo, {**self.run, "alpha_quality": None}, self.effort, self.report)
        other.small[header.model] = replace(original, small=small)
        other.done, other.share = self.done, 0.0  # progress does not start again
        if target is not None:
            try:
                found = other.meet(target, header.model, name, start=trial.quality)
            except TargetError:
                return trial
            if target.kind == "bytes":
                better = self.psnr(found.encoded) > self.psnr(trial.encoded)
            else:
                better = len(found.encoded.data) < len(trial.encoded.data)
            return found if better else trial
        best, score = trial, self.psnr(trial.encoded)
        step = 1.0 if storage.by_name(name).whole else 0.5
        quality = trial.quality
        # its bytes differ a little at the same quality: the nearest qualities are tried, too
        for moved in (0.0, -step, step, -2 * step, 2 * step):
            if not 0 <= quality + moved <= 100:
                continue
            encoded = other.encode(dial.Setting(header.model, name, quality + moved))
            if len(encoded.data) > most:
                continue
            found_score = self.psnr(encoded)
            if found_score > score:
                best, score = Trial(quality + moved, encoded, found_score), found_score
        return replace(best, score=score)


def _strips(image: storage.Pixels) -> list[slice]:
    """Rows of it that are small enough to be copied as floats."""
    return [slice(at, at + 256) for at in range(0, len(image), 256)]

"""A finished comparison as data: points, curves, BD figures, crossings."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from carcodec import metrics as measures
from carcodec.compare import curves
from carcodec.compare.curves import Curve
from carcodec.errors import CompareError

__all__ = ["Comparison", "Crossover", "Delta", "Picture", "Point"]


@dataclass(frozen=True)
class Picture:
    """One compared picture, 8-bit RGB of ``path``, or the part of it from ``left, top`` on.

    ``digest`` is the SHA-256 of its pixels.
    """

    name: str
    path: str
    width: int
    height: int
    digest: str
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class Point:
    """One real encode and decode.

    Attributes:
        picture, codec, quality: what was coded by what at which quality.
        bytes: of the whole file; ``bpp`` is eight times that per pixel.
        metrics: figures by metric name, as defined, not in dB.
        encode_seconds, decode_seconds: wall clock, beside whatever ran at the same time.
    """

    picture: str
    codec: str
    quality: float
    bytes: int
    bpp: float
    metrics: dict[str, float]
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Delta:
    """BD-rate (per cent) or BD-PSNR (dB) of ``codec`` against ``anchor``.

    Attributes:
        mean: over the pictures whose curves overlap; NaN if there are none.
        by_picture: each picture's; NaN where its curves do not overlap.
    """

    codec: str
    anchor: str
    metric: str
    mean: float
    by_picture: dict[str, float]

    @property
    def overlapping(self) -> int:
        """How many pictures the mean is over."""
        return sum(math.isfinite(v) for v in self.by_picture.values())


@dataclass(frozen=True)
class Crossover:
    """A rate (bpp) at which the mean curves of two codecs change places."""

    codec: str
    anchor: str
    bpp: float
    value: float
    better_above: bool


@dataclass(frozen=True)
class Comparison:
    """What :func:`carcodec.compare` measured.

    Attributes:
        pictures, points: all of them.
        codecs: name → title, how it is run, version, families, of every measured codec.
        metrics: names of the metrics measured, the first being the default.
        rates: bpp range of the BD figures unless another is given.
        date: of the run, ISO.
        notes: what was left out, one sentence each.
    """

    pictures: tuple[Picture, ...]
    codecs: dict[str, dict[str, Any]]
    points: tuple[Point, ...]
    metrics: tuple[str, ...]
    rates: tuple[float, float]
    date: str
    notes: tuple[str, ...] = ()
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def families(self) -> list[str]:
        """Families with several members, and ``carcodec``: their curves are convex hulls."""
        members: dict[str, list[str]] = {}
        for name, about in self.codecs.items():
            for family in about["families"]:
                members.setdefault(family, []).append(name)
        found: list[str] = []
        for family, names in members.items():
            same = any(members[other] == names for other in found)
            if (len(names) > 1 and not same) or family == "carcodec":
                found.append(family)
        return found

    @property
    def ours(self) -> list[str]:
        """carcodec's curves: families, and codecs that are one by themselves (the dial)."""
        alone = [name for name, about in self.codecs.items() if name in about["families"]]
        return [*self.families, *alone]

    @property
    def anchors(self) -> list[str]:
        """What carcodec is held against: codecs of no family."""
        return [name for name, about in self.codecs.items() if not about["families"]]

    @property
    def names(self) -> list[str]:
        """All curves: families first, then codecs."""
        return [*self.families, *self.codecs]

    def title(self, name: str) -> str:
        """A curve's name for people."""
        if name in self.codecs:
            return str(self.codecs[name]["title"] or name)
        inside = name.partition("-")[2].removesuffix("+").removesuffix("-hq")
        titles = {"avif": "AVIF", "jpeg2000": "JPEG 2000", "jpegxl": "JPEG XL", "webp": "WebP"}
        slower = f", {name[name.index('-hq') :]}" if "-hq" in name else ""
        first = name.partition("-")[0]
        return f"{first}, {titles.get(inside, inside)} inside{slower}" if inside else name

    def measure(self, metric: str) -> measures.Metric:
        """The metric called so: the caller's own, or a built-in one.

        Of a comparison that was read back, a metric that is not built in is taken as it stands.
        """
        own = self._memory.get("metrics", {})
        return own.get(metric) or _BY_NAME.get(metric) or measures.Metric(metric, metric, _lost)

    def curve(self, name: str, metric: str = "", picture: str = "") -> Curve:
        """(bpp, quality) of one codec or family; quality as :meth:`Metric.scale` gives it.

        For one picture its points, or the hull of a family's. Without a picture the mean over all
        of them at each quality, or the hull of a family's means: every picture at one setting.

        Raises:
            CompareError: no such codec, metric or picture.
        """
        metric = self._metric(metric)
        key = (name, metric, picture)
        if key not in self._memory:
            self._memory[key] = self._curve(name, metric, picture)
        found: Curve = self._memory[key]
        return found

    def _curve(self, name: str, metric: str, picture: str) -> Curve:
        if picture:
            if name in self.codecs:
                return sorted(self._points(name, metric, picture))
            return curves.hull(
                [p for c in self._members(name) for p in self._points(c, metric, picture)]
            )
        if name not in self.codecs:
            return curves.hull([p for c in self._members(name) for p in self.curve(c, metric)])
        names = [p.name for p in self.pictures]
        by_quality: dict[float, list[tuple[float, float]]] = {}
        for one in names:
            for point in self._by_picture()[name, one]:
                value = self._value(point, metric)
                if math.isfinite(value):
                    by_quality.setdefault(point.quality, []).append((point.bpp, value))
        most = max((len(v) for v in by_quality.values()), default=0)
        # a mean over other pictures than its neighbours' would bend the curve
        means = [np.mean(v, 0) for _, v in sorted(by_quality.items()) if len(v) == most]
        return sorted((float(m[0]), float(m[1])) for m in means)

    def _members(self, family: str) -> list[str]:
        found = [c for c, about in self.codecs.items() if family in about["families"]]
        if not found:
            raise CompareError(f"no codec {family!r} here: choose from {', '.join(self.names)}")
        return found

    def _points(self, codec: str, metric: str, picture: str) -> Curve:
        found = [(p.bpp, self._value(p, metric)) for p in self._by_picture()[codec, picture]]
        return [p for p in found if math.isfinite(p[1])]

    def _value(self, point: Point, metric: str) -> float:
        return self.measure(metric).scale(point.metrics.get(metric, math.nan))

    def _by_picture(self) -> dict[tuple[str, str], list[Point]]:
        if "points" not in self._memory:
            grouped: dict[tuple[str, str], list[Point]] = {
                (c, p.name): [] for c in self.codecs for p in self.pictures
            }
            for point in self.points:
                grouped[point.codec, point.picture].append(point)
            self._memory["points"] = grouped
        found: dict[tuple[str, str], list[Point]] = self._memory["points"]
        return found

    def _metric(self, metric: str) -> str:
        metric = metric or self.metrics[0]
        if metric not in self.metrics:
            raise CompareError(
                f"{metric} was not measured: choose from {', '.join(self.metrics)}, or compare "
                "again with it"
            )
        return metric

    def bd_rate(
        self, anchor: str, metric: str = "", rates: tuple[float, float] | None = None
    ) -> dict[str, Delta]:
        """BD-rate in per cent of every other curve against ``anchor``: see curves.bd_rate.

        Computed for each picture, then averaged over those where the two overlap.
        """
        return self._deltas("bd_rate", anchor, metric, rates)

    def bd_psnr(
        self, anchor: str, metric: str = "", rates: tuple[float, float] | None = None
    ) -> dict[str, Delta]:
        """BD-PSNR in dB (or the metric's unit), otherwise as :meth:`bd_rate`."""
        return self._deltas("bd_quality", anchor, metric, rates)

    def _deltas(
        self, kind: str, anchor: str, metric: str, rates: tuple[float, float] | None
    ) -> dict[str, Delta]:
        metric, (low, high) = self._metric(metric), rates or self.rates
        found = {}
        for name in self.names:
            if name == anchor:
                continue
            values = {
                p.name: getattr(curves, kind)(
                    self.curve(anchor, metric, p.name), self.curve(name, metric, p.name), low, high
                )
                for p in self.pictures
            }
            finite = [v for v in values.values() if math.isfinite(v)]
            mean = float(np.mean(finite)) if finite else math.nan
            found[name] = Delta(name, anchor, metric, mean, values)
        return found

    def crossovers(self, anchor: str, metric: str = "") -> list[Crossover]:
        """Where each other mean curve overtakes the anchor's or falls behind it, within `rates`."""
        metric, (low, high) = self._metric(metric), self.rates
        base = self.curve(anchor, metric)
        return [
            Crossover(name, anchor, *crossing)
            for name in self.names
            if name != anchor
            for crossing in curves.crossings(base, self.curve(name, metric))
            if low <= crossing[0] <= high
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Every point as a flat dictionary, for pandas.DataFrame or CSV."""
        return [
            {
                "picture": p.picture,
                "codec": p.codec,
                "quality": p.quality,
                "bytes": p.bytes,
                "bpp": p.bpp,
                **p.metrics,
                "encode_seconds": p.encode_seconds,
                "decode_seconds": p.decode_seconds,
            }
            for p in self.points
        ]

    def to_json(self) -> str:
        """Everything that was measured, for :meth:`from_json`."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name[0] != "_"}
        data["points"] = [
            dataclasses.asdict(p) | {"metrics": {k: _number(v) for k, v in p.metrics.items()}}
            for p in self.points
        ]
        return json.dumps(
            data | {"format": 1}, default=dataclasses.asdict, indent=1, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what :meth:`to_json` wrote.

        Raises:
            CompareError: it is something else.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != 1:
                raise CompareError("this comparison was written by a newer carcodec: upgrade")
            data["pictures"] = tuple(Picture(**p) for p in data["pictures"])
            data["points"] = tuple(
                Point(**p | {"metrics": {k: _value(v) for k, v in p["metrics"].items()}})
                for p in data["points"]
            )
            for name in ("metrics", "rates", "notes"):
                data[name] = tuple(data[name])
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CompareError(f"this is not a comparison's report.json: {error}") from error

    def plot(self, metric: str = "", picture: str = "", names: Sequence[str] = ()) -> Any:
        """Curves as a matplotlib figure; see :func:`carcodec.compare.plot.figure`."""
        from carcodec.compare import plot

        return plot.figure(self, self._metric(metric), picture, names)

    def report(self, folder: str | Path, views: Iterable[float] = (0.25,)) -> Path:
        """Write the report: see :func:`carcodec.compare.report.write`.

        One that was read back from JSON has no codecs that could encode again, and its page no
        viewer.
        """
        from carcodec.compare import report

        codecs = self._memory.get("codecs", ())
        return report.write(self, Path(folder), codecs=codecs, views=tuple(views))


_BY_NAME = {m.name: m for m in measures.METRICS}


def _lost(original: Any, restored: Any) -> float:
    return math.nan


def _number(value: float) -> float | None:
    """For JSON, which has no NaN: a metric may have no value for a small picture."""
    return value if math.isfinite(value) else None


def _value(number: float | None) -> float:
    return math.nan if number is None else number

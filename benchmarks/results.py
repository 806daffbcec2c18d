"""Write docs/RESULTS.md, docs/rd.png and README's table: carcodec compared on the evaluation sets.

    python benchmarks/results.py EVAL [--sets Kodak Set5 …] [--sample] [--cache FOLDER]
        [--engine openvino:fp32] [--report FOLDER] [--figures figures.json] [--storage jpeg2000]
        [--fast] [--figure]

EVAL holds the sets as folders of PNG files. Everything goes through carcodec.compare, which
remembers each result in --cache, so that a run goes on where it stopped: all of it takes hours.
--sample takes every fourth picture of Urban100. Kodak is measured up to 2 bits per pixel, the other
sets up to 0.5. --engine openvino:fp32 keeps machines with bfloat16 to the figures of those without.
--figures writes what `carcodec export --measured` puts onto the cards. --report
writes Kodak's report there as well. --storage measures the models of one storage codec alone and
puts their rows into the page that is there; it is for AVIF's rivals, which the hull over all and
the dial do not use. --fast leaves out what is decoded by self-ensembles. --figure measures and
writes nothing but docs/rd.png, which takes an hour instead of a night.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from carcodec import atomic, metrics, zoo
from carcodec.compare import Codec, Comparison, carcodecs, compare, plot, report, standard
from carcodec.compare.codecs import DIAL
from carcodec.compare.run import AGAINST

ROOT = Path(__file__).parent.parent
SETS = ("Kodak", "Set5", "Set14", "BSD100", "Urban100")
EVERY = {"Urban100": 4}  # with --sample
SPANS = ((0.05, 0.25), (0.1, 0.5), (0.05, 2.0))
# the storage codec at full size that each hull is held against, and by how much it may lose
OWN = {
    "carcodec-avif": "avif-tuned",
    "carcodec-jpeg2000": "jpeg2000",
    "carcodec-jpeg2000-hq": "jpeg2000",
    "carcodec-jpeg2000-hq+": "jpeg2000",
}
WORST = 5.0
# efforts that Kodak is measured at as well, and what they are
EFFORTS = {
    2: "carcodec stores with AVIF's speed 6, libavif's own (5 at the default); the other codecs "
    "are those above.",
    4: "carcodec stores with AVIF's speed 4.",
}
ANCHORS = (*AGAINST, "avif-tuned")
Lines = list[str]
TITLES = {m.name: m.title for m in metrics.METRICS}
FEW = ("psnr", "ssim")  # of most sets
MANY = ("psnr", "psnr-y", "ssim", "ms-ssim")  # of Kodak
LOOKS = "ssimulacra2"  # of Kodak with AVIF inside, up to 0.5 bpp: it is slow


def percent(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:+.1f}".replace("-", "−")


def with_slower(own: list[Codec], engine: str) -> list[Codec]:
    """Beside a storage codec's hull, which searches use, two over its -hq models as well.

    The second has these also with more effort, and decoded by a self-ensemble.
    """
    found = own
    for card in zoo.installed():
        name = f"carcodec-{card.storage}"
        members = [c for c in found if name in c.families]
        slow = card.name.endswith("-hq")
        if not slow or not members or card.version < zoo.find(card.name).version:
            continue
        (slower,) = carcodecs([card.storage], [card.name], engine=engine)
        by_itself = engine.partition(":")[
            0
        ]  # in 8 bits, in a third of the time, where it does that
        (slowest,) = carcodecs([card.storage], [f"{card.name}+"], engine=by_itself, effort=4)
        slowest = replace(slowest, qualities=tuple(q for q in slowest.qualities if q >= 4))
        hulls = (f"{name}-hq", f"{name}-hq+")
        found = [replace(c, families=(*c.families, *hulls)) if c in members else c for c in found]
        found += [replace(slower, families=hulls), replace(slowest, families=hulls[1:])]
    return found


def without_slowest(codecs: list[Codec]) -> list[Codec]:
    """All but what is decoded by a self-ensemble: 10 to 40 s for each picture of Kodak and rate."""
    return [
        replace(c, families=tuple(f for f in c.families if not f.endswith("+")))
        for c in codecs
        if not c.name.endswith("+")
    ]


def slowest_lines(found: Comparison) -> Lines:
    """What is left of hulls when everything is done that carcodec can do."""
    lines = []
    for family in (f for f in found.families if f.endswith("+")):
        deltas = {m: found.bd_rate(OWN[family], m, SPANS[1])[family] for m in found.metrics}
        means = ", ".join(f"{TITLES[m]} {percent(d.mean)} %" for m, d in deltas.items())
        worst = max(filter(math.isfinite, deltas["psnr"].by_picture.values()))
        lines.append(
            f"- {found.title(family)} against {found.title(OWN[family])} at full size, "
            f"{SPANS[1][0]:g}–{SPANS[1][1]:g} bpp, mean: {means}; PSNR at worst {percent(worst)} %."
        )
    return [*lines, ""]


def without_slower(found: Comparison) -> Comparison:
    """The comparison but for -hq models, whose curve would be one more than there are colours."""
    codecs = {
        name: about | {"families": [f for f in about["families"] if "-hq" not in f]}
        for name, about in found.codecs.items()
        if "-hq" not in name
    }
    points = tuple(point for point in found.points if point.codec in codecs)
    return replace(found, codecs=codecs, points=points, _memory={})


def draw(found: Comparison) -> None:
    """docs/rd.png, of Kodak. The hull over all is also AVIF's as long as no other is part of it."""
    ours = [name for name in found.ours if name != "carcodec-avif"]
    drawn = plot.figure(found, "psnr", names=[*ours, *ANCHORS])
    atomic.write(ROOT / "docs" / "rd.png", plot.rendered(drawn, "png"))


def bd_table(found: Comparison, metric: str, span: tuple[float, float]) -> list[str]:
    names = [n for n in found.names if n not in ANCHORS]
    deltas = {anchor: found.bd_rate(anchor, metric, span) for anchor in ANCHORS}
    lines = [
        f"| {TITLES[metric]}, {span[0]:g}–{span[1]:g} bpp | "
        + " | ".join(found.title(a) for a in ANCHORS)
        + " |",
        "|---" * (len(ANCHORS) + 1) + "|",
    ]
    for name in [*names, "avif-tuned"]:
        cells = [found.title(name)]
        for anchor in ANCHORS:
            delta = deltas[anchor].get(name)
            if delta is None:
                cells.append("")
                continue
            few = "" if delta.overlapping == len(found.pictures) else f" ({delta.overlapping})"
            cells.append(percent(delta.mean) + few)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def losses(found: Comparison) -> list[str]:
    """Per picture: against the storage codec itself, and against AVIF as libavif makes it."""
    lines = []
    for family, own in OWN.items():
        if not any(family in about["families"] for about in found.codecs.values()):
            continue
        for span in SPANS[:2]:
            delta = found.bd_rate(own, "psnr", span)[family]
            values = {k: v for k, v in delta.by_picture.items() if math.isfinite(v)}
            if not values:
                continue
            worst = max(values, key=values.__getitem__)
            over = sum(v > WORST for v in values.values())
            lines.append(
                f"- {found.title(family)} against {found.title(own)} at full size, "
                f"{span[0]:g}–{span[1]:g} bpp: worst {percent(values[worst])} % ({worst}), best "
                f"{percent(min(values.values()))} %; more than {WORST:g} % worse on {over} of "
                f"{len(values)} pictures."
            )
    return [*lines, ""]


def crossings(found: Comparison, chosen: list[str]) -> list[str]:
    lines = []
    for metric in chosen:
        for anchor in ANCHORS:
            for c in found.crossovers(anchor, metric):
                if c.codec == "carcodec":
                    better = "carcodec" if c.better_above else found.title(anchor)
                    lines.append(
                        f"- {TITLES[metric]}: {better} is better above {c.bpp:.2g} bpp, of "
                        f"carcodec and {found.title(anchor)}."
                    )
    return [*lines, ""]


def effort_part(found: Comparison, effort: int) -> list[str]:
    """Kodak again at another effort, against the same anchors."""
    title = f"## Kodak, {len(found.pictures)} pictures, `--effort {effort}`"
    lines = [title, "", EFFORTS[effort], ""]
    for metric in (m for m in found.metrics if m != "psnr-y"):
        for span in SPANS[:2]:
            lines += bd_table(found, metric, span)
    return lines


def page(
    found: dict[str, Comparison],
    looks: Comparison | None,
    slowest: Comparison | None,
    efforts: dict[int, Comparison],
    command: str,
    every: dict[str, int],
) -> str:
    first = next(iter(found.values()))
    lines = [
        "# Results",
        "",
        f"Written by `{command}` on {first.date}, Python {platform.python_version()}. "
        "How codecs are run and figures made is said in [PROTOCOL.md](PROTOCOL.md) and "
        "[COMPARE.md](COMPARE.md). Photos as they come from cameras and phones are in "
        "[CAMERAS.md](CAMERAS.md).",
        "",
        "BD-rates in per cent, computed for each picture and averaged; negative: fewer bits "
        "than the column's codec at equal quality. A number in brackets: pictures with an "
        'overlap. "carcodec" is the hull over its models, with a storage codec\'s name over those '
        "that store with it: the best model for each picture and rate, as searches for a target "
        "find it, and -hq also over models that are taken only by name, for their time; -hq+ "
        "has these also at `--effort 4` and decoded with `--self-ensemble` in 8 bits, eight times "
        "as slow again: one line below Kodak's tables. "
        "`--quality` alone takes the same model for every picture but those that half the size "
        "would lose. SSIM and MS-SSIM "
        "are compared as −10 log₁₀(1 − x), SSIMULACRA2 as it is. Kodak is measured "
        "up to 2 bits per pixel, the other sets up to 0.5. AVIF is what "
        "libavif makes of a photo by default (4:2:0, its tuning for looks); AVIF 4:4:4 tune=ssim "
        "is what carcodec stores with, used at full size without any network: the difference to "
        "it is what the networks do, and what AVIF's container takes: 277 bytes of each of these "
        "files, which carcodec does without, while its own takes 66 and the model's name.",
        "",
        "![Rate-distortion on Kodak](rd.png)",
        "",
    ]
    for name, one in found.items():
        count = len(one.pictures)
        part = f" (every {every[name]}th of the set)" if name in every else ""
        lines += [f"## {name}, {count} pictures{part}", ""]
        chosen = [m for m in one.metrics if m != "psnr-y"]
        spans = SPANS if name == "Kodak" else SPANS[:2]
        for metric in chosen:
            for span in spans:
                lines += bd_table(one, metric, span)
        if name == "Kodak" and looks is not None:
            for span in SPANS[:2]:
                lines += bd_table(looks, LOOKS, span)
        lines += losses(one)
        if name == "Kodak" and slowest is not None:
            lines[-1:] = slowest_lines(slowest)
        if name == "Kodak":  # elsewhere mean curves end where the first picture passed 0.5 bpp
            lines += crossings(one, chosen)
        if one.notes:
            lines += [*(f"- {note}" for note in one.notes), ""]
        if name == "Kodak":
            for effort, other in efforts.items():
                lines += effort_part(other, effort)
    lines += ["## Versions", "", "| codec | run as | version |", "|---|---|---|"]
    lines += [
        f"| {about['title']} | {about['how']} | {about['version']} |"
        for about in first.codecs.values()
    ]
    return "\n".join(lines) + "\n"


def merged(old: str, new: str, titles: set[str], note: str) -> str:
    """The page ``old`` with the rows of ``new`` that have these titles, versions left out."""

    def keyed(text: str) -> list[tuple[tuple[str, ...], str]]:
        section = table = ""
        before, found = "", []
        for line in text.splitlines():
            key: tuple[str, ...] = ()
            cell = re.sub(r" v\d+,", ",", line.strip("|").partition("|")[0].strip())
            if line.startswith("## "):
                section = line
            elif line.startswith("|") and not before.startswith("|"):
                table = cell
            elif line.startswith("|"):
                key = (section, table, cell)
            elif line.startswith("- "):
                cell = line[2:].partition(" against ")[0]
                key = (section, line.partition(":")[0], cell)
            before = line
            found.append((key, line))
        return found

    rows, behind = {}, {}  # by key; keys of new rows by the key of the row before them
    before: tuple[str, ...] = ()
    known = {key for key, _ in keyed(old)}
    for key, line in keyed(new):
        if key and key[-1] in titles:
            rows[key] = line
            if key not in known:
                behind[before] = key
        before = key
    lines = []
    for key, line in keyed(old):
        lines.append(rows.get(key, line))
        while key and (key := behind.get(key, ())):
            lines.append(rows[key])
    begun = note.partition(" were measured")[0]
    lines = [line for line in lines if not line.startswith(begun)]
    at = next(i for i, line in enumerate(lines) if line.startswith("Written by")) + 1
    return "\n".join([*lines[:at], note, *lines[at:]]) + "\n"


def readme_table(found: Comparison, looks: Comparison, efforts: dict[int, Comparison]) -> str:
    """The hull, also at the speed of the anchor AVIF, and the dial."""
    similar = [(found, "ssim"), (found, "ms-ssim"), (looks, LOOKS)]
    rows = [(found, "carcodec", "psnr", s, "") for s in SPANS[:2]]
    rows += [(one, "carcodec", metric, SPANS[1], "") for one, metric in similar]
    rows.append((efforts[2], "carcodec", "psnr", SPANS[1], ", `--effort 2`"))
    dialled = [(found, DIAL, "psnr", s, "") for s in SPANS[:2]]
    dialled += [(one, DIAL, metric, SPANS[1], "") for one, metric in similar]
    text = (
        "With the scale that is best for each photo and rate by the row's measure (`--target-bpp` "
        "and `--max-bytes`\nfind it by PSNR, `--target-ssim` by SSIM):"
    )
    first = bd_rows(text, rows)
    text = "With `--quality`, the same scale for all photos:"
    return "\n".join([*first, "", *bd_rows(text, dialled)])


def bd_rows(text: str, rows: list[tuple[Comparison, str, str, tuple[float, float], str]]) -> Lines:
    lines = [text, "", "| | " + " | ".join(rows[0][0].title(a) for a in ANCHORS) + " |"]
    lines.append("|---" * (len(ANCHORS) + 1) + "|")
    for one, family, metric, span, how in rows:
        cells = [f"{TITLES[metric]}, {span[0]:g}–{span[1]:g} bpp{how}"]
        for anchor in ANCHORS:
            delta = one.bd_rate(anchor, metric, span)[family]
            cells.append(percent(delta.mean) + " %")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figures(found: Comparison, name: str) -> dict[str, Any]:
    """What cards hold: means by quality, and BD-rates."""
    cards: dict[str, Any] = {}
    for codec in found.codecs:
        if codec in ANCHORS or codec == DIAL:
            continue
        entry: dict[str, Any] = {}
        for anchor in ANCHORS:
            for low, high in SPANS[:2]:
                delta = found.bd_rate(anchor, "psnr", (low, high))[codec]
                if delta.overlapping == len(found.pictures):
                    key = f"BD-rate % RGB PSNR {low:g}:{high:g} bpp against {anchor}"
                    entry[key] = round(delta.mean, 1)
        by_quality: dict[float, list[list[float]]] = {}
        for p in found.points:
            if p.codec == codec:
                row = [p.bpp, p.metrics["psnr"], p.metrics["psnr-y"]]
                by_quality.setdefault(p.quality, []).append(row)
        for quality, rows in by_quality.items():
            if len(rows) == len(found.pictures):
                entry[f"q{quality:g}"] = [round(float(v), 3) for v in np.mean(rows, 0)]
        cards[codec] = {name: entry}
    return cards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--sample", action="store_true", help="fewer pictures of the large sets")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--fast", action="store_true", help="without self-ensembles")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--storage", choices=["jpeg2000"], help="its models alone")
    part.add_argument("--figure", action="store_true", help="docs/rd.png alone")
    arguments = parser.parse_args()
    engine = arguments.engine
    own = carcodecs(
        [arguments.storage] if arguments.storage else ["avif", "jpeg2000"], engine=engine
    )
    if arguments.storage:  # the hull over these is not carcodec's
        own = [replace(c, families=(f"carcodec-{arguments.storage}",)) for c in own]
    if not arguments.figure:
        own = with_slower(own, engine)
    chosen = [*own, *standard(ANCHORS)]
    found: dict[str, Comparison] = {}
    efforts: dict[int, Comparison] = {}
    looks: Comparison | None = None
    slowest: Comparison | None = None
    with Progress() as bar:

        def measured(
            title: str,
            pictures: list[Path],
            codecs: list[Codec],
            most: float,
            wanted: tuple[str, ...],
        ) -> Comparison:
            task = bar.add_task(title, total=1.0)
            one = compare(
                pictures, codecs, rates=(0.05, most),
                metrics=wanted,
                cache=arguments.cache, jobs=arguments.jobs,
                progress=lambda what, share: bar.update(task, completed=share),
            )  # fmt: skip
            bar.update(task, completed=1.0)
            return one

        if arguments.figure:
            pictures = sorted((arguments.folder / "Kodak").glob("*.png"))
            draw(measured("Kodak", pictures, chosen, 2.0, ("psnr",)))
            return
        for name in arguments.sets:
            pictures = sorted((arguments.folder / name).glob("*.png"))
            if arguments.sample:
                pictures = pictures[:: EVERY.get(name, 1)]
            kodak = name == "Kodak"
            most, wanted = (2.0, MANY) if kodak else (0.5, FEW)
            found[name] = measured(name, pictures, without_slowest(chosen), most, wanted)
            if kodak and not arguments.fast:
                members = [c for c in chosen if any(f.endswith("+") for f in c.families)]
                few = [*members, *standard(ANCHORS)]
                slowest = measured(f"{name}, self-ensemble", pictures, few, 0.5, FEW)
            if kodak and not arguments.storage:
                few = [*carcodecs(["avif"], engine=engine), *standard(ANCHORS)]
                looks = measured(f"{name}, {TITLES[LOOKS]}", pictures, few, 0.5, (LOOKS,))
            for effort in EFFORTS if kodak and not arguments.storage else ():
                slower = carcodecs(["avif"], engine=engine, effort=effort)
                slower = [*(c for c in slower if c.name != DIAL), *standard(ANCHORS)]
                title = f"{name}, --effort {effort}"
                efforts[effort] = measured(title, pictures, slower, 0.5, MANY)
    command = "python benchmarks/results.py EVAL"
    if arguments.sets != list(SETS):
        command += f" --sets {' '.join(arguments.sets)}"
    if arguments.sample:
        command += " --sample"
    if engine != "auto":
        command += f" --engine {engine}"
    if arguments.storage:
        command += f" --storage {arguments.storage}"
    text = page(found, looks, slowest, efforts, command, EVERY if arguments.sample else {})
    target = ROOT / "docs" / "RESULTS.md"
    if arguments.storage:
        one = next(iter(found.values()))
        families = {one.title(family) for c in own for family in c.families}
        titles = {re.sub(r" v\d+,", ",", c.title or c.name) for c in own} | families
        what = one.title(f"carcodec-{arguments.storage}").partition(", ")[2]
        note = f"The rows of {what} were measured again by `{command}` on {one.date}."
        text = merged(target.read_text("utf-8"), text, titles, note)
    atomic.write(target, text.encode())
    if arguments.figures and "Kodak" in found:
        content = json.dumps(figures(found["Kodak"], "Kodak"), indent=1)
        atomic.write(arguments.figures, content.encode())
    if looks is None:
        return
    kodak_found = found["Kodak"]
    draw(without_slower(kodak_found))
    readme = ROOT / "README.md"
    marks = ("<!-- results: benchmarks/results.py -->\n", "\n<!-- /results -->")
    pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
    table = marks[0] + readme_table(kodak_found, looks, efforts) + marks[1]
    old = readme.read_text("utf-8")
    readme.write_text(re.sub(pattern, lambda _: table, old, flags=re.DOTALL), "utf-8")
    if arguments.report:
        report.write(kodak_found, arguments.report, codecs=chosen)


if __name__ == "__main__":
    main()

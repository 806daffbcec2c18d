"""The command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich import filesize
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from carcodec import codec, container, dial, files, metrics, pixels, rate, storage, zoo
from carcodec.errors import CarcodecError, CompareError, MissingDependencyError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Keep a photo as one small file: an instant thumbnail and the full-size photo.",
)
models_app = typer.Typer(no_args_is_help=True, help="The trained models that are installed.")
app.add_typer(models_app, name="models")
engine_app = typer.Typer(no_args_is_help=True, help="What executes the networks.")
app.add_typer(engine_app, name="engine")

# names of files and extras may hold square brackets, which Rich would take for its markup
screen = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
printed = Console(highlight=False, markup=False)

_STORAGES = ", ".join(c.name for c in storage.STORAGES)

Inputs = Annotated[list[str], typer.Argument(help="Files or folders; - is standard input.")]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        help="File or folder; - is standard output.",
        show_default="beside the input",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Skip = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out what has been written already.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="auto, or one of `carcodec engine list`, also with options: pytorch:bf16+compile."
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 is all cores.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]


def _speak(value: bool) -> bool:
    if value:
        from rich.logging import RichHandler

        handler = RichHandler(console=screen, show_time=False, show_path=False, show_level=False)
        log = logging.getLogger("carcodec")
        log.handlers[:] = [handler]
        log.setLevel(logging.INFO)
    return value


Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_speak, help="Say which engine runs what, and why not another."
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from carcodec import __version__

        typer.echo(f"carcodec {__version__}")
        raise typer.Exit


@app.command()
def encode(
    inputs: Inputs,
    output: Output = None,
    model: Annotated[str, typer.Option(help="auto, or one of `carcodec models list`.")] = "auto",
    scale: Annotated[str, typer.Option(help="auto, or how much smaller: 1, 2, …")] = "auto",
    storage_codec: Annotated[
        str, typer.Option("--storage", help=f"Codec of the small image: auto, {_STORAGES}.")
    ] = "auto",
    quality: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="0…100, a dial over all scales; the storage codec's own where "
            "the model or scale is given.",
            show_default="the highest that stores a half-size image",
        ),
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Store the small image losslessly.")
    ] = False,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Best quality in at most so many bytes.")
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(min=0, help="Best quality in so many bits per pixel.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(min=0, help="Smallest file of this PSNR (RGB, dB).")
    ] = None,
    target_ssim: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest file of this SSIM (RGB).")
    ] = None,
    alpha_quality: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="Store alpha lossily.", show_default="lossless"),
    ] = None,
    effort: Annotated[
        int,
        typer.Option(
            min=0, max=9, help="Time for bytes: from 6 other scales are tried, from 7 refined."
        ),
    ] = storage.DEFAULT_EFFORT,
    engine: Engine = "auto",
    threads: Threads = 0,
    check: Annotated[bool, typer.Option("--check", help="Decode again, report PSNR/SSIM.")] = False,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode photos to .carimg."""
    dials = {
        "--lossless": lossless or None,
        "--quality": quality,
        "--max-bytes": max_bytes,
        "--target-bpp": target_bpp,
        "--target-psnr": target_psnr,
        "--target-ssim": target_ssim,
    }
    given = [dial for dial, value in dials.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other")
    wanted = _scale(model, scale)
    if storage_codec != "auto" and given and given != ["--lossless"]:
        chosen = storage.by_name(storage_codec)
        if not chosen.lossy:
            raise typer.BadParameter(f"{chosen.title} is lossless only: leave {given[0]} out")

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        start = time.perf_counter()
        photo = files.read_photo(source)
        options: dict[str, Any] = {
            "model": model,
            "scale": wanted,
            "storage_codec": storage_codec,
            "alpha_quality": alpha_quality,
            "effort": effort,
            "engine": engine,
            "threads": threads,
            "progress": report,
        }
        area = photo.colour.shape[0] * photo.colour.shape[1]
        goals: list[rate.Target] = []
        if max_bytes is not None:
            goals.append(rate.Target("bytes", max_bytes))
        if target_bpp is not None:
            goals.append(rate.Target("bytes", target_bpp * area / 8))
        if target_psnr is not None:
            goals.append(rate.Target("psnr", target_psnr))
        if target_ssim is not None:
            goals.append(rate.Target("ssim", target_ssim))
        if goals:
            encoded = rate.meet(photo, goals[0], **options).encoded
        else:
            asked: dial.Quality = None if lossless else "auto" if quality is None else quality
            encoded = rate.encode(photo, quality=asked, **options)
        seconds = time.perf_counter() - start
        scores = _check(photo, encoded.data, engine, threads) if check else ""
        files.write_bytes(target, encoded.data, overwrite)
        header = encoded.header
        stored = storage.by_number(header.storage).name
        stored += " lossless" if header.lossless_lr else f" quality {encoded.quality:g}"
        left = f" (1 of {photo.count} pictures in it)" if photo.count > 1 else ""
        return (
            f"{header.width}×{header.height} {header.mode_name}{left}, {header.model}, "
            f"{stored}: {len(encoded.data):,} bytes, {encoded.bpp:.3f} bpp, "
            f"{seconds:.1f} s{scores}"
        )

    _each(
        inputs, files.PICTURES, output, ".carimg", overwrite, skip_existing, quiet, "Encoding", one
    )


@app.command()
def decode(
    inputs: Inputs,
    output: Output = None,
    format: Annotated[
        str, typer.Option(help="Extension where -o names no file: png, jpg, webp, tif, …")
    ] = "png",
    engine: Engine = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Restore full-size photos, in the format that the output's extension says."""
    suffix = "." + format.lower().removeprefix(".")

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        start = time.perf_counter()
        data = files.read_bytes(source)
        photo = _named(source, lambda: codec.restore(data, engine, threads, 0, report))
        written = files.image_bytes(photo, suffix if target == "-" else Path(target).suffix)
        files.write_bytes(target, written, overwrite)
        height, width = photo.colour.shape[:2]
        return f"{width}×{height} {photo.mode}, {time.perf_counter() - start:.1f} s"

    _each(inputs, {".carimg"}, output, suffix, overwrite, skip_existing, quiet, "Decoding", one)


@app.command()
def thumbnail(
    inputs: Inputs,
    output: Output = None,
    size: Annotated[int, typer.Option(min=0, help="Longest side in pixels; 0 as stored.")] = 0,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
) -> None:
    """Write the stored small image; no model is needed and no network runs.

    As stored, where that is what the output's extension asks for: an .avif of a file with AVIF
    inside has nothing coded again.
    """

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        data = files.read_bytes(source)
        file = _named(source, lambda: container.read(data))
        width, height = file.header.lr_size
        stored = _named(source, lambda: storage.by_number(file.header.storage))
        plain = not (size or file.alpha or file.icc or file.header.colour_lr)
        if plain and stored.extension and Path(target).suffix.lower() == stored.extension:
            _named(source, lambda: codec.stored_image(file))  # it is sound
            files.write_bytes(target, stored.in_file(file.lr), overwrite)
            return f"{width}×{height}, as stored"
        share = min(1.0, size / max(width, height)) if size else 1.0
        wanted = (max(1, round(width * share)), max(1, round(height * share)))
        image = _named(source, lambda: codec.thumbnail(file, wanted))
        if image.size != wanted:
            image = image.resize(wanted, Image.Resampling.LANCZOS)
        suffix = ".png" if target == "-" else Path(target).suffix
        written = files.image_bytes(pixels.from_image(image), suffix)
        files.write_bytes(target, written, overwrite)
        return f"{image.width}×{image.height}"

    _each(
        inputs, {".carimg"}, output, ".thumb.png", overwrite, skip_existing, quiet, "Reading", one
    )


@app.command()
def info(
    inputs: Inputs,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one list.")] = False,
) -> None:
    """Say what .carimg files hold, from their headers."""
    found: list[dict[str, Any]] = []
    failed = False
    for source, _ in files.inputs(inputs, {".carimg"}):
        try:
            found.append(_describe(source))
        except CarcodecError as error:
            _complain(error)
            failed = True
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for entry in found:
            printed.print(entry["file"], soft_wrap=True)  # whole, to be copied
            table = Table(show_header=False)
            for key, value in entry.items():
                if key != "file":
                    table.add_row(key.replace("_", " "), str(value))
            printed.print(table)
    if failed:
        raise typer.Exit(1)


@app.command()
def verify(inputs: Inputs, quiet: Quiet = False) -> None:
    """Check every byte of .carimg files and decode their stored images, without a network."""
    failed = False
    for source, _ in files.inputs(inputs, {".carimg"}):
        try:
            data = files.read_bytes(source)
            file = _named(source, lambda data=data: container.read(data))  # type: ignore[misc]
            _named(source, lambda file=file: codec.thumbnail(file))  # type: ignore[misc]
        except CarcodecError as error:
            _complain(error)
            failed = True
            continue
        header = file.header
        try:
            zoo.find(header.model, header.model_version, header.model_digest)
            note = "sound"
        except CarcodecError as error:
            note = f"sound, but cannot be decoded here: {error}"
        if not quiet:
            screen.print(f"{source}: {note}")
    if failed:
        raise typer.Exit(1)


@models_app.command("list")
def models_list(
    every: Annotated[bool, typer.Option("--all", help="Earlier versions too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, of all versions.")] = False,
) -> None:
    """List the installed models, the newest version of each."""
    cards = zoo.installed()
    if as_json:
        typer.echo(json.dumps([_card(c) for c in cards], indent=2))
        return
    table = Table("model", "version", "scale", "digest", "description")
    if not every:
        cards = [next(versions) for _, versions in itertools.groupby(cards, lambda c: c.name)]
    for card in cards:
        table.add_row(
            card.name, str(card.version), f"×{card.scale}", card.digest[:12], card.description
        )
    printed.print(table)


@models_app.command("show")
def models_show(
    name: str,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print one model's card: networks, training, measured figures beside the paper's."""
    card = zoo.find(name)
    if as_json:
        typer.echo(json.dumps(_card(card), indent=2, ensure_ascii=False))
        return
    from rich.markdown import Markdown

    from carcodec import describe

    printed.print(Markdown(describe.markdown(card)))


@engine_app.command("list")
def engine_list() -> None:
    """List the engines: which are installed, which run here, which is taken."""
    from carcodec import engines

    table = Table("engine", "state", "how to get it", box=SIMPLE)
    chosen = engines.resolve() if engines.available() else ""
    for name, (_, extra) in engines.ENGINES.items():
        state = "runs here" if name in engines.available() else "not installed"
        if state != "runs here" and not engines.missing(name):
            state = "needs an NVIDIA GPU"
        how = f'pip install "carcodec[{extra}]"' if extra else "comes with carcodec"
        table.add_row(name, f"{state}, taken" if name == chosen else state, how)
    printed.print(table)


@engine_app.command("build")
def engine_build(
    models: Annotated[list[str], typer.Argument(help="Models whose TensorRT plans to build.")],
    engine: Annotated[
        str,
        typer.Option(
            help="tensorrt or tensorrt-rtx, also with :fp32 or :fp16; auto: what is installed."
        ),
    ] = "auto",
    quiet: Quiet = False,
) -> None:
    """Build TensorRT plans ahead of their first use, into the user's cache folder."""
    from carcodec import engines

    if engine == "auto":
        found = [name for name in engines.ON_GPU if not engines.missing(name)]
        engine = found[0] if found else engines.ON_GPU[0]
    if engine.partition(":")[0] not in engines.ON_GPU:
        raise CarcodecError(
            f"the engine {engine} needs no building: choose one of {', '.join(engines.ON_GPU)}"
        )
    chosen: Any = engines.get(engine)
    library, options = chosen.library(), engines.options(engine)
    from carcodec.engines import plans, session

    cards = [zoo.find(name) for name in models]
    jobs = [(card.step(side), side) for card in cards for side in ("downscaler", "upscaler")]
    device = session.device_name()
    with _bar("plans", disable=quiet) as bar:
        task = bar.add_task("", total=len(jobs))
        for card, side in jobs:
            bar.update(task, description=f"{engine}: {side} of {card.name}")
            before = set(plans.folder().glob("*.plan"))
            asked = session.asked(card, side, options)
            precision, _ = session.planned(library, card, side, asked)
            path = plans.folder() / plans.key(library, card, side, precision, device)
            bar.console.print(f"{path}{' was there' if path in before else ''}")
            bar.advance(task)


@engine_app.command("bench")
def engine_bench(
    model: str,
    photo: Annotated[Path, typer.Option(help="What to downscale and restore.")],
    engine: Annotated[
        str, typer.Option(help="Engines, with commas.", show_default="all that run here")
    ] = "",
    threads: Threads = 0,
) -> None:
    """Time a model's networks on a photo, engine by engine."""
    from carcodec import engines, files
    from carcodec import evaluate as scoring

    card = zoo.find(model)
    colour = files.read_photo(str(photo)).colour
    table = Table("engine", "downscaler, MP/s", "upscaler, MP/s")
    for name in _parts(engine) or engines.available():
        found = scoring.speeds(colour, card, name, threads)
        table.add_row(name, *(f"{speed:.2f}" for speed in found))
    printed.print(table)


@app.command()
def compare(
    inputs: Annotated[list[str], typer.Argument(help="Photos, or folders of them.")],
    against: Annotated[
        str, typer.Option(help="Codecs at full size, with commas; see docs/COMPARE.md for all.")
    ] = "jpeg,jpeg2000,webp,avif,jpegxl",
    models: Annotated[
        str,
        typer.Option(
            help="carcodec's models, with commas.", show_default="those trained for --storages"
        ),
    ] = "",
    storages: Annotated[
        str, typer.Option(help="Codecs of the small image, with commas.")
    ] = "avif,jpeg2000",
    metric: Annotated[
        str, typer.Option(help="psnr, psnr-y, ssim, ms-ssim, ssimulacra2, …, with commas.")
    ] = "psnr",
    rates: Annotated[str, typer.Option(help="Range of interest in bits per pixel.")] = "0.05:2",
    points: Annotated[
        int, typer.Option(min=0, help="Qualities of each codec; 0 is all it has, about 10.")
    ] = 8,
    side: Annotated[
        int,
        typer.Option(min=0, help="Compare the middle of larger pictures, so many pixels a side."),
    ] = 2048,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for index.html, report.json, .csv, plots."),
    ] = None,
    view: Annotated[
        str, typer.Option(help="Bits per pixel, with commas, at which the page shows pictures.")
    ] = "0.25",
    pictures: Annotated[int, typer.Option(min=0, help="How many pictures the page shows.")] = 24,
    branches: Annotated[
        bool, typer.Option("--branches", help="Print each of carcodec's models too.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help="A paper's comparison instead: rsrnet-table4 or car-table5.")
    ] = "",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where results are remembered.", show_default="user's cache folder"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Threads; 0 is all cores.")] = 0,
    effort: Annotated[int, typer.Option(min=0, max=5, help="carcodec's.")] = storage.DEFAULT_EFFORT,
    engine: Engine = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare carcodec with other codecs on your photos: bits at equal quality, and a report."""
    from carcodec.compare import codecs as coders
    from carcodec.compare import presets, report, run, summary

    failures: list[CarcodecError] = []
    complain = _complaints(failures)
    with _bar("", disable=quiet) as bar:
        task = bar.add_task("comparing", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        if preset:
            tables = presets.run(
                preset, inputs, _parts(models), engine=engine, progress=progress, complain=complain
            )
            for table in tables:
                bar.console.print(presets.rendered(table))
            if output is not None:
                presets.save(tables, output)
            if failures:
                raise typer.Exit(1)
            return
        shown = _rates(view)
        low, high = _range(rates)
        chosen = [
            *coders.carcodecs(_parts(storages), _parts(models), engine=engine, effort=effort),
            *coders.standard(_parts(against)),
        ]
        if output is not None:
            report.check(output)
        try:
            found = run.compare(
                inputs,
                chosen,
                metrics=_parts(metric),
                rates=(low, high),
                points=points,
                side=side,
                jobs=jobs,
                cache=cache,
                progress=progress,
                complain=complain,
            )
            for line in [*summary.lines(found, branches), *found.notes]:
                bar.console.print(line)
            if output is not None:
                bar.reset(task, description="report")
                try:
                    page = report.write(
                        found,
                        output,
                        codecs=chosen,
                        views=shown,
                        pictures=pictures,
                        cache=cache or run.cache_folder(),
                        progress=progress,
                    )
                except OSError as error:
                    raise CompareError(
                        f"the report cannot be written to {output}: {error.strerror}; what was "
                        f"measured is kept in {cache or run.cache_folder()}"
                    ) from error
                bar.console.print(f"{page}")
        except KeyboardInterrupt:
            _complain(
                CarcodecError(
                    f"interrupted; what is finished is kept in {cache or run.cache_folder()}, and "
                    "the same command goes on from there"
                )
            )
            raise typer.Exit(130) from None
    if failures:
        raise typer.Exit(1)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _complaints(failures: list[CarcodecError]) -> Callable[[CarcodecError], None]:
    """What to call with an error that spoils one picture: it is shown, and counted here."""

    def complain(error: CarcodecError) -> None:
        failures.append(error)
        _complain(error)

    return complain


def _rates(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise typer.BadParameter(f"{text!r} is not bits per pixel, such as 0.25 or 0.1,0.5")
    return found


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise typer.BadParameter(f"{text!r} is not a range of bits per pixel, such as 0.05:2")
    return low, high


@app.command()
def evaluate(
    folders: Annotated[list[str], typer.Argument(help="Folders of pictures, each a set.")],
    models: Annotated[
        str,
        typer.Option(
            help="Models, and bicubic-x2, box-x3, lanczos3-x4, …, or one's LR into another: "
            "bicubic-x2+car-x2; with commas.",
            show_default="all that fit",
        ),
    ] = "",
    table: Annotated[
        str, typer.Option(help="A paper's table, such as 'CAR I': its rows, and ours beside them.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="car or matlab; see docs/PROTOCOL.md.")] = "car",
    papers: Annotated[
        bool, typer.Option("--published/--no-published", help="Papers' figures beside ours.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write this file.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write this file.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write this file.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where results are remembered.", show_default="user's cache folder"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Threads; 0 is all cores.")] = 0,
    engine: Engine = "auto",
    quiet: Quiet = False,
) -> None:
    """Score models on sets of pictures under the papers' protocol, LR stored losslessly."""
    from carcodec import atomic
    from carcodec import evaluate as scoring

    failures: list[CarcodecError] = []
    names, missing = _parts(models), list[str]()
    if table:
        there, missing = scoring.beside(table)
        names = names or there
        if not names:
            raise CompareError(
                f"none of what stands beside {table} is installed: train {', '.join(missing)}"
            )
    with _bar("", disable=quiet) as bar:
        task = bar.add_task("evaluating", total=1.0)
        rows = scoring.evaluate(
            folders,
            names,
            protocol=protocol,  # type: ignore[arg-type]  # it checks
            engine=engine,
            jobs=jobs,
            cache=cache,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
            complain=_complaints(failures),
        )
    beside = scoring.published(rows, table) if papers else []
    for key in dict.fromkeys((row.scale, row.pictures) for row in rows):
        part = [row for row in rows if (row.scale, row.pictures) == key]
        near = [p for p in beside if (p.scale, p.pictures) == key]
        head, *body = ([cells[0], *cells[4:]] for cells in scoring.table(part, near))
        count = part[0].count
        title = f"×{key[0]}, {key[1]}, {count} picture{'s' * (count != 1)}"
        shown = Table(title=title, title_justify="left", box=SIMPLE)
        shown.add_column(head[0], overflow="fold")
        for i, name in enumerate(head[1:], 1):
            width = max(len(line[i]) for line in [head, *body])
            shown.add_column(name, justify="right", min_width=width, no_wrap=True)
        for line in body:
            shown.add_row(*line)
        printed.print(shown)
    for text in [scoring.BITS, *scoring.sources(beside)]:
        printed.print(text)
    if missing:
        printed.print(f"not installed, and so not measured: {', '.join(missing)}")
    written = {
        json_file: scoring.as_json,
        csv_file: scoring.as_csv,
        markdown_file: scoring.markdown,
    }
    for path, form in written.items():
        if path is not None:
            atomic.write(path, form(rows, beside).encode())
    if failures:
        raise typer.Exit(1)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    data: Annotated[Path, typer.Option(help="Folder of photos, or with train/ and val/ inside.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Run folder.", show_default="runs/NAME"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Time budget.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of this checkpoint or model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Threads = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events beside log.csv.")
    ] = False,
) -> None:
    """Train a downscaler and an upscaler together; needs the torch extra.

    On several GPUs: torchrun --nproc-per-node 4 -m carcodec train …
    """
    training = _training("loop")
    recipes = _training("recipe")
    path = recipe
    if not path.exists() and path.suffix == "" and len(path.parts) == 1:
        path = Path(__file__).parent / "training" / "recipes" / f"{recipe.name}.toml"
    loaded = recipes.load_recipe(path)
    if threads:
        import torch

        torch.set_num_threads(threads)
    out = output or Path("runs") / loaded.name
    budget = minutes or loaded.training.minutes
    quiet = os.environ.get("RANK", "0") != "0"  # under torchrun the first process speaks
    with _bar("min", disable=quiet) as bar:
        task = bar.add_task(f"{loaded.name}: reading photos", total=budget)

        def report(now: Any) -> None:
            bar.update(
                task,
                completed=now.minutes,
                description=f"{loaded.name}: step {now.step}, loss {now.loss:.5f}, "
                f"rate {now.learning_rate:.1e}",
            )
            if now.validation_psnr is not None:
                bar.console.print(
                    f"{now.minutes:7.1f} min  step {now.step}  loss {now.loss:.5f}  "
                    f"validation {now.validation_psnr:.2f} dB"
                )

        psnr = training.train(
            loaded,
            data,
            out,
            minutes=minutes,
            resume=resume,
            init=init,
            device=device,
            report=report,
            tensorboard=tensorboard,
        )
    if not quiet:
        screen.print(f"{out / 'checkpoint.pt'}: validation {psnr:.2f} dB (RGB)")


@app.command("export")
def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.pt of a training run.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of models, e.g. one in $CARCODEC_MODELS.")
    ],
    data: Annotated[str, typer.Option(help="What it was trained on, for the card.")] = "",
    command: Annotated[str, typer.Option(help="How it was trained, for the card.")] = "",
    measured: Annotated[
        Path | None, typer.Option(help="JSON of benchmarks/quality.py, for the card.")
    ] = None,
) -> None:
    """Write a checkpoint as a model that can be encoded with: card and ONNX files."""
    figures = json.loads(files.read_bytes(str(measured))) if measured else None
    card = _training("export").export(
        checkpoint, output, data=data, command=command, measured=figures
    )
    screen.print(f"{card}")


@app.command("quantise")
def quantise_command(
    model: Annotated[str, typer.Argument(help="A model that is installed.")],
    photos: Annotated[Path, typer.Option(help="Folder of photos to calibrate and measure on.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of models, e.g. one in $CARCODEC_MODELS.")
    ],
    most: Annotated[
        float, typer.Option(min=0, help="dB of RGB PSNR that no quality may lose.")
    ] = 0.05,
    quiet: Quiet = False,
) -> None:
    """Write a model with its upscaler in 8 bits too, which takes CPUs a fraction of the time."""
    from carcodec import quantise

    card = zoo.find(model)
    found = files.within(photos, files.PICTURES)
    with _bar(card.name, disable=quiet) as bar:
        task = bar.add_task("quantising", total=1.0)
        path = quantise.quantise(
            card,
            found,
            output,
            command=f"carcodec quantise {card.name} --photos {photos.resolve().name}/",
            most=most,
            progress=lambda share: bar.update(task, completed=share),
        )
    loss = zoo.load_card(path).upscaler.int8.loss  # type: ignore[union-attr]  # just written
    screen.print(f"{path}: loses {min(loss.values()):.3f} to {max(loss.values()):.3f} dB")


@app.command("pillow-autoload")
def pillow_autoload(
    state: Annotated[str, typer.Argument(help="on, off or status.")] = "status",
) -> None:
    """Let every Python program here open .carimg with Pillow, without importing carcodec."""
    from carcodec.plugins import autoload

    if state not in ("on", "off", "status"):
        raise typer.BadParameter("say on, off or status")
    typer.echo(autoload.switch(state))


def _scale(model: str, scale: str) -> int:
    """The scale asked for, 0 for auto, checked against what is installed."""
    if scale == "auto":
        return 0
    if model != "auto":
        raise typer.BadParameter("--model and --scale exclude each other")
    have = sorted({c.scale for c in zoo.installed()})
    if not scale.isdecimal() or int(scale) not in have:
        raise typer.BadParameter(
            f"no installed model has scale {scale}; there are auto, {', '.join(map(str, have))}"
        )
    return int(scale)


def _each(
    given: list[str],
    suffixes: set[str],
    output: str | None,
    suffix: str,
    overwrite: bool,
    skip: bool,
    quiet: bool,
    verb: str,
    one: Callable[[str, str, Callable[[float], None]], str],
) -> None:
    """Run ``one`` over every input; a failure is reported and the rest goes on."""
    if overwrite and skip:
        raise typer.BadParameter("--overwrite and --skip-existing exclude each other")
    found = files.inputs(given, suffixes)
    folder = any(g != "-" and Path(g).is_dir() for g in given)
    many = len(found) > 1 or folder
    if many and output == "-":
        raise typer.BadParameter("several inputs cannot go to one standard output")
    if many and output is not None and Path(output).is_file():
        raise typer.BadParameter(f"several inputs need a folder, {output} is a file")
    kept = failures = taken = written = 0
    start = time.perf_counter()
    targets = [files.output_path(s, r, output, many, suffix) for s, r in found]
    first = {target: at for at, target in reversed(list(enumerate(targets)))}
    stopped = threading.Event()
    with _bar("", disable=quiet) as bar:
        whole = bar.add_task(verb, total=len(found)) if many else None

        def run(at: int) -> str:
            source, target = found[at][0], targets[at]
            if first[target] != at:
                raise files.OutputError(f"{source}: {target} is that of another input of that name")
            if target != source:  # else what is wrong with the input comes first
                if skip and Path(target).is_file():
                    return ""
                files.check_output(target, overwrite)
            task = bar.add_task(source, total=1.0)

            def report(share: float) -> None:
                if stopped.is_set():
                    raise KeyboardInterrupt
                bar.update(task, completed=share)

            try:
                return one(source, target, report)
            finally:
                bar.remove_task(task)

        # two at once: while the networks have one photo, the small image of another is coded
        pool = ThreadPoolExecutor(2 if many else 1)
        try:
            waiting = [pool.submit(run, at) for at in range(len(found))]
            for (source, _), target, result in zip(found, targets, waiting, strict=True):
                try:
                    summary = result.result()
                except CarcodecError as error:
                    failures += 1
                    _complain(error)
                else:
                    if summary:
                        taken, written = taken + _size(source), written + _size(target)
                    else:
                        kept += 1
                    if summary and not quiet:
                        bar.console.print(f"{source} → {target}  {summary}")
                if whole is not None:
                    bar.advance(whole)
        finally:  # an interruption ends what runs at its next tile
            stopped.set()
            pool.shutdown(cancel_futures=True)
    if many and not quiet:
        counts = [f"{len(found) - kept - failures:,} done"]
        rest = ((kept, "there already"), (failures, "failed"))
        counts += [f"{n:,} {what}" for n, what in rest if n]
        minutes, seconds = divmod(round(time.perf_counter() - start), 60)
        size = f"{filesize.decimal(taken)} → {filesize.decimal(written)}"
        screen.print(f"{', '.join(counts)}; {size}, {minutes}:{seconds:02} minutes")
    if failures:
        raise typer.Exit(1)


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError:  # standard input, or gone since
        return 0


@contextmanager
def _bar(unit: str, disable: bool = False) -> Iterator[Progress]:
    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), TextColumn(unit)] if unit else [TaskProgressColumn()]
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=disable or not screen.is_terminal,
    ) as bar:
        yield bar


def _named(source: str, action: Callable[[], Any]) -> Any:
    """Run ``action``; an error gains the file's name."""
    try:
        return action()
    except CarcodecError as error:
        name = "standard input" if source == "-" else source
        raise type(error)(f"{name}: {error}") from error


def _check(photo: pixels.Photo, data: bytes, engine: str, threads: int) -> str:
    restored = codec.restore(data, engine, threads)
    psnr = metrics.psnr(photo.colour, restored.colour)
    ssim = metrics.ssim(photo.colour, restored.colour)
    return f", PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"


# what the header's quality says, by what the model is told
_QUALITIES = {"quality": "storage codec", "step": "quantiser's step"}


def _describe(source: str) -> dict[str, Any]:
    data = files.read_bytes(source)
    file: container.Carimg = _named(source, lambda: container.read(data))
    header = file.header
    names = {number: c.name for c in storage.STORAGES for number in (c.number, *c.older)}
    try:
        card = zoo.find(header.model, header.model_version, header.model_digest)
    except CarcodecError:
        card = None
    return {
        "file": source,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 4),
        "width": header.width,
        "height": header.height,
        "mode": header.mode_name,
        "scale": header.scale,
        "small_width": header.lr_size[0],
        "small_height": header.lr_size[1],
        "model": header.model,
        "model_version": header.model_version,
        "model_digest": header.model_digest.hex(),
        "model_installed": card is not None,
        "storage": names.get(header.storage, header.storage),
        "quality": "lossless" if header.lossless_lr else header.quality,
        "quality_of": _QUALITIES[card.told] if card and not header.lossless_lr else None,
        "lr_bytes": len(file.lr),
        "alpha_bytes": len(file.alpha or b""),
        "icc_bytes": len(file.icc or b""),
        "exif_bytes": len(file.exif or b""),
        "xmp_bytes": len(file.xmp or b""),
    }


def _card(card: zoo.ModelCard) -> dict[str, Any]:
    return dataclasses.asdict(card) | {"digest": card.digest, "folder": str(card.folder)}


def _training(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"carcodec.training.{module}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: pip install "carcodec[torch]"'
        ) from error


def _complain(error: BaseException) -> None:
    screen.print(f"carcodec: {' '.join(str(error).split())}", style="red")


def main() -> None:
    """Run the command line; exit code 1 is a failure, 2 a wrong call, 130 an interruption."""
    try:
        app(standalone_mode=True)
    except CarcodecError as error:
        _complain(error)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _complain(error)
        sys.exit(1)
    except MemoryError:
        screen.print("carcodec: there is not enough memory for this picture", style="red")
        sys.exit(1)

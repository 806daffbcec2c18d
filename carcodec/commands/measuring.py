"""Measuring on one's own pictures: compare with other codecs, evaluate as the papers do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from carcodec import storage
from carcodec.commands.terminal import (
    Engine,
    Quiet,
    complain,
    complaints,
    parts,
    printed,
    progress_bar,
)
from carcodec.errors import CarcodecError, CompareError

__all__ = ["compare", "evaluate"]


def compare(
    inputs: Annotated[list[str], typer.Argument(help="Photos, or folders of them.")],
    against: Annotated[
        str, typer.Option(help="Codecs at full size, with commas; see docs/COMPARE.md for all.")
    ] = "jpeg,jpeg2000,webp,avif,jpegxl",
    models: Annotated[
        str,
        typer.Option(
            help="carcodec's models, with commas; NAME+ is decoded by a self-ensemble.",
            show_default="those trained for --storages",
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
    spoiled = complaints(failures)
    with progress_bar("", disable=quiet) as bar:
        task = bar.add_task("comparing", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        if preset:
            tables = presets.run(
                preset, inputs, parts(models), engine=engine, progress=progress, complain=spoiled
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
            *coders.carcodecs(parts(storages), parts(models), engine=engine, effort=effort),
            *coders.standard(parts(against)),
        ]
        if output is not None:
            report.check(output)
        try:
            found = run.compare(
                inputs,
                chosen,
                metrics=parts(metric),
                rates=(low, high),
                points=points,
                side=side,
                jobs=jobs,
                cache=cache,
                progress=progress,
                complain=spoiled,
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
            complain(
                CarcodecError(
                    f"interrupted; what is finished is kept in {cache or run.cache_folder()}, and "
                    "the same command goes on from there"
                )
            )
            raise typer.Exit(130) from None
    if failures:
        raise typer.Exit(1)


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
    names, missing = parts(models), list[str]()
    if table:
        there, missing = scoring.beside(table)
        names = names or there
        if not names:
            raise CompareError(
                f"none of what stands beside {table} is installed: train {', '.join(missing)}"
            )
    with progress_bar("", disable=quiet) as bar:
        task = bar.add_task("evaluating", total=1.0)
        rows = scoring.evaluate(
            folders,
            names,
            protocol=protocol,  # type: ignore[arg-type]  # it checks
            engine=engine,
            jobs=jobs,
            cache=cache,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
            complain=complaints(failures),
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

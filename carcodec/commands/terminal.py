"""What commands share: options, the screen, progress, and going through files."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from carcodec import files
from carcodec.errors import CarcodecError

__all__ = [
    "Engine", "Inputs", "Output", "Overwrite", "Quiet", "Skip", "Threads", "Verbose",
    "complain", "complaints", "each", "named", "parts", "printed", "progress_bar", "screen",
]  # fmt: skip

# names of files and extras may hold square brackets, which Rich would take for its markup
screen = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
printed = Console(highlight=False, markup=False)

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


def each(
    given: list[str],
    suffixes: set[str],
    output: str | None,
    suffix: str,
    overwrite: bool,
    skip: bool,
    quiet: bool,
    verb: str,
    one: Callable[[str, str, Callable[[float], None]], str],
    engine: str = "",
) -> None:
    """Run ``one`` over every input; a failure is reported and the rest goes on.

    Several at a time, as is best for ``engine``, if there is one; reports in the inputs' order.
    """
    from carcodec import engines

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
    targets = files.output_paths(found, output, many, suffix)
    first = {target: at for at, target in reversed(list(enumerate(targets)))}
    stopped = threading.Event()
    with progress_bar("", disable=quiet) as bar:
        whole = bar.add_task(verb, total=len(found)) if many else None

        def run(at: int) -> str:
            source, target = found[at][0], targets[at]
            if first[target] != at:
                other = found[first[target]][0]
                raise files.OutputError(
                    f"{source}: {target} is the result of {other}: give one of them its own -o"
                )
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

        pool = ThreadPoolExecutor(engines.at_once(engine) if many else 1)
        try:
            waiting = [pool.submit(run, at) for at in range(len(found))]
            for (source, _), target, result in zip(found, targets, waiting, strict=True):
                try:
                    summary = result.result()
                except CarcodecError as error:
                    failures += 1
                    complain(error)
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


@contextlib.contextmanager
def progress_bar(unit: str, disable: bool = False) -> Iterator[Progress]:
    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), TextColumn(unit)] if unit else [TaskProgressColumn()]
    silent = disable or not screen.is_terminal
    bar = Progress(*columns, TimeRemainingColumn(), console=screen, transient=True)
    # not begun rather than disabled, which Rich before 15 ends with an empty line
    with contextlib.nullcontext() if silent else bar:
        yield bar


def named(source: str, action: Callable[[], Any]) -> Any:
    """Run ``action``; an error gains the file's name."""
    try:
        return action()
    except CarcodecError as error:
        name = "standard input" if source == "-" else source
        raise type(error)(f"{name}: {error}") from error


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def complaints(failures: list[CarcodecError]) -> Callable[[CarcodecError], None]:
    """What to call with an error that spoils one picture: it is shown, and counted here."""

    def spoiled(error: CarcodecError) -> None:
        failures.append(error)
        complain(error)

    return spoiled


def complain(error: BaseException) -> None:
    screen.print(f"carcodec: {' '.join(str(error).split())}", style="red")

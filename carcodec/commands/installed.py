"""What is installed: models, and the engines that execute them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from carcodec import files, zoo
from carcodec.commands.terminal import Quiet, Threads, parts, printed, progress_bar
from carcodec.errors import CarcodecError

__all__ = ["engine_bench", "engine_build", "engine_list", "models_list", "models_show"]


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
    with progress_bar("plans", disable=quiet) as bar:
        task = bar.add_task("", total=len(jobs))
        for card, side in jobs:
            bar.update(task, description=f"{engine}: {side} of {card.name}")
            before = set(plans.folder().glob("*.plan"))
            asked = session.asked(card, side, options)
            levels = plans.levelled(card, side)
            precision, _ = session.planned(library, card, side, asked, levels)
            path = plans.folder() / plans.key(library, card, side, precision, device, levels)
            bar.console.print(f"{path}{' was there' if path in before else ''}")
            bar.advance(task)


def engine_bench(
    model: str,
    photo: Annotated[Path, typer.Option(help="What to downscale and restore.")],
    engine: Annotated[
        str, typer.Option(help="Engines, with commas.", show_default="all that run here")
    ] = "",
    threads: Threads = 0,
) -> None:
    """Time a model's networks on a photo, engine by engine."""
    from carcodec import engines
    from carcodec import evaluate as scoring

    card = zoo.find(model)
    colour = files.read_photo(str(photo)).colour
    table = Table("engine", "downscaler, MP/s", "upscaler, MP/s")
    for name in parts(engine) or engines.available():
        found = scoring.speeds(colour, card, name, threads)
        table.add_row(name, *(f"{speed:.2f}" for speed in found))
    printed.print(table)


def _card(card: zoo.ModelCard) -> dict[str, Any]:
    return dataclasses.asdict(card) | {"digest": card.digest, "folder": str(card.folder)}

"""The command line: which commands there are, and how they end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from carcodec.commands import installed, making, measuring, photos
from carcodec.commands.terminal import complain, screen
from carcodec.errors import CarcodecError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Keep a photo as one small file: an instant thumbnail and the full-size photo.",
)
app.command()(photos.encode)
app.command()(photos.decode)
app.command()(photos.thumbnail)
app.command()(photos.info)
app.command()(photos.verify)
app.command()(measuring.compare)
app.command()(measuring.evaluate)
app.command()(making.train)
app.command()(making.export)
app.command()(making.quantise)
app.command("pillow-autoload")(photos.pillow_autoload)

models = typer.Typer(no_args_is_help=True, help="The trained models that are installed.")
models.command("list")(installed.models_list)
models.command("show")(installed.models_show)
app.add_typer(models, name="models")

engine = typer.Typer(no_args_is_help=True, help="What executes the networks.")
engine.command("list")(installed.engine_list)
engine.command("build")(installed.engine_build)
engine.command("bench")(installed.engine_bench)
app.add_typer(engine, name="engine")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from carcodec import __version__

        typer.echo(f"carcodec {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; exit code 1 is a failure, 2 a wrong call, 130 an interruption."""
    try:
        app(standalone_mode=True)
    except CarcodecError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        complain(error)
        sys.exit(1)
    except MemoryError:
        screen.print("carcodec: there is not enough memory for this picture", style="red")
        sys.exit(1)

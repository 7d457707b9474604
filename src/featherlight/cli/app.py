"""The application that verbs are added to, and what several of them share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from featherlight import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, fine-tune and ship neural networks within a budget of memory, time and bytes.",
)
console = Console(stderr=True)

Text = Annotated[list[str] | None, typer.Option("--text", help="Text column; twice for a pair. Guessed if left out.")]
Label = Annotated[str | None, typer.Option(help="Label column. Guessed if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]
Truncate = Annotated[bool, typer.Option("--allow-truncation", help="Go on if over 1% of the tokens are cut off.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker", help="tensorboard, or module:function that makes a listener; may be given several times."
    ),
]
Run = Annotated[Path, typer.Argument(help="A run directory, or a model directory.", show_default=False)]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"featherlight {__version__}")
        raise typer.Exit


def refuse_settings(*given: object) -> None:
    """Raises ValueError if any setting stands beside `--resume`."""
    if any(given):
        raise ValueError(
            "`--resume` goes on with a run as its config.toml says, so it takes no other settings. Drop them."
        )


def typed() -> str:
    """The command as it was typed."""
    return "featherlight " + shlex.join(sys.argv[1:])


def settings_of(*, as_json: bool, tracker: list[str] | None) -> dict[str, Any]:
    """What all verbs that train are told."""
    from featherlight.integrations.trackers import make_trackers

    return {
        "as_json": as_json,
        "console": console,
        "listeners": make_trackers(
            tracker or [], lambda sentence: console.print(sentence, highlight=False, markup=False)
        ),
    }

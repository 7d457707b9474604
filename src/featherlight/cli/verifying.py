"""Verbs of journals, saves and manifests: rebuild, check, compare, hand on."""

import json
from pathlib import Path
from typing import Annotated

import typer

from featherlight.cli.app import Json, app, console


@app.command()
def replay(
    base: Annotated[str, typer.Argument(help="The base model: directory, hub id, or `minilm`.", show_default=False)],
    journal: Annotated[Path, typer.Argument(help="The file `journal` of a run, or a shared run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory for the rebuilt model.", show_default=False)],
    steps: Annotated[int | None, typer.Option(help="Replay only so many steps.")] = None,
    as_json: Json = False,
) -> None:
    """Rebuild a fine-tuned model, to the same bits, from its base and a journal of kilobytes. Needs no data."""
    from featherlight.recipes.finetune import use
    from featherlight.trainer import tracker

    done = use.replay(base, journal, out, steps=steps, track=tracker(console))
    if as_json:
        typer.echo(json.dumps(done | {"out": str(out)}))
        return
    noted = (
        ""
        if done["trained_sha256"] is None
        else f" (of the trained parameters {done['trained_sha256']}, as the run noted)"
    )
    typer.echo(f"replayed {done['steps']:,} steps to {out}\nsha256 of all weights {done['sha256']}{noted}")
    if done["damage"] is not None:
        console.print(f"note: {done['damage']}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Runs, models with a manifest, journals, shared runs.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Say what is intact and what is damaged, and where. Ends with code 4 if anything is damaged."""
    from featherlight.recipes.integrity_command import verify_all

    verify_all(paths, as_json=as_json)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say in what two runs differ: config, base, data, first different step. Ends with code 1 if they do."""
    from featherlight.recipes.integrity_command import show_difference

    show_difference(first, second, as_json=as_json)


@app.command()
def share(
    run: Annotated[Path, typer.Argument(help="A run directory with a journal.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The file; the run's name with `.share` if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write one small file that rebuilds a fine-tune from its base model elsewhere."""
    from featherlight.recipes.integrity_command import share_run

    share_run(run, out, as_json=as_json)

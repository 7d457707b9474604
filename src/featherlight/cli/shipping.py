"""Verbs that ship a model: compress it into one file, and look into such files."""

from pathlib import Path
from typing import Annotated

import typer

from featherlight.cli.app import Json, app, console

_File = Annotated[Path, typer.Argument(help="A .feather file.", show_default=False)]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")]


@app.command()
def compress(
    model: Annotated[
        Path, typer.Argument(help="A run, a model directory, or a .safetensors file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The .feather file.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Images by name, file or folder, or labelled rows, to measure by.")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Points of the score that may be lost; 0.1 if left out. Needs --data.", min=0.0)
    ] = None,
    target: Annotated[str | None, typer.Option(help="Bytes that the file may have, such as 50KB.")] = None,
    coding: Annotated[str, typer.Option(help="mixed (smallest), ans (fastest) or huffman (as in 2015).")] = "mixed",
    dry_run: _DryRun = False,
    as_json: Json = False,
) -> None:
    """Turn a trained model into one small, verified file; without loss unless data or a target allow some."""
    from featherlight.planner.sizes import parse_size
    from featherlight.recipes.compress_command import Asked
    from featherlight.recipes.compress_command import compress as carry_out

    if max_loss is not None and (data is None or target is not None):
        raise ValueError("`--max-loss` is measured on data and sets the size, so it needs `--data` and no `--target`.")
    asked = Asked(
        model=model,
        out=out,
        data=data,
        max_loss=0.1 if max_loss is None else max_loss,
        target=None if target is None else parse_size(target),
        coding=coding,
    )
    carry_out(asked, dry_run=dry_run, as_json=as_json, console=console)


@app.command()
def expand(
    file: _File,
    out: Annotated[Path, typer.Option(help="Directory for model.safetensors.", show_default=False)],
    like: Annotated[
        Path | None, typer.Option(help="A run or model directory whose other files are put beside it.")
    ] = None,
    dry_run: _DryRun = False,
    as_json: Json = False,
) -> None:
    """Turn a .feather file into safetensors, to the same bits on any machine."""
    from featherlight.recipes.compress_command import expand_file

    expand_file(file, out, like=like, dry_run=dry_run, as_json=as_json, console=console)


@app.command()
def inspect(
    file: _File,
    picture: Annotated[Path | None, typer.Option(help="An .svg of where the bytes are.")] = None,
    as_json: Json = False,
) -> None:
    """Show where the bytes of a .feather file are: weights kept, bits a weight, bytes of each tensor."""
    from featherlight.recipes.compress_command import inspect as carry_out

    carry_out(file, picture=picture, as_json=as_json)

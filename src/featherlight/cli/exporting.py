"""The verb that writes a trained network for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from featherlight.cli.app import Json, Run, app


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The ONNX file.", show_default=False)],
    int8: Annotated[
        bool, typer.Option("--int8", help="Whole numbers of 8 bits; of int8/... or by --calibrate.")
    ] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Floats.")] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Images by name, file or folder, that give a run of floats its ranges for --int8."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Load it in ONNX Runtime and compare the outputs.")] = False,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators; 18 if left out.")] = None,
    examples: Annotated[int, typer.Option(help="How many images `--check` compares.", min=1)] = 1000,
    side: Annotated[
        int | None, typer.Option(help="Rows and columns of the images, where neither the network nor the run says it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an image classifier as ONNX, in floats or in whole numbers of 8 bits with a certificate."""
    from featherlight.recipes.export_command import Request, export_run

    export_run(
        Request(run=run, out=out, int8=int8, fp32=fp32, calibrate=calibrate, opset=opset, side=side),
        examples=examples if check else None,
        as_json=as_json,
    )

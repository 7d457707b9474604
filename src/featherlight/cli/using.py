"""Verbs that use what was trained."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from featherlight.cli.app import Device, Json, Label, Run, Text, Truncate, app


@app.command()
def predict(
    run: Run,
    input: Annotated[Path, typer.Option("--input", help="jsonl, csv, tsv or parquet.", show_default=False)],
    text: Text = None,
    allow_truncation: Truncate = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Label new rows, as a stream: one line a row, in order."""
    from featherlight.recipes.finetune import use

    trained = use.load_trained(run, device=device)
    for chunk in use.predict(trained, input, text=tuple(text or ()), allow_truncation=allow_truncation):
        for one in chunk:
            if as_json:
                typer.echo(json.dumps({"label": one.label, "probabilities": one.probabilities}))
            elif one.probabilities is None:
                typer.echo(f"{one.label:.6g}")
            else:
                typer.echo(f"{one.label}\t{one.probabilities[str(one.label)]:.4f}")


@app.command()
def evaluate(
    run: Run,
    data: Annotated[str, typer.Option(help="A labelled file; a text for a language model.", show_default=False)],
    text: Text = None,
    label: Label = None,
    task: Annotated[
        str | None, typer.Option(help="classification, regression or lm; the run's own if left out.")
    ] = None,
    allow_truncation: Truncate = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score a run on labelled rows, or a language model on a text."""
    from featherlight.recipes.finetune import use

    trained = use.load_trained(run, task=task, device=device)
    scores = use.evaluate(trained, data, text=tuple(text or ()), label=label, allow_truncation=allow_truncation)
    if as_json:
        typer.echo(json.dumps(scores))
        return
    table = Table("measure", "value")
    for name, value in scores.items():
        if name != "confusion":
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    Console().print(table)


@app.command()
def generate(
    run: Run,
    prompt: Annotated[str, typer.Option(help="What to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Device = None,
) -> None:
    """Continue a prompt with a language model."""
    from featherlight.recipes.finetune import use

    trained = use.load_trained(run, device=device)
    typer.echo(use.generate(trained, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or directories of several runs.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Draw one page of one or more runs, side by side."""
    from featherlight.report import headline, read_runs, write_report

    records = [record for path in runs for record in read_runs(path)]
    path = write_report(records, out)
    for record in records:
        typer.echo(headline(record))
    typer.echo(f"report: {path}")


@app.command("convert-llama2c")
def convert_llama2c(
    model: Annotated[Path, typer.Argument(help="The .bin of the weights.", show_default=False)],
    tokenizer: Annotated[Path, typer.Argument(help="The .bin of the tokenizer.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory for the Hugging Face model.", show_default=False)],
) -> None:
    """Turn a llama2.c model into a Hugging Face directory."""
    from featherlight.integrations.llama2c import convert_llama2c

    typer.echo(f"wrote {convert_llama2c(model, tokenizer, out)}")

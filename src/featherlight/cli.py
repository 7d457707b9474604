"""The command line: the verbs, and no logic. Torch is imported inside them, so that `--help` is quick."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from featherlight import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, fine-tune and ship neural networks within a budget of memory, time and bytes.",
)
_console = Console(stderr=True)

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


@app.command()
def finetune(
    model: Annotated[str | None, typer.Option(help="Directory, hub id, or `minilm`.")] = None,
    train: Annotated[str | None, typer.Option(help="jsonl, csv, tsv or parquet; or `stdlib-docs`.")] = None,
    valid: Annotated[str | None, typer.Option(help="Validation file; split off --train if left out.")] = None,
    text: Text = None,
    label: Label = None,
    task: Annotated[str | None, typer.Option(help="auto, classification, regression or lm.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, f1, mcc or pearson.")] = None,
    objective: Annotated[str | None, typer.Option(help="loss, or metric: accuracy itself, forward only.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="zo (forward only) or its kin svrg, fzoo, lozo, conmezo, agzo, mezo; or adamw, prodigy, muon, schedule_free."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget in minutes of training; 5 if no budget is given.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; each method has its own default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    trainable: Annotated[str | None, typer.Option(help="default, all, last:N, or a regular expression.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of LoRA adapters (needs peft).")] = None,
    base: Annotated[
        str | None, typer.Option(help="float, or int8 or int4 to hold linear weights in 8 or 4 bits (zo or --lora).")
    ] = None,
    head_start: Annotated[
        bool | None, typer.Option("--head-start/--no-head-start", help="Fit the head in closed form first.")
    ] = None,
    allow_truncation: Truncate = False,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these; flags win over it.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Any config key, such as optimizer.sigma=1e-3.")
    ] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<name> if left out.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory.")] = None,
    tracker: Tracker = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained text model; by forward passes alone, if you like."""
    flags: dict[str, Any] = {
        "model": model, "train": train, "valid": valid, "text": text, "label": label, "task": task, "metric": metric,
        "objective": objective, "method": method, "steps": steps, "minutes": minutes, "batch": batch, "seed": seed,
        "trainable": trainable, "lora": lora, "base": base, "head_start": head_start, "device": device,
        "allow_truncation": allow_truncation or None,
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    from featherlight.recipes import command
    from featherlight.recipes.finetune.command import plan_finetune

    with command.processes(None) as world:
        settings = _settings(as_json=as_json, tracker=tracker)
        if resume is not None:
            _refuse_settings(given, config, change, lr is not None, out, dry_run)
            command.go_on(resume, world=world, **settings)
            return
        plan = plan_finetune(given, lr=lr, config_file=config, changes=change or [], out=out)
        command.carry_out(plan, dry_run=dry_run, command=_typed(), world=world, **settings)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes: what each is, what it costs, and the data it needs."""
    from featherlight.recipes.listing import show_recipes

    show_recipes(as_json=as_json)


@app.command()
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A name from `recipes`, module:function, or a TOML file.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="A config key, such as optimizer.lr=1e-3; 1e-4,1e-3 runs both.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Run so many seeds, from the config's own on.", min=1)] = 1,
    device: Device = None,
    parallel: Annotated[
        str | None, typer.Option(help="Under torchrun: ddp, a whole model in each process, or fsdp, a part.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<name> if left out.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory.")] = None,
    tracker: Tracker = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe; the same command again goes on where it was stopped."""
    from featherlight.recipes import command
    from featherlight.recipes.catalogue import find
    from featherlight.recipes.runner import plan_runs

    with command.processes(parallel) as world:
        settings = _settings(as_json=as_json, tracker=tracker)
        if (recipe is None) == (resume is None):
            raise ValueError(
                "name a recipe (`featherlight recipes` lists them), or go on with a run by `--resume RUN`; one of both."
            )
        if resume is not None:
            _refuse_settings(change, seeds > 1, device, out, dry_run)
            command.go_on(resume, world=world, **settings)
            return
        assert recipe is not None
        one, base = find(recipe)
        changes = [*(change or []), *([f"device={device}"] if device else [])]
        plan = plan_runs(one, base=base, changes=changes, seeds=seeds, out=out)
        command.carry_out(plan, dry_run=dry_run, command=_typed(), world=world, **settings)


@app.command()
def search(
    recipe: Annotated[
        str, typer.Argument(help="A name from `recipes`, module:function, or a TOML file.", show_default=False)
    ],
    space: Annotated[
        list[str] | None,
        typer.Option(help="optimizer.lr=log:1e-5:1e-2, dropout=0.0:0.5, batch=int:16:128 or channels=[16],[32,64]."),
    ] = None,
    trials: Annotated[int, typer.Option(help="How many runs, those of earlier commands included.", min=1)] = 20,
    change: Annotated[list[str] | None, typer.Option("--set", help="A config key of all trials.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no trial after so many.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is proposed; that of the runs is --set seed=N.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory of the search; runs/<name> if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Search for a recipe's best settings with Optuna; the same command again goes on where it was stopped."""
    from featherlight.recipes import search_command
    from featherlight.recipes.catalogue import find
    from featherlight.recipes.search import plan_search

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a search runs in one process; start it without torchrun.")
    one, base = find(recipe)
    plan = plan_search(
        one, base, changes=change or [], space=space or [], trials=trials, minutes=minutes, seed=seed, out=out
    )
    if dry_run:
        search_command.show_search(plan, as_json=as_json, console=_console)
    else:
        search_command.execute_search(plan, command=_typed(), as_json=as_json, console=_console)


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

    done = use.replay(base, journal, out, steps=steps, track=tracker(_console))
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
        _console.print(f"note: {done['damage']}", highlight=False, markup=False, soft_wrap=True)


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


def _refuse_settings(*given: object) -> None:
    if any(given):
        raise ValueError(
            "`--resume` goes on with a run as its config.toml says, so it takes no other settings. Drop them."
        )


def _typed() -> str:
    return "featherlight " + shlex.join(sys.argv[1:])


def _settings(*, as_json: bool, tracker: list[str] | None) -> dict[str, Any]:
    """What all verbs that train are told."""
    from featherlight.integrations.trackers import make_trackers

    return {
        "as_json": as_json,
        "console": _console,
        "listeners": make_trackers(
            tracker or [], lambda sentence: _console.print(sentence, highlight=False, markup=False)
        ),
    }


def main() -> None:
    """Runs the command line; whatever goes wrong ends in a sentence and an exit code, never in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except ValueError as error:
        _fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail(
            "the memory is used up. Lower `--batch` or `--set micro_batch=1`, or train fewer blocks (`--trainable last:2`).",
            1,
        )
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"the system refused: {error.strerror or error}{where}. What was complete is still on disk.", 1)


def _fail(sentence: str, code: int) -> None:
    from rich.markup import escape

    _console.print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Verbs that train."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from featherlight.cli.app import (
    Device,
    Json,
    Label,
    Text,
    Tracker,
    Truncate,
    app,
    console,
    refuse_settings,
    settings_of,
    typed,
)

Team = Annotated[
    str | None,
    typer.Option(help="Forward-only with others: PORT hosts a team, HOST:PORT joins it.", show_default=False),
]


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
            help="zo (forward only) or its kin svrg, fzoo, lozo, conmezo, agzo, mezo; adamw, prodigy, muon, schedule_free; auto."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the process may take, such as 2GiB; `--method auto` chooses by it.")
    ] = None,
    auto_retry: Annotated[
        bool, typer.Option("--auto-retry", help="Out of memory: go on with the first remedy.")
    ] = False,
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
    precision: Annotated[str | None, typer.Option(help="Of steps: fp32, bf16, or fp16 with loss scaling.")] = None,
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
    team: Team = None,
    tracker: Tracker = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained text model; by forward passes alone, if you like."""
    flags: dict[str, Any] = {
        "model": model, "train": train, "valid": valid, "text": text, "label": label, "task": task, "metric": metric,
        "objective": objective, "method": method, "memory": memory, "steps": steps, "minutes": minutes, "batch": batch,
        "seed": seed, "trainable": trainable, "lora": lora, "base": base, "precision": precision,
        "head_start": head_start, "device": device, "allow_truncation": allow_truncation or None,
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    from featherlight.recipes import command
    from featherlight.recipes.finetune.command import plan_finetune
    from featherlight.recipes.finetune.out_of_memory import explained_out_of_memory

    with command.processes(None, team) as world:
        settings = settings_of(as_json=as_json, tracker=tracker)
        if resume is not None:
            refuse_settings(given, config, change, lr is not None, out, dry_run)
            command.go_on(resume, world=world, **settings)
            return
        plan = plan_finetune(given, lr=lr, config_file=config, changes=change or [], out=out)
        with explained_out_of_memory(plan, console, auto_retry=auto_retry) as again:
            command.carry_out(plan, dry_run=dry_run, command=typed(), world=world, **settings)
        if again.plan is not None:
            with explained_out_of_memory(again.plan, console, auto_retry=False):
                command.carry_out(again.plan, dry_run=False, command=typed(), world=world, **settings)


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
    team: Team = None,
    tracker: Tracker = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe; the same command again goes on where it was stopped."""
    from featherlight.recipes import command
    from featherlight.recipes.catalogue import find
    from featherlight.recipes.runner import plan_runs

    with command.processes(parallel, team) as world:
        settings = settings_of(as_json=as_json, tracker=tracker)
        if (recipe is None) == (resume is None):
            raise ValueError(
                "name a recipe (`featherlight recipes` lists them), or go on with a run by `--resume RUN`; one of both."
            )
        if resume is not None:
            refuse_settings(change, seeds > 1, device, out, dry_run)
            command.go_on(resume, world=world, **settings)
            return
        assert recipe is not None
        one, base = find(recipe)
        changes = [*(change or []), *([f"device={device}"] if device else [])]
        plan = plan_runs(one, base=base, changes=changes, seeds=seeds, out=out)
        command.carry_out(plan, dry_run=dry_run, command=typed(), world=world, **settings)


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
        search_command.show_search(plan, as_json=as_json, console=console)
    else:
        search_command.execute_search(plan, command=typed(), as_json=as_json, console=console)

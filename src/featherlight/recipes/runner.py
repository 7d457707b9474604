"""From configs to finished runs: one, one for each seed, or a sweep."""

import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featherlight.recipes.catalogue import Recipe, from_file, make_config
from featherlight.recipes.config import RunConfig, changed, parse_set, to_toml
from featherlight.trainer import (
    Display,
    Finished,
    Identity,
    Judge,
    Listener,
    Run,
    RunDirectory,
    Workspace,
    World,
    has_manifest,
    write_manifest,
)

ALONE = World()
_MOST_RUNS = 1000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One config of several.

    Attributes:
        name: what sets it apart, such as "optimizer.lr=0.001,seed=1"; empty if it is the only one.
        config: with the changes made.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of one command.

    Attributes:
        recipe: of all of them.
        variants: their configs.
        path: directory of the run, or of all runs if there are several.
    """

    recipe: Recipe
    variants: Sequence[Variant]
    path: Path

    def path_of(self, variant: Variant) -> Path:
        """The run directory of one of the variants."""
        return self.path / _slug(variant.name) if variant.name else self.path


def plan_runs(
    recipe: Recipe, *, changes: Sequence[str], seeds: int, out: Path | None, base: RunConfig | None = None
) -> Plan:
    """All runs that changes and seeds ask for.

    Args:
        recipe: is asked for a config, unless `base` is given.
        changes: as for `--set`; several values of a key make a sweep over them.
        seeds: how many, from the config's own on.
        out: the directory; None makes a name of the recipe and a digest of what was changed.
        base: the config that is changed.

    Raises:
        ValueError: a wrong key or value, or too many runs.
    """
    start = base if base is not None else make_config(recipe)
    parsed = [parse_set(change) for change in changes]
    keys = [key for key, _ in parsed]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"--set: `{twice}` is given twice. Put all its values into one, such as {twice}=A,B.")
    count = seeds
    for _, values in parsed:
        count *= len(values)
    if seeds < 1 or count > _MOST_RUNS:
        raise ValueError(f"this asks for {count:,} runs; `--seeds` and `--set` can ask for 1 to {_MOST_RUNS:,}.")
    swept = [key for key, values in parsed if len(values) > 1]
    variants = []
    for choice in itertools.product(*(values for _, values in parsed)):
        given = dict(zip((key for key, _ in parsed), choice, strict=True))
        config = changed(start, given, source="--set")
        for seed in range(config.seed, config.seed + seeds):
            one = changed(config, {"seed": seed}, source="--seeds")
            apart = {key: given[key] for key in swept} | ({"seed": seed} if seeds > 1 else {})
            variants.append(Variant(name=",".join(f"{key}={value}" for key, value in apart.items()), config=one))
    asked = [to_toml(one.config, recipe=recipe.name) for one in variants]
    if len(set(asked)) < len(asked):
        raise ValueError("two of these runs are the same. Leave the repeated values, or `--seeds`, out.")
    slugs = [_slug(one.name) for one in variants]
    variants = [
        replace(one, name=f"{one.name}-{_digest(text)}") if slugs.count(slug) > 1 else one
        for one, slug, text in zip(variants, slugs, asked, strict=True)
    ]
    plain = [to_toml(make_config(recipe), recipe=recipe.name)]
    path = out if out is not None else Path("runs") / default_name(recipe.name, asked, plain)
    return Plan(recipe=recipe, variants=variants, path=path)


def run_all(
    plan: Plan,
    *,
    command: str,
    display: Display,
    listeners: Callable[[Path], Sequence[Listener]] = lambda path: (),
    world: World = ALONE,
) -> Iterator[tuple[Path, Finished | None]]:
    """Runs what is not finished yet, one after the other.

    Args:
        plan: the runs.
        command: what the user typed.
        display: where people look.
        listeners: makes those of a run, from its directory.
        world: the processes that do each run together.

    Yields:
        The directory of each run and how it ended; None if it was finished before.
    """
    for number, variant in enumerate(plan.variants, 1):
        path = plan.path_of(variant)
        asked = to_toml(variant.config, recipe=plan.recipe.name)
        if variant.name:
            display.say(f"run {number} of {len(plan.variants)}: {variant.name}")
        if is_done(path, asked):
            _complete(path, world)
            display.say(f"{path} is finished already")
            yield path, None
            continue
        own = f"featherlight run {path / 'config.toml'}" if variant.name else command
        settings = {"command": own, "display": display, "listeners": listeners, "world": world}
        yield path, run_one(plan.recipe, variant.config, path, **settings)


def run_one(
    recipe: Recipe,
    config: RunConfig,
    path: Path,
    *,
    command: str,
    display: Display,
    listeners: Callable[[Path], Sequence[Listener]] = lambda path: (),
    judge: Judge | None = None,
    world: World = ALONE,
) -> Finished:
    """Begins a run in a directory, or takes up the one that is there; a judge may end it early.

    Raises:
        ValueError: bad data or choices, or another run is there.
    """
    asked = to_toml(config, recipe=recipe.name)
    with world.open(path, asked) as directory:
        settings = {"command": command, "display": display, "listeners": listeners, "judge": judge, "world": world}
        return _run(recipe, config, directory, asked, **settings)


def resume(
    path: Path,
    *,
    display: Display,
    listeners: Callable[[Path], Sequence[Listener]] = lambda path: (),
    world: World = ALONE,
) -> Finished:
    """Goes on with a run as its config.toml says.

    Raises:
        ValueError: there is no run, it is finished, or its config was damaged.
    """
    with world.open(path, None) as directory:
        recipe, config = from_file(directory.config)
        again = f"featherlight run {directory.config}"
        return _run(recipe, config, directory, "", command=again, display=display, listeners=listeners, world=world)


def is_done(path: Path, asked: str) -> bool:
    """Whether a run of this very config is there and finished."""
    directory = RunDirectory(path=path)
    return directory.is_finished and directory.asked.is_file() and directory.asked.read_text() == asked


def _complete(path: Path, world: World) -> None:
    """Makes up for what a kill just before the end of a finished run left undone."""
    from featherlight.report import read_run, write_report  # takes 0.3 s

    directory = RunDirectory(path=path)
    if world.is_first:
        shutil.rmtree(directory.saves, ignore_errors=True)
        if not has_manifest(path):
            write_manifest(path, directory.lasting_files)
        if not directory.report.is_file():
            write_report([read_run(path)], directory.report)


def default_name(recipe: str, asked: Sequence[str], plain: Sequence[str]) -> str:
    """The recipe's name, and six digits of a digest where something was changed."""
    digest = "" if list(asked) == list(plain) else "-" + _digest("\n".join(asked))
    return _slug(recipe.replace("/", "-").replace(":", "-")) + digest


def describe(config: RunConfig, recipe: Recipe, workspace: Workspace) -> Mapping[str, str]:
    """What a run would do, as names and values for people; loads data and model."""
    experiment = config.experiment(workspace)
    total = sum(p.numel() for p in experiment.model.parameters())
    trained = sum(p.numel() for p in experiment.model.parameters() if p.requires_grad)
    return {
        "recipe": recipe.name,
        **experiment.facts,
        **({"method": experiment.method} if experiment.method else {}),
        "trained parameters": f"{trained:,} of {total:,}",
        **{f"budget of {stage.name}": stage.budget.text() for stage in experiment.stages},
        "device": str(experiment.device),
    }


def _run(
    recipe: Recipe,
    config: RunConfig,
    directory: RunDirectory,
    asked: str,
    *,
    command: str,
    display: Display,
    listeners: Callable[[Path], Sequence[Listener]],
    judge: Judge | None = None,
    world: World = ALONE,
) -> Finished:
    if directory.resumed:
        _, config = from_file(directory.config)
    experiment = config.experiment(Workspace(scratch=world.scratch(directory), display=display))
    world.check(experiment)
    resolved = experiment.config if experiment.config is not None else config
    if world.is_first:
        directory.keep(to_toml(resolved, recipe=recipe.name), asked)
    run = Run(
        experiment=experiment,
        directory=directory,
        identity=Identity(recipe=recipe.name, seed=config.seed, command=command),
        display=display,
        listeners=listeners(directory.path) if world.is_first else (),
        judge=judge,
        world=world,
    )
    return run.run()


def _digest(text: str) -> str:
    """Six digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text).strip("-")

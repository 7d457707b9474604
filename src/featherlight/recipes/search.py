"""A search over the keys of a config with Optuna: one run a trial, all in one directory, and it goes on where it stopped.

The directory holds `search.toml` (what was asked for), `study.journal` (Optuna's own storage), run directories
`trial-0000/` and so on, and at the end `best.toml` and `report.html`. What is proposed depends on the seed and on the
trials before alone, so a search that was stopped comes to the same trials as one that was not.
"""

import functools
import json
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from featherlight.files import write_atomically
from featherlight.recipes.catalogue import Recipe
from featherlight.recipes.config import RunConfig, changed, parse_set, to_mapping, to_toml
from featherlight.recipes.runner import default_name, run_one
from featherlight.recipes.search_space import Parameter, parse_space
from featherlight.recipes.study import Outcome, Proposal, Study, Trial, load_optuna
from featherlight.report import read_run, write_report
from featherlight.trainer import Display, RunDirectory, Workspace, take_lock

_MOST_FAILURES = 3
_ENDED = ("finished", "pruned", "not finite")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search is asked to do.

    Attributes:
        recipe: of all runs.
        base: the config whose keys are searched over.
        space: the keys, and what they may be.
        path: directory of the study.
        asked: recipe, config, space and seed as TOML, by which a command that is given again is known.
        trials: how many, those of earlier commands included.
        minutes: no trial is begun after so many; None is no limit.
        seed: of the proposals.
    """

    recipe: Recipe
    base: RunConfig
    space: Sequence[Parameter]
    path: Path
    asked: str
    trials: int
    minutes: float | None = None
    seed: int = 0

    @property
    def best_config(self) -> Path:
        """The config of the best trial."""
        return self.path / "best.toml"

    @property
    def report(self) -> Path:
        """The page of all trials."""
        return self.path / "report.html"

    @property
    def best_command(self) -> str:
        """What to type to run the best config again."""
        return shlex.join(["featherlight", "run", str(self.best_config)])

    def path_of(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.path / f"trial-{number:04d}"


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a search came to.

    Attributes:
        trials: all that were begun, in order.
        ranked: those with a metric, best first.
        metric: its name.
        lower_is_better: whether small values of it are good.
        stopped: "finished", "interrupted" or "out of time".
    """

    trials: Sequence[Trial]
    ranked: Sequence[Trial]
    metric: str
    lower_is_better: bool
    stopped: str


def plan_search(
    recipe: Recipe,
    base: RunConfig,
    *,
    changes: Sequence[str],
    space: Sequence[str],
    trials: int,
    minutes: float | None,
    seed: int,
    out: Path | None,
) -> Search:
    """Checks what was asked for; runs and writes nothing.

    Args:
        recipe: of the runs.
        base: its config.
        changes: as for `--set`, with one value each.
        space: as for `--space`.
        trials: how many.
        minutes: no trial is begun after so many.
        seed: of the proposals.
        out: the directory; None makes a name of the recipe and a digest of the rest.

    Raises:
        ValueError: Optuna is not installed; a wrong key, value or range.
    """
    load_optuna()
    if trials < 1 or (minutes is not None and not minutes > 0):
        raise ValueError(f"`--trials` and `--minutes` must be positive; got {trials} and {minutes}.")
    given = {}
    for change in changes:
        key, values = parse_set(change)
        if len(values) > 1:
            raise ValueError(f"--set: `{key}` takes one value in a search. Name several with --space {change}.")
        given[key] = values[0]
    config = changed(base, given, source="--set")
    parsed = parse_space(space, config)
    asked = to_toml(config, recipe=recipe.name) + tomli_w.dumps({"search": {"seed": seed, "space": list(space)}})
    path = out if out is not None else Path("runs") / f"search-{default_name(recipe.name, [asked], [])}"
    return Search(
        recipe=recipe, base=config, space=parsed, path=path, asked=asked, trials=trials, minutes=minutes, seed=seed
    )


def run_search(search: Search, *, command: str, display: Display) -> Results:
    """Runs the trials that are left, one after the other; Ctrl-C lets the step finish.

    Args:
        search: from `plan_search`.
        command: what the user typed.
        display: where people look.

    Raises:
        ValueError: another search or something else is in the directory, or none of the first trials worked.
    """
    with _open(search) as study:
        began, failed, stopped = time.monotonic(), 0, "finished"
        while study.num_left(search.trials, failed_now=failed) > 0:
            if search.minutes is not None and time.monotonic() - began >= 60 * search.minutes:
                stopped = "out of time"
                break
            proposal = study.propose()
            outcome = _run_trial(search, study, proposal, command=command, display=display)
            if outcome.stopped == "interrupted":
                stopped = "interrupted"
                break
            failed += outcome.stopped == "failed"
            if failed >= _MOST_FAILURES and not any(one.stopped in _ENDED for one in study.trials()):
                break
        return _leave(search, study, stopped)


def _run_trial(search: Search, study: Study, proposal: Proposal, *, command: str, display: Display) -> Outcome:
    """Runs a trial, or takes what it came to before, and tells the study."""
    settings = ", ".join(f"{key}={_short(value)}" for key, value in proposal.values.items())
    display.say(f"trial {proposal.number} (of {search.trials}): {settings}")
    twin = study.twin(proposal)
    if twin is not None:
        outcome = Outcome(stopped=twin.stopped, metric=twin.metric, same_as=twin.number)
        display.say(f"  the same as trial {twin.number}, so it is not run again")
    elif proposal.killed_too_often:
        outcome = Outcome(stopped="failed", note=f"it was killed {proposal.starts} times, perhaps for want of memory")
    else:
        study.begin(proposal)
        try:
            outcome = _attempt(search, study, proposal, command=command, display=display)
        except BaseException:
            with suppress(OSError):
                study.pause(proposal)
            raise
    if outcome.stopped == "interrupted":
        study.pause(proposal)
        return outcome
    study.end(proposal, outcome)
    told = outcome.note or f"{outcome.stopped}{'' if outcome.metric is None else f', {outcome.metric:.4g}'}"
    display.say(f"  {told}")
    return outcome


def _attempt(search: Search, study: Study, proposal: Proposal, *, command: str, display: Display) -> Outcome:
    """What a run with the proposed values comes to; what the config or the data refuse is an outcome as well."""
    try:
        config = changed(search.base, proposal.values, source=f"trial {proposal.number}")
        path, asked = search.path_of(proposal.number), to_toml(config, recipe=search.recipe.name)
        found = _outcome(path, asked)
        if found is None:
            run_one(search.recipe, config, path, command=command, display=display, judge=study.judge(proposal))
            found = _outcome(path, asked)
        return found if found is not None else Outcome(stopped="interrupted")
    except ValueError as error:
        return Outcome(stopped="failed", note=str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return Outcome(stopped="failed", note="the memory was used up")


def _outcome(path: Path, asked: str) -> Outcome | None:
    """How the run of a trial ended; None if it did not."""
    directory = RunDirectory(path=path)
    with suppress(OSError, json.JSONDecodeError):
        summary = json.loads(directory.summary.read_text())
        if directory.asked.read_text() == asked and summary["stopped"] in _ENDED:
            note = summary["notes"][-1] if summary["stopped"] == "not finite" and summary["notes"] else ""
            return Outcome(stopped=summary["stopped"], metric=summary["metric"]["last"], note=note)
    return None


@contextmanager
def _open(search: Search) -> Iterator[Study]:
    """Makes the study's directory, or opens the one that is there; one process at a time."""
    _check_directory(search)
    lower_is_better = functools.cache(lambda: _lower_is_better(search))
    journal, path = search.path / "study.journal", search.path
    if not journal.is_file():
        lower_is_better()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a+")
    except OSError as error:
        raise ValueError(
            f"the directory {path} cannot be written to ({error.strerror}). Choose another one with `--out`."
        ) from None
    with lock:
        take_lock(lock, path)
        _check_directory(search)
        if not _asked_file(path).is_file():
            write_atomically(_asked_file(path), lambda file: file.write(search.asked.encode()))
        yield Study(
            journal,
            search.space,
            seed=search.seed,
            lower_is_better=lower_is_better,
            start={one.key: _value(to_mapping(search.base), one.key) for one in search.space},
        )


def _check_directory(search: Search) -> None:
    """Raises ValueError if something else than this search is in its directory."""
    path, asked = search.path, _asked_file(search.path)
    if asked.is_file() and asked.read_text() == search.asked:
        return
    if path.is_file() or (path.is_dir() and any(one.name != ".lock" for one in path.iterdir())):
        raise ValueError(
            f"{path} exists already with something else in it, and a search never writes over that. Give another `--out`, or "
            "go on with the search that is there by its own command: recipe, `--set`, `--space` and `--seed` must be the same."
        )


def _leave(search: Search, study: Study, stopped: str) -> Results:
    """Writes the best config and the report."""
    trials, lower = study.trials(), study.lower_is_better
    ranked = sorted(
        (one for one in trials if one.metric is not None and one.same_as is None),
        key=lambda one: (one.metric if lower else -one.metric) if one.metric is not None else 0.0,
    )
    if stopped == "finished" and not any(one.stopped in _ENDED for one in trials):
        raise ValueError(f"no trial worked. The last one: {trials[-1].note}")
    metric = "metric"
    if ranked:
        directory = RunDirectory(path=search.path_of(ranked[0].number))
        config = directory.config.read_bytes()
        write_atomically(search.best_config, lambda file: file.write(config))
        metric = json.loads(directory.summary.read_text())["metric"]["name"]
    paths = [search.path_of(one.number) for one in trials]
    runs = [read_run(path) for path in paths if RunDirectory(path=path).config.is_file()]
    if runs:
        write_report(runs, search.report)
    return Results(trials=trials, ranked=ranked, metric=metric, lower_is_better=lower, stopped=stopped)


def _lower_is_better(search: Search) -> bool:
    """What the recipe says; loads data and model, so that what is wrong with them is said before anything is written."""
    with tempfile.TemporaryDirectory() as scratch:
        return search.base.experiment(Workspace(scratch=Path(scratch), display=Display())).lower_is_better


def _asked_file(path: Path) -> Path:
    return path / "search.toml"


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None below a group that is off."""
    found: Any = values
    for name in key.split("."):
        found = None if found is None else found[name]
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What the report shows of a learned rule: races on tasks it has not seen, of its class and of others, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.optim.learned import Tasks, evaluations_to, relative_gaps
from featherlight.recipes.learned.guarded import run_guarded
from featherlight.recipes.learned.race import Runner, rivals, run_rule, tuned
from featherlight.report import LineChart, Section, Table

if TYPE_CHECKING:
    from featherlight.recipes.learned.experiment import LearningRun

_GUARDED, _BARE = "learned, safeguarded", "learned, no safeguard"
_LEAST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An optimizer in a race.

    Attributes:
        run: runs it.
        setting: that it was tuned to; None where there was none.
        cost: gradient evaluations that tuning or learning took.
    """

    run: Runner
    setting: float | None
    cost: int


def sections(learning: LearningRun) -> Sequence[Section]:
    """All of a run, with the rule as it is at its end."""
    with torch.no_grad():
        entrants = _entrants(learning)
        gaps = {name: _gaps(one, learning.held_out, learning) for name, one in entrants.items()}
        outside = {
            kind: {name: _gaps(one, tasks, learning) for name, one in entrants.items()}
            for kind, tasks in learning.outside().items()
            if _fits(learning, tasks)
        }
        return [
            _held_out(learning, entrants, gaps),
            _outside(learning, outside),
            _paid(learning, entrants, gaps),
        ]


def _entrants(learning: LearningRun) -> Mapping[str, Entrant]:
    config, target, tuning = learning.config, learning.problems.target, learning.tuning()
    learned = learning.meter.backward_passes
    found = {
        _GUARDED: Entrant(run=lambda t, k: run_guarded(learning.rule, t, k).losses, setting=None, cost=learned),
        _BARE: Entrant(run=lambda t, k: run_rule(learning.rule, t, k), setting=None, cost=learned),
    }
    for rival, quick in zip(rivals(), rivals(solved=target), strict=True):
        setting, medians = tuned(quick, tuning, evaluations=config.evaluations, target=target)
        cost = len(medians) * config.evaluations * len(tuning)
        found[f"{rival.name}, tuned"] = Entrant(run=rival.run(setting), setting=setting, cost=cost)
    return found


def _gaps(entrant: Entrant, tasks: Tasks, learning: LearningRun) -> Float[Tensor, "K+1 T"]:
    losses = entrant.run(tasks, learning.config.evaluations)
    return relative_gaps(losses, tasks.best).nan_to_num(nan=math.inf)


def _fits(learning: LearningRun, tasks: Tasks) -> bool:
    """Whether the rule is made for tensors of these shapes."""
    try:
        learning.rule.init(tuple(p[0] for p in tasks.starts))
    except ValueError:
        return False
    return True


def _held_out(learning: LearningRun, entrants: Mapping[str, Entrant], gaps: Mapping[str, Tensor]) -> Section:
    target = learning.problems.target
    rows = tuple((name, entrants[name].setting, *_summary(one, target)) for name, one in gaps.items())
    columns = ("optimizer", "learning rate", "median", "nine in ten", "solved, %", "median gap at the end")
    lines = {name: (range(len(one)), one.median(1).values.clamp(min=_LEAST).tolist()) for name, one in gaps.items()}
    return Section(
        title="Held-out tasks",
        text=f"Gradient evaluations to a gap of {target:g} relative to the start, on {len(learning.held_out):,} tasks that were "
        "not learned on. A median that is not finite was not reached. Trials of the safeguard and of line searches: those of "
        "L-BFGS count, as they evaluate gradients; those of the safeguard evaluate losses alone and do not.",
        blocks=(
            Table(columns=columns, rows=rows),
            LineChart(
                x_label="gradient evaluations",
                y_label="median gap relative to the start",
                lines=lines,
                log_y=True,
                caption="The loss over its lowest value, where that is known, on held-out tasks.",
            ),
        ),
    )


def _outside(learning: LearningRun, gaps: Mapping[str, Mapping[str, Tensor]]) -> Section:
    rows = tuple(
        (kind, name, *_summary(one, learning.problems.target))
        for kind, some in gaps.items()
        for name, one in some.items()
    )
    return Section(
        title="Out of its class",
        text="The same rule, and the rivals with the settings of its class, on problems of other classes.",
        blocks=(
            Table(
                columns=("problems", "optimizer", "median", "nine in ten", "solved, %", "median gap at the end"),
                rows=rows or (("none of the same shapes", "", None, None, None, None),),
            ),
        ),
    )


def _paid(learning: LearningRun, entrants: Mapping[str, Entrant], gaps: Mapping[str, Tensor]) -> Section:
    target, limit = learning.problems.target, learning.config.evaluations
    mine = _median(gaps[_GUARDED], target)
    rows = []
    for name, one in gaps.items():
        if name in (_GUARDED, _BARE):
            continue
        theirs = _median(one, target)
        saved = min(theirs, limit) - mine
        tasks = math.ceil(entrants[_GUARDED].cost / saved) if saved > 0 else None
        rows.append((name, theirs, saved if math.isfinite(saved) else None, tasks, entrants[name].cost))
    return Section(
        title="When meta-training has paid for itself",
        text=f"Meta-training took {entrants[_GUARDED].cost:,} gradient evaluations of tasks, where one that is differentiated "
        f"counts twice; {int(learning.dropped)} tasks were not finite and were dropped. A rival that misses the target is "
        f"taken to do so after {limit} evaluations. What tuning the rival took is not set off.",
        blocks=(
            Table(
                columns=(
                    "beside",
                    "its median evaluations",
                    "saved a task",
                    "tasks until it has paid",
                    "evaluations its tuning took",
                ),
                rows=tuple(rows),
            ),
        ),
    )


def _summary(gaps: Tensor, target: float) -> tuple[float, float, float, float]:
    solved = evaluations_to(gaps, target)
    nine = float(solved.quantile(0.9, interpolation="higher"))
    return _median(gaps, target), nine, 100 * float(solved.isfinite().double().mean()), float(gaps[-1].median())


def _median(gaps: Tensor, target: float) -> float:
    return float(evaluations_to(gaps, target).quantile(0.5, interpolation="higher"))

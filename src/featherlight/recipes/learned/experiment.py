"""A rule that is learned, ready to run: tasks, rule, and what the report shows of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.learned import Tasks, evaluations_to, relative_gaps, save_rule
from featherlight.recipes.learned.config import LearnedConfig
from featherlight.recipes.learned.guarded import run_guarded
from featherlight.recipes.learned.problems import PROBLEMS
from featherlight.recipes.learned.rules import LEARNERS
from featherlight.recipes.learned.sections import sections
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace, weights_digest
from featherlight.trainer.loop import Budget

_HELD_OUT, _TUNING, _POOL, _OUTSIDE = (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3, 1 << 41


def build_experiment(config: LearnedConfig, workspace: Workspace) -> Experiment:
    """Draws the tasks and builds the rule.

    Raises:
        ValueError: the data of the class are absent.
    """
    workspace.display.say(f"drawing tasks of {config.problem}")
    learning = LearningRun(config)
    learner = learning.learner
    return Experiment(
        model=learning.rule,
        stages=[
            Stage(
                optimizer=lambda journal, meter: learner.optimizer(config, learning.rule),
                objective=learning.objective,
                budget=Budget(steps=learner.steps(config)),
                schedule=SCHEDULES["cosine" if learner.fresh else "constant"],
                measured=lambda step: False,
            )
        ],
        evaluate=learning.evaluate,
        title=f"{config.method} on {config.problem}",
        lower_is_better=True,
        method=config.method,
        facts=learning.facts(),
        write_model=learning.write_model,
        sections=lambda: sections(learning),
        origin={"data": learning.held_out_digest()},
    )


class LearningRun:
    """Problems, rule, and what the run procedure asks of them.

    Attributes:
        config: as given.
        problems: the class and others.
        learner: the method.
        rule: what is learned.
        held_out: tasks that are not learned on.
        meter: of the run, once a step is asked for.
        dropped: tasks that were not finite and were dropped so far, (); a buffer of the rule, so that a save keeps it.
    """

    def __init__(self, config: LearnedConfig) -> None:
        self.config = config
        self.problems = PROBLEMS[config.problem]()
        self.learner = LEARNERS[config.method]
        self.held_out = self.problems.held_out.sample(config.held_out, self.generator(_HELD_OUT))
        self.rule = self.learner.rule(config, [p[0] for p in self.held_out.starts])
        self.meter = Meter()
        self.dropped = torch.zeros((), dtype=torch.int64)
        self.rule.register_buffer("dropped_tasks", self.dropped, persistent=False)
        self._pool: Tasks | None = None

    def objective(self, step: int, meter: Meter) -> Objective:
        """That of a step, on tasks of its own."""
        self.meter = meter
        return self.learner.objective(self.config, self.rule, self._tasks(step), step, meter, self._count_dropped)

    def evaluate(self) -> Sequence[Evaluation]:
        """Median gradient evaluations to the target on held-out tasks; one more than were given where it is missed."""
        with torch.no_grad():
            losses = run_guarded(self.rule, self.held_out, self.config.evaluations).losses
        gaps = relative_gaps(losses, self.held_out.best)
        solved = evaluations_to(gaps, self.problems.target).clamp(max=self.config.evaluations + 1)
        values = {
            "evaluations": float(solved.quantile(0.5, interpolation="higher")),
            "solved": float((solved <= self.config.evaluations).double().mean()),
            "dropped tasks": float(self.dropped),
        }
        return [Evaluation(values=values, loss=float(gaps[-1].median()))]

    def facts(self) -> Mapping[str, str]:
        """What was learned on what."""
        config, unknowns = self.config, sum(p[0].numel() for p in self.held_out.starts)
        numbers = sum(p.numel() for p in self.rule.parameters())
        on = f"{config.meta_batch} new ones a step" if self.learner.fresh else f"{config.tasks:,}"
        return {
            "problems": self.problems.about,
            "unknowns of a task": f"{unknowns:,}",
            "tasks learned on": on,
            "held-out tasks": f"{config.held_out:,}",
            "steps learned for": f"{config.horizon:,}",
            "numbers learned": f"{numbers:,}",
            "target": f"{self.problems.target:g} of the gap at the start",
        }

    def write_model(self, path: Path) -> None:
        """Writes the rule as one safetensors file."""
        path.mkdir(parents=True)
        points = [p[0] for p in self.held_out.starts]
        save_rule(path / "rule.safetensors", self.rule, points, about=self.problems.about)

    def held_out_digest(self) -> str:
        """Of the held-out tasks, which differ wherever the data of the class do."""
        tasks = self.held_out
        starts = {f"starts[{number}]": start for number, start in enumerate(tasks.starts)}
        return weights_digest({**starts, **tasks.data, **{f"shared {name}": one for name, one in tasks.shared.items()}})

    def tuning(self) -> Tasks:
        """Tasks of the class that rivals are tuned on."""
        return self.problems.train.sample(self.config.held_out, self.generator(_TUNING))

    def outside(self) -> Mapping[str, Tasks]:
        """Tasks of other classes by name."""
        return {
            name: one.sample(self.config.held_out, self.generator(_OUTSIDE + number))
            for number, (name, one) in enumerate(self.problems.outside.items())
        }

    def generator(self, stream: int) -> torch.Generator:
        """One for each stream of the run's seed; streams of meta-training are its steps."""
        return torch.Generator().manual_seed(torch.iinfo(torch.int64).max & (self.config.seed * 1_000_003 + stream))

    def _tasks(self, step: int) -> Tasks:
        if self.learner.fresh:
            return self.problems.train.sample(self.config.meta_batch, self.generator(step))
        if self._pool is None:
            self._pool = self.problems.train.sample(self.config.tasks, self.generator(_POOL))
        return self._pool

    def _count_dropped(self, places: Sequence[int]) -> None:
        self.dropped += len(places)

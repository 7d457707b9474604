"""The config of a learned optimizer. It imports no torch, so that listing recipes is quick."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

Method = Literal["greedy", "curvature", "unrolled", "evolution"]
"""How a rule is learned."""

Problem = Literal[
    "least-squares", "impulse-responses", "arx", "records", "teacher-student", "logistic", "digits", "mnist"
]
"""Classes of problems."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """A rule that is learned on a class of problems, and raced against tuned optimizers on tasks it has not seen.

    Args:
        problem: the class.
        method: "greedy" solves for a metric of each of the first `horizon` steps and "curvature" for one metric that secants
            correct, both exactly and for quadratic losses alone; "unrolled" learns such a metric by backpropagation through
            the steps, and "evolution" from their outcomes.
        horizon: steps that a rule is learned for.
        memory: past steps that a rule goes by.
        tasks: to learn on, for "greedy" and "curvature"; the others draw new ones each step.
        meta_batch: tasks a step, for "unrolled" and "evolution".
        steps: of meta-training, for "unrolled" and "evolution".
        lr: of meta-training, for "unrolled" and "evolution".
        truncation: steps through which gradients are taken; None takes them through all. For "unrolled".
        recomputed: steps of which activations are kept at once; None keeps all. For "unrolled".
        held_out: tasks of each kind that the rule is judged on.
        evaluations: gradients that each task is given in a race.
        seed: of tasks, and of directions of "evolution".
    """

    problem: Problem = "least-squares"
    method: Method = "greedy"
    horizon: int = 1
    memory: int = 2
    tasks: int = 64
    meta_batch: int = 8
    steps: int = 60
    lr: float = 0.03
    truncation: int | None = None
    recomputed: int | None = None
    held_out: int = 32
    evaluations: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(
                f"`horizon` must be at least 1 step, or there is no step to learn from; got {self.horizon}."
            )
        for name in ("tasks", "meta_batch", "steps", "truncation", "recomputed", "held_out", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if self.memory < 0 or (self.memory == 0 and self.method != "greedy"):
            raise ValueError(f"`memory` must be at least {0 if self.method == 'greedy' else 1}; got {self.memory}.")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"`lr` must be a finite positive number; got {self.lr}.")
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"`seed` must be in [0, 2**62); got {self.seed}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Draws the tasks and builds the rule."""
        from featherlight.recipes.learned.experiment import build_experiment

        return build_experiment(self, workspace)

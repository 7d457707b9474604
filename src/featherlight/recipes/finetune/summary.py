"""What a run leaves for people: scores, memory, counters, and where they are written."""

import json
import math
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from featherlight.data import confusion
from featherlight.meter import Meter, allocation_peak, process_peak_bytes, saved_for_backward_bytes
from featherlight.objective import BatchObjective
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.finetune.problem import Problem
from featherlight.trainer import Clock
from featherlight.trainer.files import write_atomically

LOWER_IS_BETTER = frozenset({"perplexity"})
_PROBED_EXAMPLES = 2


@dataclass(kw_only=True)
class Scores:
    """Scores and losses of the validation rows over a run, in order."""

    metric: str
    head_start: float | None = None
    values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        finite = [value for value in self.values if math.isfinite(value)] or [math.nan]
        return min(finite) if self.metric in LOWER_IS_BETTER else max(finite)

    def add(self, kind: str, value: float, loss: float) -> None:
        """Takes down a score; `kind` is "head_start" or "eval"."""
        self.values.append(value)
        self.losses.append(loss)
        self.head_start = value if kind == "head_start" else self.head_start

    def text(self) -> str:
        """The latest score for people."""
        if not self.values:
            return ""
        last = self.values[-1]
        return f"{self.metric} {last:.1%}" if self.metric == "accuracy" else f"{self.metric} {last:.4g}"


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes of tensors: weights, and peaks with the weights counted in."""

    weights: int
    inference_peak: int
    adamw_estimate: int
    training_peak: int | None = None

    def with_training(self, above_weights: int) -> "MemoryUse":
        return replace(self, training_peak=self.weights + above_weights)


def measure_memory(problem: Problem, objective: BatchObjective) -> MemoryUse:
    """Measures a forward pass of a batch, and what AdamW would take from its weights and what a pass saves.

    The activations of a backward pass are measured on two examples and scaled to the batch; gradients and the two
    moments of AdamW take three times the trained weights.
    """
    model = problem.loaded.model
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with torch.no_grad(), allocation_peak(problem.device) as inference:
        objective.value()
    few = objective.narrow(_PROBED_EXAMPLES)
    saved = saved_for_backward_bytes(lambda: problem.loss(model, few.batch))
    scaled = saved * (objective.micro_batch or objective.num_examples) // few.num_examples
    return MemoryUse(
        weights=weights, inference_peak=weights + inference.bytes, adamw_estimate=weights + 3 * trained + scaled
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that a summary is made from.

    Attributes:
        config: of the run.
        problem: what was trained on what.
        scores: of the validation rows over the run.
        memory: as measured.
        meter: the counters.
        clock: steps and seconds.
        stopped: "finished", "interrupted" or "nan loss".
        command: what the user typed.
        resume_command: what goes on with the run.
        last: outputs and labels of the last evaluation.
        notes: sentences for the report.
    """

    config: FinetuneConfig
    problem: Problem
    scores: Scores
    memory: MemoryUse
    meter: Meter
    clock: Clock
    stopped: str
    command: str
    resume_command: str
    last: tuple[torch.Tensor, torch.Tensor]
    notes: list[str]


def write_summary(path: Path, outcome: Outcome) -> None:
    """Writes `summary.json`, which the report reads."""
    config, scores, memory = outcome.config, outcome.scores, outcome.memory
    journal = path.parent / "journal"
    counters = outcome.meter.as_dict() | {"steps": outcome.clock.step, "seconds": outcome.clock.seconds}
    summary: dict[str, Any] = {
        "method": config.method,
        "title": f"{config.method} on {Path(config.train).name}",
        "command": outcome.command,
        "resume_command": outcome.resume_command if outcome.stopped != "finished" else None,
        "model": config.model,
        "train": config.train,
        "metric": {
            "name": scores.metric,
            "start": scores.values[0],
            "head_start": scores.head_start,
            "best": scores.best,
            "last": scores.values[-1],
        },
        "loss": {"start": scores.losses[0], "last": scores.losses[-1]},
        "memory": {
            "weights": memory.weights,
            "inference_peak": memory.inference_peak,
            "training_peak": memory.training_peak or memory.inference_peak,
            "adamw_estimate": None if config.method == "adamw" else memory.adamw_estimate,
            "process_peak": process_peak_bytes(),
            "measured_by": "tensor allocations"
            + (" on CUDA" if outcome.problem.device.type == "cuda" else ", torch profiler"),
        },
        "counters": counters,
        "confusion": _confusion(outcome.problem, *outcome.last),
        "journal_bytes": journal.stat().st_size if journal.is_file() else None,
        "versions": {
            "featherlight": version("featherlight"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "stopped": outcome.stopped,
        "notes": outcome.notes,
    }
    text = json.dumps(_finite(summary), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    """`value` with null for what is not finite, since JSON has no word for it."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _confusion(problem: Problem, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any] | None:
    known = problem.labels
    if known is None or known.is_regression:
        return None
    counts = confusion(logits.argmax(-1), labels, known.num_outputs)
    return {"labels": list(known.names), "counts": counts.tolist()}

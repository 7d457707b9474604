"""A fine-tune, ready to run: head start, steps, scores, and what is left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.data import confusion
from featherlight.functional import QuantizedTensor
from featherlight.meter import Meter
from featherlight.nn.models import quiet_loading, save_pretrained
from featherlight.objective import (
    BatchObjective,
    ClipGradient,
    MinusScores,
    Objective,
    RewardObjective,
    StreamedObjective,
    finite,
)
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.arithmetic import arithmetic
from featherlight.recipes.config import to_toml
from featherlight.recipes.finetune.anchors import Anchors
from featherlight.recipes.finetune.config import RECIPE, FinetuneConfig
from featherlight.recipes.finetune.head_start import fit_head
from featherlight.recipes.finetune.problem import Problem, build_problem
from featherlight.recipes.finetune.tasks import predict_all
from featherlight.recipes.finetune.trainable import merge_adapters
from featherlight.recipes.methods import METHODS, Setup
from featherlight.recipes.plan.planned import Planned
from featherlight.report import ConfusionTable, Section
from featherlight.trainer import SCHEDULES, Display, Evaluation, Experiment, Replay, Stage, Workspace
from featherlight.trainer.loop import Budget
from featherlight.transforms import dequantize

_ANCHOR_RATIO = 10.0
_MOST_MEASURED_ROWS = 1024
_MOST_MEASURED_PASSES = 2
"""Passes of a step that the profiler notes in a planned run; its notes of more would take memory that the plan does not have."""

_FEWEST_PROBED = 3
"""Examples that the first step runs by themselves, in one pass."""

_SIGMAS = {"loss": 1e-3, "metric": 1e-2}


def build_experiment(config: FinetuneConfig, workspace: Workspace) -> Experiment:
    """Loads model and data.

    Raises:
        ValueError: bad data or choices.
    """
    planned: Planned | None = None
    if config.memory is not None:
        from featherlight.recipes.plan.fitting import fit_to_memory  # takes transformers and 0.3 s

        config, planned = fit_to_memory(config, workspace.display)
    workspace.display.say(f"loading {config.model} and {config.train}")
    problem = build_problem(config, scratch=workspace.scratch)
    resolved = _resolved(problem)
    finetune = _Finetune(resolved, problem, workspace.display, planned)
    method = METHODS[config.method]
    return Experiment(
        model=problem.loaded.model,
        stages=[
            Stage(
                optimizer=finetune.optimizer,
                objective=finetune.objective,
                budget=Budget(steps=config.steps, minutes=config.minutes),
                schedule=SCHEDULES[resolved.optimizer.schedule],
                training=method.dropout,
                digest_every=config.digest_every,
                measured=finetune.is_measured,
                begin=finetune.head_start,
            )
        ],
        evaluate=finetune.evaluate,
        title=f"{config.method} on {Path(config.train).name}",
        lower_is_better=problem.task.metric == "perplexity",
        evaluations=config.evaluations,
        method=config.method,
        facts=finetune.facts(),
        write_model=finetune.write_model,
        sections=finetune.sections,
        replay=Replay(header=finetune.journal_header(), fitted=finetune.fitted) if method.replayable else None,
        origin={"base": problem.base_digest, "data": problem.data_digest()},
        config=resolved,
        timeline=() if planned is None else planned.timeline,
    )


def _resolved(problem: Problem) -> FinetuneConfig:
    """The config with every choice made."""
    config, method = problem.config, METHODS[problem.config.method]
    given = config.optimizer
    lr = given.lr if given.lr is not None else method.default_lr
    sigma = given.sigma if given.sigma is not None else _SIGMAS[config.objective]
    anchor_lr = given.anchor_lr
    if method.anchored and anchor_lr is None:
        anchor_lr = _ANCHOR_RATIO * lr
    schedule = given.schedule if method.scheduled else "constant"
    return replace(config, optimizer=replace(given, lr=lr, sigma=sigma, anchor_lr=anchor_lr, schedule=schedule))


class _Finetune:
    """Model and data, and what the run procedure asks of them."""

    def __init__(self, config: FinetuneConfig, problem: Problem, display: Display, planned: Planned | None) -> None:
        self.config = config
        self.planned = planned
        self.problem = problem
        self.display = display
        self._last: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))
        self._arithmetic = arithmetic(config.precision, method=config.method)
        self.anchors = self._anchors() if METHODS[config.method].anchored else None

    @property
    def model(self) -> nn.Module:
        return self.problem.loaded.model

    def optimizer(self, journal: Journal | None, meter: Meter) -> Optimizer:
        lr = self.config.optimizer.lr
        assert lr is not None, "the config is resolved"
        setup = Setup(
            model=self.model,
            head=self.problem.loaded.head,
            lr=lr,
            settings=self.config.optimizer,
            batch=self.config.batch,
            seed=self.config.seed,
            journal=journal,
            meter=meter,
        )
        return self._arithmetic.scaled(METHODS[self.config.method].build(setup))

    def objective(self, step: int, meter: Meter) -> Objective:
        if self.anchors is not None and self.anchors.is_anchor(step):
            return self._streamed(step, self.anchors.rows(step), meter)
        rows = self._rows(step)
        batch = self.problem.batch(self.problem.train, rows)
        seed, micro_batch = self._dropout_seed(step), self.config.micro_batch
        if self.config.objective == "metric":
            score = self._arithmetic.lowered(self.problem.loss.scores)
            return RewardObjective(self.model, batch, score, micro_batch=micro_batch, dropout_seed=seed, meter=meter)
        loss = self._arithmetic.lowered(finite(self.problem.loss, step, rows))
        objective = BatchObjective(self.model, batch, loss, micro_batch=micro_batch, dropout_seed=seed, meter=meter)
        clip = self.config.optimizer.clip
        return objective if clip is None else ClipGradient(objective, self.model.parameters(), clip)

    def is_measured(self, step: int) -> bool:
        """Memory is measured on small batches, where there are such; of a planned run only where notes of it are few."""
        passes = -(-self.config.batch // (self.config.micro_batch or self.config.batch))
        if self.planned is not None and passes > _MOST_MEASURED_PASSES:
            return False
        if self.anchors is None or not self.anchors.is_anchor(step):
            return True
        return self.anchors.every == 1 and self.anchors.num_rows <= _MOST_MEASURED_ROWS

    def _anchors(self) -> Anchors:
        optimizer, sampler = self.config.optimizer, self.problem.sampler
        found = Anchors(
            every=optimizer.anchor_every,
            large=optimizer.anchor_batch,
            small=min(self.config.batch, sampler.num_rows),
            sampler=sampler,
        )
        if found.large is not None and found.large > found.num_rows:
            self.display.say(
                f"note: an anchor is to take {found.large:,} rows, but there are {found.num_rows:,}; it takes them all"
            )
        return found

    def _rows(self, step: int) -> Sequence[int]:
        if self.anchors is not None:
            return self.anchors.rows(step)
        return self.problem.sampler.indices(step * self.config.batch, min(self.config.batch, len(self.problem.train)))

    def _dropout_seed(self, step: int) -> int:
        return (self.config.seed + step) % (1 << 63)

    def _streamed(self, step: int, rows: Sequence[int], meter: Meter) -> StreamedObjective:
        """Rows of similar lengths together, no more tokens at once than in a small batch."""
        scores = self.config.objective == "metric"
        loss = MinusScores(self.problem.loss.scores) if scores else finite(self.problem.loss, step, rows)
        loss = self._arithmetic.lowered(loss)
        chunks = self.problem.batches(self.problem.train, indices=torch.as_tensor(rows), fewest=_FEWEST_PROBED)
        seed = self._dropout_seed(step)
        return StreamedObjective(self.model, chunks, loss, num_examples=len(rows), dropout_seed=seed, meter=meter)

    def head_start(self) -> str | None:
        """Fits a fresh head in closed form."""
        if not self.config.head_start:
            return None
        fitted = fit_head(self.problem, self.display.track)
        if not fitted.converged:
            self.display.say("note: the closed-form head did not reach its tolerance; it is the best found")
        return "head start"

    def evaluate(self) -> Sequence[Evaluation]:
        task = self.problem.task
        logits, labels, losses = predict_all(self.model, self.problem.loss, self.problem.batches(self.problem.valid))
        self._last = logits, labels
        values = {task.metric: task.score(logits, labels, losses)}
        return self._arithmetic.noted([Evaluation(values=values, loss=float(losses.mean()))])

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        config, problem = self.config, self.problem
        longest = int(problem.train.lengths.max())
        cut = problem.train.num_truncated_rows
        return {
            "model": config.model,
            "data": config.train,
            "task": f"{config.task}, scored by {problem.task.metric}",
            **({"objective": f"{problem.task.metric} itself"} if config.objective == "metric" else {}),
            "training examples": f"{len(problem.train):,} ({problem.train.num_tokens:,} tokens, longest {longest})",
            "validation examples": f"{len(problem.valid):,}",
            **({"rows cut to the longest input": f"{cut:,}"} if cut else {}),
            **({} if config.base == "float" else {"base": self._base()}),
            "trained parameters": self._trained(),
            "learning rate": f"{config.optimizer.lr:g}",
            **({} if self.planned is None else {"memory": self.planned.text}),
            **({} if self.anchors is None else self._anchor_facts(self.anchors)),
            **self._arithmetic.facts(),
        }

    def sections(self) -> Sequence[Section]:
        known = self.problem.labels
        if known is None or known.is_regression:
            return self._arithmetic.sections()
        logits, labels = self._last
        counts = confusion(logits.argmax(-1), labels, known.num_outputs)
        table = ConfusionTable(
            labels=tuple(map(str, known.names)),
            counts=tuple(map(tuple, counts.tolist())),
            caption="Validation rows, at the end of the run.",
        )
        return [Section(title="Confusion", blocks=(table,)), *self._arithmetic.sections()]

    def write_model(self, path: Path) -> None:
        dequantize(self.model)
        if self.config.lora is not None:
            merge_adapters(self.model)
        labels = self.problem.labels
        names = {} if labels is None else {"id2label": labels.id2label, "label2id": labels.label2id}
        with quiet_loading():
            save_pretrained(self.problem.loaded, path, names)

    def journal_header(self) -> Mapping[str, Any]:
        loaded, labels = self.problem.loaded, self.problem.labels
        return {
            "base": self.problem.base_digest,
            "data": self.problem.data_digest(),
            "num_outputs": None if loaded.head is None else loaded.head.out_features,
            "lora": self.config.lora,
            "dtype": self.config.dtype,
            "seed": self.config.seed,
            "labels": None if labels is None else list(labels.names),
            "config": to_toml(self.config, recipe=RECIPE),
        }

    def fitted(self) -> Mapping[str, Tensor]:
        """What the base does not contain as it is before the first step: fresh parameters and a fitted head."""
        loaded = self.problem.loaded
        of_head = {id(parameter) for parameter in loaded.head.parameters()} if loaded.head is not None else set()
        return {n: p for n, p in self.model.named_parameters() if n in loaded.fresh or id(p) in of_head}

    def _base(self) -> str:
        held = [p for p in self.model.parameters() if isinstance(p, QuantizedTensor)]
        taken, floats = sum(p.num_bytes for p in held), sum(p.numel() * p.element_size() for p in held)
        return (
            f"{self.config.base}: {len(held)} linear weights in {taken / 1e6:.1f} MB instead of {floats / 1e6:.1f} MB"
        )

    def _anchor_facts(self, anchors: Anchors) -> Mapping[str, str]:
        return {"anchors": anchors.text(), "learning rate at anchors": f"{self.config.optimizer.anchor_lr:g}"}

    def _trained(self) -> str:
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return f"{sum(size for size, trained in sizes if trained):,} of {sum(size for size, _ in sizes):,}"

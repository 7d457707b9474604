"""A classifier that is compressed while it is trained, ready to run: dense training, pruning, and codebooks.

Legend of shapes: B images.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from featherlight.meter import Meter
from featherlight.objective import Batch, BatchObjective, ClipGradient, DistilledLoss, Objective, finite
from featherlight.recipes.classify.experiment import build_experiment as build_classifier
from featherlight.recipes.classify.splits import load_splits
from featherlight.recipes.compress.config import CompressConfig
from featherlight.recipes.compress.files import FEATHER, write_feather
from featherlight.recipes.compress.sections import compression_section
from featherlight.report import Section
from featherlight.trainer import SCHEDULES, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget
from featherlight.transforms.dead_units import zero_dead_units
from featherlight.transforms.prune import Prune
from featherlight.transforms.prune_patterns import Global, LayerAdaptive
from featherlight.transforms.prune_schedule import CubicSchedule
from featherlight.transforms.share_weights import ShareWeights
from featherlight.transforms.share_weights_codes import Reassigned
from featherlight.transforms.share_weights_rate import RatePenalty

_WEIGHTS = ("student.*.weight",)
_ALL = ("student.*.weight", "student.*.bias")


def build_experiment(config: CompressConfig, workspace: Workspace) -> Experiment:
    """Loads the images and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    chosen = replace(config.classify, seed=config.seed)
    dense = build_classifier(chosen, workspace)
    later = dense
    if config.augment != chosen.augment:
        later = build_classifier(replace(chosen, augment=config.augment), workspace)
    resolved = replace(config, classify=dense.config)
    run = _Compression(resolved, dense, later.stages[0].objective, workspace.scratch)
    stages = [] if config.classify.initial is not None else [run.dense_stage()]
    return replace(
        dense,
        model=run.pair,
        stages=[*stages, run.prune_stage(), run.share_stage()],
        title=f"compression of {resolved.classify.network} on {Path(resolved.classify.data).name}",
        method=None,
        write_model=run.write_model,
        sections=run.sections,
        config=resolved,
    )


class RoundRest:
    """A transform that leaves the tensors of norms as bfloat16 has them, so that they take half the bytes."""

    def prepare(self, model: nn.Module) -> None:
        """Does nothing."""

    def update(self, model: nn.Module, progress: float) -> None:
        """Does nothing."""

    @torch.no_grad()
    def convert(self, model: nn.Module) -> None:
        """Rounds scales, shifts and running statistics."""
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.copy_(tensor.bfloat16())


class Pair(nn.Module):
    """The network that is compressed, and the dense one that it learns from, which stays in evaluation mode.

    Args:
        student: the network; the dense one begins as a copy of it.

    Attributes:
        student: as given.
        teacher: the dense network, which is not trained.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Pair":
        """Sets the mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """The student's logits."""
        return self.student(images)

    @torch.no_grad()
    def take_teacher(self) -> None:
        """Makes the student, as it is now, the teacher."""
        for taught, own in zip(
            (*self.teacher.parameters(), *self.teacher.buffers()),
            (*self.student.parameters(), *self.student.buffers()),
            strict=True,
        ):
            taught.copy_(own)


class _Compression:
    """The networks, and the stages that they go through."""

    def __init__(
        self, config: CompressConfig, dense: Experiment, objective: Callable[[int, Meter], Objective], scratch: Path
    ) -> None:
        self.config = config
        self._images_of = objective
        self._scratch = scratch
        self.dense = dense
        self.pair = Pair(dense.model)
        batches = dense.stages[0].budget.steps
        assert batches is not None, "classifiers are budgeted in steps"
        self._dense_steps = batches
        self._epoch = _batches(config) if config.classify.steps else math.ceil(batches / config.classify.epochs)

    def dense_stage(self) -> Stage:
        """As the classifier is trained by itself."""
        return replace(self.dense.stages[0], name="dense")

    def prune_stage(self) -> Stage:
        """Pruning, with the dense network for a teacher."""
        chosen = self.config.prune
        kind = {"layers": LayerAdaptive, "global": Global}[chosen.allocation]
        schedule = CubicSchedule(end=chosen.end, updates=chosen.updates)
        return Stage(
            name="prune",
            optimizer=lambda journal, meter: self._optimizer(chosen.lr, chosen.lr),
            objective=partial(self._objective, self._dense_steps),
            budget=Budget(steps=self._steps(chosen.epochs)),
            schedule=SCHEDULES["cosine"],
            transforms=[Prune(kind(chosen.sparsity), schedule=schedule, layers=_WEIGHTS, regrow=chosen.regrow)],
            prepare=self._train_all,
            begin=self.pair.take_teacher,
        )

    def share_stage(self) -> Stage:
        """Codebooks, chosen with an eye on bits and trained."""
        chosen = self.config.share
        steps = self._steps(chosen.epochs)
        before = self._dense_steps + self._steps(self.config.prune.epochs)
        assign = Reassigned(rate=chosen.rate, updates=chosen.updates, end=chosen.end)
        sizes = {"*.bias": chosen.bias_codes, "*": chosen.codes}
        penalized = math.ceil(chosen.end * steps)

        def objective(step: int, meter: Meter) -> Objective:
            plain = self._objective(before, step, meter)
            is_open = chosen.penalty > 0 and step < penalized
            return RatePenalty(plain, self.pair.student, chosen.penalty, step=step) if is_open else plain

        return Stage(
            name="share",
            optimizer=lambda journal, meter: self._optimizer(chosen.lr, chosen.codebook_lr),
            objective=objective,
            budget=Budget(steps=steps),
            schedule=SCHEDULES["cosine"],
            transforms=[ShareWeights(sizes, layers=_ALL, assign=assign, codebook=torch.bfloat16), RoundRest()],
            begin=self._zero_dead_units,
        )

    def _train_all(self) -> None:
        self.pair.student.requires_grad_(True)

    def _zero_dead_units(self) -> None:
        zero_dead_units(self.pair.student, self._batch(0, Meter()).batch["images"][:1])

    def _steps(self, epochs: int) -> int:
        return epochs * self._epoch

    def _optimizer(self, lr: float, codebook_lr: float) -> Optimizer:
        named = [(name, one) for name, one in self.pair.student.named_parameters() if one.requires_grad]
        books = [one for name, one in named if name.endswith(".centroids")]
        others = [one for name, one in named if not name.endswith(".centroids")]
        groups = [{"params": others, "lr": lr}, *([{"params": books, "lr": codebook_lr}] if books else [])]
        return AdamW(groups, weight_decay=0.0, fused=True)

    def _objective(self, before: int, step: int, meter: Meter) -> Objective:
        """The distilled loss of a step of a later stage, on other images than those of the stages before."""
        plain = self._batch(before + step, meter)
        distill = self.config.distill
        loss = DistilledLoss(
            self.pair.teacher, _logits, _labelled, temperature=distill.temperature, share=distill.share
        )

        def of_pair(model: nn.Module, batch: Batch) -> Tensor:
            return loss(self.pair.student, batch)

        objective = BatchObjective(
            self.pair,
            plain.batch,
            finite(of_pair, step, ()),
            micro_batch=plain.micro_batch,
            dropout_seed=plain.dropout_seed,
            meter=meter,
        )
        clip = self.config.classify.optimizer.clip
        return objective if clip is None else ClipGradient(objective, self.pair.student.parameters(), clip)

    def _batch(self, step: int, meter: Meter) -> BatchObjective:
        made = self._images_of(step, meter)
        plain = made.objective if isinstance(made, ClipGradient) else made
        assert isinstance(plain, BatchObjective), "classifiers have a loss for each image"
        return plain

    def write_model(self, path: Path) -> None:
        """The network as usual, and beside it as one file of few bytes."""
        write = self.dense.write_model
        assert write is not None, "classifiers leave a model"
        write(path)
        write_feather(path / FEATHER, self.pair.student)

    def sections(self) -> Sequence[Section]:
        """What was kept and what it takes, and the classifier's own."""
        path = self._scratch / FEATHER
        write_feather(path, self.pair.student)
        return [compression_section(path), *self.dense.sections()]


def _batches(config: CompressConfig) -> int:
    """Of a pass over the training images."""
    return math.ceil(len(load_splits(config.classify).train) / config.classify.batch)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["images"])


def _labelled(logits: Tensor, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

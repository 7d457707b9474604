"""A deep belief net, ready to run: layer by layer, up-down, backpropagation, and what the report shows.

Legend of shapes: B images, V pixels, L labels.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from featherlight.data import ImageSet, ImageSplits, IndexPermutation, load_images
from featherlight.meter import Meter
from featherlight.nn.models import contrastive_losses, default_device
from featherlight.objective import Batch, BatchObjective, Objective, finite
from featherlight.recipes.dbn.config import DbnConfig
from featherlight.recipes.dbn.network import ImageNet, build_network, write_network
from featherlight.report import Section
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 1000
_SEED_STRIDE = 0x9E3779B97F4A7C15  # apart the streams of stages

Loss = Callable[[nn.Module, Batch], Tensor]
"""Of each example, (B,)."""
Logits = Callable[[Tensor], Tensor]
"""From images to (B, K)."""


def build_experiment(config: DbnConfig, workspace: Workspace) -> Experiment:
    """Loads the images and builds the net.

    Raises:
        ValueError: bad data or choices.
    """
    workspace.display.say(f"loading {config.data}")
    splits = load_images(config.data).with_valid(config.valid_fraction)
    model = build_network(config, splits.train)
    digest = splits.train.digest()
    device = default_device(config.device)
    run = Belief(config, model.to(device), splits.to(device))
    return Experiment(
        model=model,
        stages=run.stages(),
        evaluate=run.evaluate,
        title=f"deep belief net on {Path(config.data).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        facts=run.facts(),
        write_model=lambda path: write_network(path, model, config, splits.train),
        sections=run.sections,
        origin={"data": digest},
    )


class _MovesChains:
    """An Objective whose gradient, once taken, moves chains on; looking at its value does not."""

    def __init__(self, objective: Objective, move: Callable[[], None]) -> None:
        self.objective = objective
        self.move = move

    def __call__(self) -> Tensor:
        loss = self.objective()
        self.move()
        return loss

    def value(self) -> Tensor:
        return self.objective.value()

    def values(self) -> Tensor:
        return self.objective.values()


class Belief:
    """Net and images, and what the run procedure asks of them.

    Args:
        config: of the run.
        model: on the device of the images.
        splits: the images.

    Attributes:
        config: as given.
        model: as given.
        train: images to learn from.
        valid: images to look at.
        test: images to report on; None where the data have none.
        by_classifier: whether labels are told by the classifier, as they are from its stage on.
    """

    def __init__(self, config: DbnConfig, model: ImageNet, splits: ImageSplits) -> None:
        assert splits.valid is not None, "`with_valid` has seen to it"
        self.config = config
        self.model = model
        self.train, self.valid, self.test = splits.train, splits.valid, splits.test
        self.by_classifier = False
        self._greedy: int | None = 0

    def stages(self) -> list[Stage]:
        """One for each machine, and those of fine-tuning."""
        count, found = len(self.model.net.machines), []
        for number in range(count):
            objective = partial(self._greedy_objective, number)
            stage = self._stage(f"layer {number + 1} of {count}", self.config.pretraining.epochs, objective)
            prepare = partial(self._prepare, self.model.net.machine(number), greedy=number)
            found.append(dataclasses.replace(stage, prepare=prepare, optimizer=self._greedy_optimizer))
        if (up_down := self.config.up_down) is not None:
            net = self.model.net
            trained = nn.ModuleList([net.recognition, net.generation, net.memory])
            stage = self._stage("up-down", up_down.epochs, partial(self._up_down_objective, count))
            optimizer = partial(self._sgd, up_down.lr, up_down.momentum, 0.0)
            prepare = partial(self._prepare, trained)
            found.append(dataclasses.replace(stage, prepare=prepare, begin=net.untie, optimizer=optimizer))
        if (backprop := self.config.backprop) is not None:
            stage = self._stage("backprop", backprop.epochs, partial(self._backprop_objective, count + 1))
            prepare = partial(self._prepare, self.model.net.classifier, by_classifier=True)
            more = {"begin": self._begin_backprop, "optimizer": self._adamw, "schedule": SCHEDULES["cosine"]}
            found.append(dataclasses.replace(stage, prepare=prepare, **more))
        return found

    def _stage(self, name: str, epochs: int, objective: Callable[[int, Meter], Objective]) -> Stage:
        steps = epochs * math.ceil(len(self.train) / self.config.batch)
        optimizer, schedule = self._greedy_optimizer, SCHEDULES["linear"]
        return Stage(name=name, optimizer=optimizer, objective=objective, budget=Budget(steps=steps), schedule=schedule)

    def _prepare(self, trained: nn.Module, *, greedy: int | None = None, by_classifier: bool = False) -> None:
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        self._greedy, self.by_classifier = greedy, by_classifier

    def _begin_backprop(self) -> None:
        if self.config.up_down is None:
            self.model.net.untie()
        self.model.net.start_classifier()

    def _greedy_optimizer(self, journal: object, meter: Meter) -> Optimizer:
        settings = self.config.pretraining
        return self._sgd(settings.lr, settings.momentum, settings.weight_decay, journal, meter)

    def _sgd(self, lr: float, momentum: float, decay: float, journal: object, meter: Meter) -> Optimizer:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim == 1]},
        ]
        return SGD(groups, lr=lr, momentum=momentum, fused=True)

    def _adamw(self, journal: object, meter: Meter) -> Optimizer:
        settings = self.config.backprop
        assert settings is not None, "there is such a stage"
        parameters = self.model.net.classifier.parameters()
        return AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)

    def _rows(self, stage: int, step: int) -> list[int]:
        sampler = IndexPermutation(len(self.train), (self.config.seed + stage * _SEED_STRIDE) % (1 << 63))
        count = min(self.config.batch, len(self.train))
        return sampler.indices(step * count, count)

    def _images(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows, device=self.train.labels.device)
        return self.model.pixels(self.train.floats(chosen)), self.train.labels[chosen]

    def _generator(self, stage: int, step: int) -> torch.Generator:
        key = (self.config.seed + (stage + 1) * _SEED_STRIDE + 2 * step + 1) % (1 << 63)
        return torch.Generator(self.train.labels.device).manual_seed(key)

    def _of_batch(self, batch: Batch, loss: Loss, step: int, rows: Sequence[int], meter: Meter) -> Objective:
        seed = (self.config.seed + step) % (1 << 63)
        return BatchObjective(self.model, batch, finite(loss, step, rows), dropout_seed=seed, meter=meter)

    def _greedy_objective(self, number: int, step: int, meter: Meter) -> Objective:
        rows = self._rows(number, step)
        machine = self.model.net.machine(number)
        phase = self.model.negative_phase(str(number), self.config.pretraining.steps)
        data = self.model.net.data_of(number, *self._images(rows))
        with torch.no_grad():
            negative = phase(machine, data, self._generator(number, step))
        batch = {"data": data, "negative": negative}
        objective = self._of_batch(
            batch, lambda model, b: contrastive_losses(machine, b["data"], b["negative"]), step, rows, meter
        )
        return self._moving(objective, str(number), negative)

    def _moving(self, objective: Objective, name: str, v_NV: Tensor) -> Objective:
        """The objective, with which the chains of a name move on where they persist."""
        if name not in self.model.chains:
            return objective
        return _MovesChains(objective, partial(self.model.move, name, v_NV))

    def _up_down_objective(self, stage: int, step: int, meter: Meter) -> Objective:
        assert self.config.up_down is not None, "there is such a stage"
        rows, net = self._rows(stage, step), self.model.net
        pixels, labels = self._images(rows)
        negative = self.model.negative_phase("up_down", self.config.up_down.steps)
        states = net.wake_sleep(pixels, labels, self._generator(stage, step), negative=negative)
        batch = {f"{part} {n}": t for part, ts in states._asdict().items() for n, t in enumerate(ts)}

        def losses(model: nn.Module, part: Batch) -> Tensor:
            kept = {kind: tuple(t for name, t in part.items() if name.startswith(kind)) for kind in states._fields}
            return net.up_down_losses(states._replace(**kept))

        objective = self._of_batch(batch, losses, step, rows, meter)
        return self._moving(objective, "up_down", states.sleep[-1])

    def _backprop_objective(self, stage: int, step: int, meter: Meter) -> Objective:
        rows = self._rows(stage, step)
        pixels, labels = self._images(rows)
        return self._of_batch({"pixels": pixels, "labels": labels}, _cross_entropy, step, rows, meter)

    def evaluate(self) -> Sequence[Evaluation]:
        """The share of wrong labels among the validation images, by the classifier once it learns, else by the memory."""
        if self._greedy is not None:
            self.model.net.untie()
        values = {"error": self.error(self.valid, self.model if self.by_classifier else self.model.net.memory_logits)}
        if self._greedy is not None:
            values["reconstruction"] = self._reconstruction(self._greedy)
        return [Evaluation(values=values)]

    @torch.no_grad()
    def predictions(self, images: ImageSet, logits: Logits) -> Tensor:
        """The likeliest label of each image, a bounded number at a time."""
        rows = torch.arange(len(images), device=images.labels.device).split(_EVALUATION_BATCH)
        return torch.cat([logits(self.model.pixels(images.floats(part))).argmax(-1) for part in rows])

    def error(self, images: ImageSet, logits: Logits) -> float:
        """The share of images that get a wrong label."""
        return float((self.predictions(images, logits) != images.labels).double().mean())

    @torch.no_grad()
    def _reconstruction(self, number: int) -> float:
        """Mean squared difference of a machine's data and what comes back from the probabilities above."""
        machine = self.model.net.machine(number)
        pixels = self.model.pixels(self.valid.floats(slice(0, _EVALUATION_BATCH)))
        data = self.model.net.data_of(number, pixels, self.valid.labels[:_EVALUATION_BATCH])
        return float((machine.visible.mean(machine.visible_input(machine(data))) - data).square().mean())

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        pretraining = self.config.pretraining
        sizes = "-".join(map(str, (*self.model.net.sizes, self.model.net.num_labels)))
        return {
            "data": self.config.data,
            "network": f"{sizes}, {self.config.visible} visible units",
            "training images": f"{len(self.train):,}",
            "validation images": f"{len(self.valid):,}",
            "each layer": f"{pretraining.epochs} epochs, {pretraining.chains} chains, {pretraining.steps} rounds a step",
        }

    def sections(self) -> Sequence[Section]:
        """All of a run, from the net as it is at its end."""
        from featherlight.recipes.dbn.sections import sections

        return sections(self)


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["pixels"]), batch["labels"], reduction="none")

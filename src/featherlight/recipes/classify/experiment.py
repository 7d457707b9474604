"""An image classifier, ready to run: images, network, loss, and what the report shows of it.

Legend of shapes: B images, C classes, D features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.data import ImageSet, ImageSplits, IndexPermutation, confusion
from featherlight.meter import Meter
from featherlight.nn.models import default_device
from featherlight.objective import BatchObjective, ClipGradient, Objective, finite
from featherlight.optim.zeroth_order import Journal
from featherlight.planner.sizes import parse_size
from featherlight.planner.training_chain import TrainingPlan, plan_for
from featherlight.recipes.arithmetic import arithmetic
from featherlight.recipes.classify.augment import augmented
from featherlight.recipes.classify.config import RECIPE, ClassifyConfig
from featherlight.recipes.classify.network import (
    Network,
    base_digest,
    build_network,
    head_parameters,
    write_network,
)
from featherlight.recipes.classify.splits import load_splits
from featherlight.recipes.closed_form_head import MAX_ROWS, fit_in_place, without_head
from featherlight.recipes.config import to_toml
from featherlight.recipes.methods import METHODS, Setup
from featherlight.report import ConfusionTable, Images, Section
from featherlight.report.quantities import in_bytes
from featherlight.trainer import SCHEDULES, Display, Evaluation, Experiment, Replay, Stage, Workspace
from featherlight.trainer.loop import Budget

LEARNING_RATES = {"adamw": 3e-3, "muon": 3e-3, "schedule_free": 3e-3, "zo": 1e-3, "mezo": 1e-5}
"""Of methods where the config has none; the others take their own default."""

_EVALUATION_BATCH = 256
_MOST_MISTAKES = 24


def build_experiment(config: ClassifyConfig, workspace: Workspace) -> Experiment:
    """Loads the images and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    workspace.display.say(f"loading {config.data}")
    splits = load_splits(config)
    network = build_network(config, splits.train)
    resolved = _resolved(config, network)
    method = METHODS[config.method]
    origin = {"base": base_digest(network), "data": splits.train.digest()}
    device = default_device(config.device)
    layout: dict[str, Any] = {"memory_format": torch.channels_last if method.dropout else torch.preserve_format}
    network.model.to(device, **layout)
    classifier = _Classifier(resolved, network, splits.to(device), workspace.display)
    plan = classifier.plan()
    steps = config.steps or config.epochs * math.ceil(len(splits.train) / config.batch)
    return Experiment(
        model=network.model,
        stages=[
            Stage(
                optimizer=classifier.optimizer,
                objective=classifier.objective,
                budget=Budget(steps=steps),
                schedule=SCHEDULES[resolved.optimizer.schedule],
                transforms=() if plan is None else (plan.transform(),),
                training=method.dropout,
                begin=classifier.head_start,
            )
        ],
        evaluate=classifier.evaluate,
        title=f"{config.method} on {Path(config.data).name}",
        method=config.method,
        evaluations=config.evaluations,
        facts={**classifier.facts(), **({} if plan is None else _planned_facts(plan))},
        write_model=classifier.write_model,
        sections=classifier.sections,
        replay=classifier.replay(origin) if method.replayable else None,
        origin=origin,
        config=resolved,
    )


def _resolved(config: ClassifyConfig, network: Network) -> ClassifyConfig:
    """The config with every choice made."""
    given, method = config.optimizer, METHODS[config.method]
    lr = given.lr if given.lr is not None else LEARNING_RATES.get(config.method, method.default_lr)
    names = ("channels", "norm_groups", "pool", "network", "norm", "width")
    taken = {name: value for name, value in network.model.settings.items() if name in names}
    if "channels" in taken:
        taken |= {"channels": tuple(taken["channels"]), "network": "small", "norm": None, "width": 1.0}
    schedule = given.schedule if method.scheduled else "constant"
    return replace(config, **taken, optimizer=replace(given, lr=lr, schedule=schedule))


class _Classifier:
    """Network and images, and what the run procedure asks of them."""

    def __init__(self, config: ClassifyConfig, network: Network, splits: ImageSplits, display: Display) -> None:
        assert splits.valid is not None, "`with_valid` has seen to it"
        self.config = config
        self.network = network
        self.model = network.model
        self.train = splits.train
        self.valid = splits.valid
        self.test = splits.test
        self.display = display
        self._sampler = IndexPermutation(len(splits.train), config.seed)
        self._arithmetic = arithmetic(config.precision, method=config.method)

    def optimizer(self, journal: Journal | None, meter: Meter) -> Optimizer:
        lr = self.config.optimizer.lr
        assert lr is not None, "the config is resolved"
        setup = Setup(
            model=self.model,
            head=self.model.head if isinstance(self.model.head, nn.Linear) else None,
            lr=lr,
            settings=self.config.optimizer,
            batch=self.config.batch,
            seed=self.config.seed,
            journal=journal,
            meter=meter,
        )
        return self._arithmetic.scaled(METHODS[self.config.method].build(setup))

    def objective(self, step: int, meter: Meter) -> Objective:
        rows = self._sampler.indices(step * self.config.batch, min(self.config.batch, len(self.train)))
        chosen = torch.tensor(rows, device=self.train.labels.device)
        objective = BatchObjective(
            self.model,
            {"images": self._images(chosen, step), "labels": self.train.labels[chosen]},
            self._arithmetic.lowered(finite(cross_entropy, step, rows)),
            micro_batch=self.config.micro_batch,
            dropout_seed=self.config.seed + step,
            meter=meter,
        )
        clip = self.config.optimizer.clip
        return objective if clip is None else ClipGradient(objective, self.model.parameters(), clip)

    def _images(self, rows: Tensor, step: int) -> Tensor:
        """Training images of a step, changed where that is asked for."""
        images, augment = self.train.floats(rows), self.config.augment
        if augment is None:
            return images
        return augmented(images, shift=augment.shift, flip=augment.flip, key=(self.config.seed, step))

    def plan(self) -> TrainingPlan | None:
        """The schedule with which a step takes no more than `activation_memory`; None where nothing was asked for."""
        if self.config.activation_memory is None:
            return None
        if not METHODS[self.config.method].dropout:
            raise ValueError(
                f"`activation_memory` bounds what is kept for a backward pass, and `{self.config.method}` makes forward "
                "passes only, which keep nothing. Leave it out, or take a method with gradients."
            )
        rows = torch.arange(min(self.config.micro_batch or self.config.batch, len(self.train)))
        chosen = rows.to(self.train.labels.device)
        batch = {"images": self.train.floats(chosen), "labels": self.train.labels[chosen]}
        self.display.say("measuring the layers for a schedule within the memory of activations")
        self.model.train()
        return plan_for(self.model, batch, cross_entropy, parse_size(self.config.activation_memory))

    def head_start(self) -> str | None:
        """Fits the head in closed form on the training images (at most 20,000), each of which is looked at once."""
        if not self.config.head_start:
            return None
        head = self.model.head
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"the head of {self.config.network} is no linear layer, so that it cannot be fitted in closed form. Turn "
                "`head_start` off, or take another network, such as caffe-lenet."
            )
        rows = self._sampler.indices(0, min(MAX_ROWS, len(self.train)))
        chosen = torch.tensor(rows, device=self.train.labels.device)
        training = self.model.training
        self.model.eval()
        with without_head(self.model, head):
            features = outputs(self.model, self.train, chosen)
        self.model.train(training)
        fitted = fit_in_place(head, features.cpu(), self.train.labels[chosen].cpu(), is_regression=False)
        if not fitted.converged:
            self.display.say("note: the closed-form head did not reach its tolerance; it is the best found")
        return "head start"

    def evaluate(self) -> Sequence[Evaluation]:
        logits = outputs(self.model, self.valid)
        loss = nn.functional.cross_entropy(logits, self.valid.labels)
        accuracy = (logits.argmax(-1) == self.valid.labels).float().mean()
        return self._arithmetic.noted([Evaluation(values={"accuracy": float(accuracy)}, loss=float(loss))])

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        trained, total = sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
        return {
            **({"starts from": self.config.initial} if self.config.initial is not None else {}),
            "data": self.config.data,
            "network": self.config.network,
            **({"classes": ", ".join(self.config.classes)} if self.config.classes else {}),
            "training images": f"{len(self.train):,}",
            "validation images": f"{len(self.valid):,}",
            **({"test images": f"{len(self.test):,}"} if self.test is not None else {}),
            "parameters": f"{total:,}" if trained == total else f"{total:,}, of which {trained:,} are trained",
            "learning rate": f"{self.config.optimizer.lr:g}",
            **self._arithmetic.facts(),
        }

    def replay(self, origin: Mapping[str, str]) -> Replay:
        """What a journal holds besides the steps: with the head as it is before the first of them."""
        header = {
            **origin,
            "network": self.model.settings,
            "classes": list(self.network.classes),
            "config": to_toml(self.config, recipe=RECIPE),
        }
        return Replay(header=header, fitted=lambda: head_parameters(self.model))

    def write_model(self, path: Path) -> None:
        write_network(path, self.model, self.network.classes)

    def sections(self) -> Sequence[Section]:
        """Confusion and mistakes on the test images, where there are any, else on the validation images."""
        images, what = (self.valid, "validation") if self.test is None else (self.test, "test")
        training = self.model.training
        self.model.eval()
        predicted, labels = outputs(self.model, images).argmax(-1).cpu(), images.labels.cpu()
        self.model.train(training)
        counts = confusion(predicted, labels, len(images.classes))
        accuracy = float((predicted == labels).double().mean())
        blocks: list[Any] = [ConfusionTable(labels=images.classes, counts=tuple(map(tuple, counts.tolist())))]
        wrong = (predicted != labels).nonzero().flatten()[:_MOST_MISTAKES]
        if len(wrong):
            names = tuple(f"{images.classes[labels[i]]} taken for {images.classes[predicted[i]]}" for i in wrong)
            pixels = images.images[wrong.to(images.images.device)].cpu()
            blocks.append(
                Images(
                    images=_pictures(pixels),
                    columns=8,
                    labels=names,
                    scale=5 if pixels.shape[-1] <= 16 else 2,
                    caption=f"Some {what} images it gets wrong.",
                )
            )
        text = f"Of the {len(images):,} {what} images, at the end of the run: accuracy {accuracy:.2%}."
        return [Section(title="Mistakes", text=text, blocks=tuple(blocks)), *self._arithmetic.sections()]


@torch.no_grad()
def outputs(model: nn.Module, images: ImageSet, rows: Tensor | None = None) -> Float[Tensor, "B C"]:
    """What a network returns for all images, or those at `rows`, a bounded number at a time."""
    which = torch.arange(len(images), device=images.labels.device) if rows is None else rows
    return torch.cat([model(images.floats(part)) for part in which.split(_EVALUATION_BATCH)])


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
    """Cross-entropy of each image."""
    return nn.functional.cross_entropy(model(batch["images"]), batch["labels"], reduction="none")


def _planned_facts(plan: TrainingPlan) -> dict[str, str]:
    """What is to be known of a schedule."""
    full, planned = plan.measured.full, plan.plan
    more = planned.seconds / full.seconds - 1
    return {
        "activations and gradients": f"{in_bytes(planned.peak_bytes)} of {in_bytes(full.peak_bytes)}, {more:.0%} more time"
    }


def _pictures(pixels: Tensor) -> Any:
    """Bytes (B, H, W), or (B, H, W, 3) where there are three channels or more; of two channels, the first."""
    if pixels.shape[1] < 3:
        return pixels[:, 0].numpy()
    return pixels[:, :3].movedim(1, 3).contiguous().numpy()

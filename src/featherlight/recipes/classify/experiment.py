"""An image classifier, ready to run: images, network, loss, and what the report shows of it.

Legend of shapes: B images, C classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from featherlight.data import ImageSet, IndexPermutation, confusion, load_digits, split_rows
from featherlight.meter import Meter
from featherlight.nn.models import SmallConvNet, default_device
from featherlight.objective import BatchObjective, ClipGradient, Objective, finite, seeded_random
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.report import ConfusionTable, Images, Section
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 512
_VALID_FRACTION = 0.2
_MOST_MISTAKES = 24


def build_experiment(config: ClassifyConfig) -> Experiment:
    """Loads the images and builds the network."""
    images = load_digits()
    parts = split_rows(images.labels, valid_fraction=_VALID_FRACTION, seed=0, stratify=True)
    device = default_device(config.device)
    train, valid = (images.take(part).to(device) for part in parts)
    with seeded_random(config.seed, torch.device("cpu")):
        model = SmallConvNet(
            in_channels=images.images.shape[1],
            num_classes=len(images.classes),
            channels=config.channels,
            dropout=config.dropout,
        ).to(device)
    steps = config.epochs * math.ceil(len(train.labels) / config.batch)
    classifier = _Classifier(config, model, train, valid)
    return Experiment(
        model=model,
        stages=[
            Stage(
                optimizer=classifier.optimizer,
                objective=classifier.objective,
                budget=Budget(steps=steps),
                schedule=SCHEDULES[config.optimizer.schedule],
            )
        ],
        evaluate=classifier.evaluate,
        title=f"a small convolutional network on {config.data}",
        method="adamw",
        evaluations=config.evaluations,
        facts={
            "data": config.data,
            "training images": f"{len(train.labels):,}",
            "validation images": f"{len(valid.labels):,}",
            "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        },
        write_model=classifier.write_model,
        sections=classifier.sections,
    )


class _Classifier:
    """Network and images, and what the run procedure asks of them."""

    def __init__(self, config: ClassifyConfig, model: SmallConvNet, train: ImageSet, valid: ImageSet) -> None:
        self.config = config
        self.model = model
        self.train = train
        self.valid = valid
        self.logits = torch.zeros(0)
        self._sampler = IndexPermutation(len(train.labels), config.seed)

    def optimizer(self, journal: Journal | None, meter: Meter) -> Optimizer:
        settings = self.config.optimizer
        return AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)

    def objective(self, step: int, meter: Meter) -> Objective:
        rows = self._sampler.indices(step * self.config.batch, min(self.config.batch, len(self.train.labels)))
        batch = self.train.take(torch.tensor(rows, device=self.train.labels.device))
        objective = BatchObjective(
            self.model,
            {"images": batch.images, "labels": batch.labels},
            finite(cross_entropy, step, rows),
            micro_batch=self.config.micro_batch,
            dropout_seed=self.config.seed + step,
            meter=meter,
        )
        clip = self.config.optimizer.clip
        return objective if clip is None else ClipGradient(objective, self.model.parameters(), clip)

    @torch.no_grad()
    def evaluate(self) -> Sequence[Evaluation]:
        self.logits = torch.cat([self.model(part) for part in self.valid.images.split(_EVALUATION_BATCH)])
        loss = nn.functional.cross_entropy(self.logits, self.valid.labels)
        accuracy = (self.logits.argmax(-1) == self.valid.labels).float().mean()
        return [Evaluation(values={"accuracy": float(accuracy)}, loss=float(loss))]

    def write_model(self, path: Path) -> None:
        """Weights as safetensors, and what it takes to build the network as JSON."""
        path.mkdir(parents=True)
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        save_file(weights, path / "model.safetensors")
        about: dict[str, Any] = {
            "architecture": "SmallConvNet",
            "classes": list(self.valid.classes),
        } | self.model.settings
        (path / "config.json").write_text(json.dumps(about, indent=1) + "\n")

    def sections(self) -> Sequence[Section]:
        predicted, labels = self.logits.argmax(-1).cpu(), self.valid.labels.cpu()
        counts = confusion(predicted, labels, len(self.valid.classes))
        blocks: list[Any] = [
            ConfusionTable(labels=self.valid.classes, counts=tuple(map(tuple, counts.tolist()))),
        ]
        wrong = (predicted != labels).nonzero().flatten()[:_MOST_MISTAKES]
        if len(wrong):
            pictures = (self.valid.images[wrong.to(self.valid.images.device), 0].cpu() * 255).to(torch.uint8).numpy()
            names = tuple(
                f"{self.valid.classes[labels[i]]} taken for {self.valid.classes[predicted[i]]}" for i in wrong
            )
            blocks.append(
                Images(images=pictures, columns=8, labels=names, scale=5, caption="Validation images it gets wrong.")
            )
        return [
            Section(title="Mistakes", text="Of the validation images, at the end of the run.", blocks=tuple(blocks))
        ]


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of each image, (B,)."""
    return nn.functional.cross_entropy(model(batch["images"]), batch["labels"], reduction="none")

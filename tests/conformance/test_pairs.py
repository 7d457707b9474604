"""What goes together: one thing on top of another leaves 50 steps of training as they are, to the bit, or the reason stands.

A row trains a net with convolution, BatchNorm and dropout by one feature, and again with a second one on top. What is
compared: the losses, the weights, the buffers (statistics of BatchNorm, what transforms count), the optimizer's state and
the random state of the process. A feature of `TRANSPARENT` changes none of them, whatever it is put on; where one does, the
row in `EXCEPTIONS` says which and why, and fails if that is no longer so.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from featherlight.objective import Batch, BatchObjective, ClipGradient, Objective, SharedObjective, autocast
from featherlight.optim import WithLossScaling
from featherlight.precision import LossScaler, Precision
from featherlight.transforms import (
    CubicSchedule,
    Global,
    ModelTransform,
    Prune,
    Reassigned,
    ShareWeights,
    TransformStack,
)
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import segments
from featherlight.transforms.quantize import FakeQuantization, MovingAverage
from tests.properties.test_zeroth_order_laws import global_states

STEPS, ROWS = 50, 8
PARTS = ("losses", "weights", "buffers", "optimizer", "random state")
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What one thing does to a run; those of a row do so in order.

    Attributes:
        loss: changes the loss.
        micro_batch: rows of a forward pass.
        objective: wraps the objective; that of the second feature goes inside.
        transforms: of the model.
        optimizer: wraps it.
        reason: why a run with it is not the plain one; empty for what is transparent.
    """

    loss: Callable[[Loss], Loss] = lambda loss: loss
    micro_batch: int | None = None
    objective: Callable[[Any, nn.Module], Objective] = lambda objective, model: objective
    transforms: Callable[[], Sequence[ModelTransform]] = tuple
    optimizer: Callable[[Optimizer], Optimizer] = lambda optimizer: optimizer
    reason: str = ""


def in_precision(compute: torch.dtype) -> Callable[[Loss], Loss]:
    return lambda loss: autocast(loss, Precision(compute=compute))


def overflowing(optimizer: Optimizer) -> Optimizer:
    return WithLossScaling(optimizer, LossScaler(initial=2.0**126))


def loss_scaling(optimizer: Optimizer) -> Optimizer:
    return WithLossScaling(optimizer, LossScaler(growth_every=20))


class TeamOfOne:
    """The processes of a run that has a single one."""

    rank, size = 0, 1

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def add_gradient(self, loss: Loss, batch: Batch, scale: float, *, last: bool) -> Tensor:
        part = loss(self.model, batch).sum() * scale
        part.backward()
        return part.detach()

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


class TorchCheckpoint:
    """Has torch compute the activations of the features again, which runs all of them a second time."""

    def prepare(self, model: nn.Module) -> None:
        features = model.get_submodule("features")
        features.forward = partial(checkpoint, features.forward, use_reentrant=False)

    def update(self, model: nn.Module, progress: float) -> None: ...

    def convert(self, model: nn.Module) -> None: ...


class OfFeatures:
    """A transform of the features alone, so that a chain of stages can go over them and the head."""

    def __init__(self, transform: ModelTransform) -> None:
        self.transform = transform

    def prepare(self, model: nn.Module) -> None:
        self.transform.prepare(model.get_submodule("features"))

    def update(self, model: nn.Module, progress: float) -> None:
        self.transform.update(model.get_submodule("features"), progress)

    def convert(self, model: nn.Module) -> None:
        self.transform.convert(model.get_submodule("features"))


def pruning() -> ModelTransform:
    return Prune(Global(0.6), schedule=CubicSchedule())


def sharing() -> ModelTransform:
    return ShareWeights(7, assign=Reassigned())


def quantizing() -> ModelTransform:
    example = torch.zeros(2, 1, 6, 6)
    return OfFeatures(FakeQuantization(example=example, ranges=MovingAverage(momentum=0.1)))


BASES = {
    "plain": Feature(),
    "micro-batching": Feature(
        micro_batch=3,
        reason="BatchNorm normalizes over the rows of a pass, dropout draws for each, and sums are rounded in parts",
    ),
    "clipping": Feature(
        objective=lambda objective, model: ClipGradient(objective, model.parameters(), 0.5),
        reason="gradients are shortened",
    ),
    "bf16": Feature(loss=in_precision(torch.bfloat16), reason="products are of 8 bits"),
    "fp16 with loss scaling": Feature(
        loss=in_precision(torch.float16), optimizer=loss_scaling, reason="products are of 11 bits"
    ),
}
"""What a feature is put on."""

TRANSFORMED = {
    "pruning": Feature(transforms=lambda: [pruning()], reason="weights are zero"),
    "shared weights": Feature(transforms=lambda: [sharing()], reason="weights are few values"),
    "quantization-aware": Feature(transforms=lambda: [quantizing()], reason="weights and activations are rounded"),
    "pruning, shared weights": Feature(transforms=lambda: [pruning(), sharing()], reason="weights are few values"),
    "pruning, quantization-aware": Feature(transforms=lambda: [pruning(), quantizing()], reason="weights are rounded"),
    "shared weights, quantization-aware": Feature(
        transforms=lambda: [sharing(), quantizing()], reason="weights are few values, and rounded"
    ),
    "pruning, micro-batching": Feature(transforms=lambda: [pruning()], micro_batch=3, reason="weights are zero"),
    "quantization-aware, micro-batching": Feature(
        transforms=lambda: [quantizing()], micro_batch=3, reason="weights and activations are rounded"
    ),
}
"""The same, with a model that transforms have changed."""

OUTSIDE = {
    "micro-batching of whole batches": Feature(micro_batch=ROWS),
    "fp32 as a precision": Feature(loss=in_precision(torch.float32)),
    "a team of one process": Feature(objective=lambda objective, model: SharedObjective(objective, TeamOfOne(model))),
}
"""Transparent, and outside of the model, so that transforms are nothing to them."""

TRANSPARENT = {
    "loss scaling": Feature(optimizer=loss_scaling),
    "activation checkpointing": Feature(
        transforms=lambda: [ActivationCheckpoint(("features", "head"), segments(2, 2))]
    ),
    "torch's checkpoint": Feature(transforms=lambda: [TorchCheckpoint()]),
}
"""What may be put on anything."""

ALL = {*PARTS} - {"random state"}
_TWICE = "the features run forward twice in training mode, so BatchNorm counts each batch twice"
_OBSERVED = "as BatchNorm, observers of ranges count each batch twice, and ranges are what activations are rounded by"
_IMPORTANCE = (
    "codes are chosen by squares of gradients from the backward pass, which are of the loss as it was scaled then"
)
OVERFLOWS = {"loss scaling that overflows at first": Feature(optimizer=overflowing)}
EXCEPTIONS: dict[tuple[str, str], tuple[set[str], str]] = {
    **{(base, "torch's checkpoint"): ({"buffers"}, _TWICE) for base in BASES | TRANSFORMED},
    **{(base, "torch's checkpoint"): (ALL, _OBSERVED) for base in TRANSFORMED if "quantization-aware" in base},
    **{(base, "loss scaling"): (ALL, _IMPORTANCE) for base in TRANSFORMED if "shared weights" in base},
}
"""What a feature changes on a base, and why."""

SAME_TWICE = {("fp16 with loss scaling", "loss scaling"), ("micro-batching", "micro-batching of whole batches")}
PAIRS = [
    *((base, feature) for base in BASES for feature in OUTSIDE | TRANSPARENT if (base, feature) not in SAME_TWICE),
    *((base, feature) for base in TRANSFORMED for feature in TRANSPARENT),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def batch_at(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(3, (ROWS,), generator=generator)
    return {"x": torch.randn(ROWS, 1, 6, 6, generator=generator) + y.view(-1, 1, 1, 1), "y": y}


@functools.cache
def trained(*names: str) -> Mapping[str, Any]:
    """What 50 steps leave, part by part, by the names of features."""
    features = [(BASES | TRANSFORMED | OUTSIDE | TRANSPARENT | OVERFLOWS)[name] for name in names]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    stack = TransformStack([transform for feature in features for transform in feature.transforms()])
    stack.prepare(model)
    optimizer: Optimizer = AdamW(model.parameters(), lr=0.01)
    loss: Loss = cross_entropy
    micro_batch = next((feature.micro_batch for feature in features if feature.micro_batch is not None), None)
    for feature in features:
        loss, optimizer = feature.loss(loss), feature.optimizer(optimizer)
    states, losses = global_states(), []
    for step in range(STEPS):
        stack.update(model, step / STEPS)
        objective: Objective = BatchObjective(model, batch_at(step), loss, dropout_seed=step, micro_batch=micro_batch)
        for feature in reversed(features):
            objective = feature.objective(objective, model)
        losses.append(optimizer.step(objective))  # pyright: ignore[reportArgumentType]
    return {
        "losses": [float(one) for one in losses],
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
        "buffers": [buffer.clone() for buffer in model.buffers()],
        "optimizer": [value for of in optimizer.state.values() for value in of.values()],
        "random state": global_states() == states,
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {part for part in PARTS if not same(one[part], other[part])}


@pytest.mark.parametrize(("base", "feature"), PAIRS)
def test_a_feature_on_a_base_changes_nothing_or_what_is_written_down(base: str, feature: str) -> None:
    expected, _ = EXCEPTIONS.get((base, feature), (set(), ""))
    assert trained(base, feature)["random state"]
    assert differing(trained(base), trained(base, feature)) == expected


@pytest.mark.parametrize("base", [name for name in BASES | TRANSFORMED if name != "plain"])
def test_a_base_learns_and_is_not_the_plain_run(base: str) -> None:
    assert (BASES | TRANSFORMED)[base].reason
    assert differing(trained("plain"), trained(base)) == ALL
    losses = trained(base)["losses"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert trained(base)["random state"]


@pytest.mark.parametrize("base", TRANSFORMED)
def test_steps_that_are_skipped_leave_nothing_behind_that_is_not_finite(base: str) -> None:
    found = trained(base, "loss scaling that overflows at first")
    assert all(one.isfinite().all() for one in (*found["weights"], *found["buffers"]))
    assert found["losses"][-1] < found["losses"][0]

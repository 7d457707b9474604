"""What goes together: one thing on top of another leaves 50 steps of training as they are, to the bit, or the reason stands.

A row trains a net with convolution, BatchNorm and dropout by one feature, and again with a second one on top. What is
compared: the losses, the weights, the buffers (statistics of BatchNorm, what transforms count), the optimizer's state and
the random state of the process. A feature of `TRANSPARENT` must change none of them, whatever it is put on; where one does
(`EXCEPTIONS`), the row says which and why, and fails if that is no longer so.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from featherlight.objective import Batch, BatchObjective, ClipGradient, Objective, SharedObjective, autocast
from featherlight.optim import WithLossScaling
from featherlight.precision import LossScaler, Precision
from featherlight.transforms import ModelTransform, TransformStack
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
    """

    loss: Callable[[Loss], Loss] = lambda loss: loss
    micro_batch: int | None = None
    objective: Callable[[Any, nn.Module], Objective] = lambda objective, model: objective
    transforms: Callable[[], Sequence[ModelTransform]] = tuple
    optimizer: Callable[[Optimizer], Optimizer] = lambda optimizer: optimizer


def in_precision(compute: torch.dtype) -> Callable[[Loss], Loss]:
    return lambda loss: autocast(loss, Precision(compute=compute))


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


class Recomputed(nn.Module):
    """A part of a model whose activations are computed again by torch, which runs all of it a second time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found = checkpoint(self.inner, x, use_reentrant=False)
        assert isinstance(found, Tensor)
        return found


class TorchCheckpoint:
    def prepare(self, model: nn.Module) -> None:
        model.features = Recomputed(model.features)

    def update(self, model: nn.Module, progress: float) -> None: ...

    def convert(self, model: nn.Module) -> None: ...


BASES = {
    "plain": Feature(),
    "micro-batching": Feature(micro_batch=3),
    "clipping": Feature(objective=lambda objective, model: ClipGradient(objective, model.parameters(), 0.5)),
    "bf16": Feature(loss=in_precision(torch.bfloat16)),
    "fp16 with loss scaling": Feature(loss=in_precision(torch.float16), optimizer=loss_scaling),
}
"""What a feature is put on."""

TRANSPARENT = {
    "micro-batching of whole batches": Feature(micro_batch=ROWS),
    "fp32 as a precision": Feature(loss=in_precision(torch.float32)),
    "loss scaling": Feature(optimizer=loss_scaling),
    "a team of one process": Feature(objective=lambda objective, model: SharedObjective(objective, TeamOfOne(model))),
    "torch's checkpoint": Feature(transforms=lambda: [TorchCheckpoint()]),
}
"""What may be put on anything."""

REASONS = {
    "torch's checkpoint": (
        "the part is run forward twice in training mode, so BatchNorm counts each batch twice",
        {"buffers"},
    ),
}
"""Of features that are not what they should be on any base: why, and what they change."""

NEVER_THE_SAME = {
    "micro-batching": (
        "BatchNorm normalizes over the rows of a pass and counts each, dropout draws for each, and sums are rounded in parts",
        {"losses", "weights", "buffers", "optimizer"},
    ),
    "clipping": ("gradients are shortened", {"losses", "weights", "buffers", "optimizer"}),
    "bf16": ("products are of 8 bits", {"losses", "weights", "buffers", "optimizer"}),
    "fp16 with loss scaling": ("products are of 11 bits", {"losses", "weights", "buffers", "optimizer"}),
}
"""Bases that differ from the plain run, which the rows would not show otherwise."""

TWICE = {("fp16 with loss scaling", "loss scaling"), ("micro-batching", "micro-batching of whole batches")}
"""Pairs that are one thing twice."""

PAIRS = [(base, feature) for base in BASES for feature in TRANSPARENT if (base, feature) not in TWICE]


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
    features = [(BASES | TRANSPARENT)[name] for name in names]
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
    _, expected = REASONS.get(feature, ("", set()))
    found = trained(base, feature)
    assert found["random state"]
    assert differing(trained(base), found) == expected


@pytest.mark.parametrize("base", [name for name in BASES if name != "plain"])
def test_a_base_that_is_not_the_plain_run_differs_in_what_is_written_down(base: str) -> None:
    reason, expected = NEVER_THE_SAME[base]
    assert reason
    assert differing(trained("plain"), trained(base)) == expected


def test_all_runs_learn() -> None:
    for base in BASES:
        losses = trained(base)["losses"]
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])

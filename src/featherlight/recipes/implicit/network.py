"""The networks of the recipes: one that grows by blocks, and the finished implicit model, written and read back.

Legend of shapes: ... positions, I inputs, K features of the inputs, F features, Y outputs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.nn.implicit import (
    RELU,
    TANH,
    Activation,
    ImplicitLayer,
    IteratedWellPosedness,
    RowProjection,
    RowRescaling,
    StrictlyTriangular,
)
from featherlight.recipes import model_files
from featherlight.recipes.implicit.blocks import matrices

ACTIVATIONS: Mapping[str, Activation] = {"relu": RELU, "tanh": TANH}
"""By the names that configs use."""

WELL_POSED: Mapping[str, IteratedWellPosedness] = {"projection": RowProjection(), "rescaling": RowRescaling()}
"""Sets of a full A by the names that configs use."""

_KIND = model_files.ModelKind(architectures=("ImplicitModel",), name="an implicit model", recipe="implicit/mnist")


class Units(nn.Module):
    """Between inputs and outputs in units of the data and those that a model computes in.

    Args:
        shift: (I,), taken from the inputs.
        scale: (I,), which they are then divided by.
        out_shift: (Y,), added to the outputs times `out_scale`.
        out_scale: (Y,).
    """

    shift: Tensor
    scale: Tensor
    out_shift: Tensor
    out_scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, out_shift: Tensor, out_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("out_shift", out_shift.clone())
        self.register_buffer("out_scale", out_scale.clone())

    def inward(self, u: Tensor) -> Tensor:
        """The inputs in the model's units with a constant 1 behind them, (..., I + 1) of (..., I)."""
        return nn.functional.pad((u.to(self.scale) - self.shift) / self.scale, (0, 1), value=1.0)

    def outward(self, y: Tensor) -> Tensor:
        """The model's outputs in units of the data."""
        return y * self.out_scale + self.out_shift


class ImplicitModel(nn.Module):
    """An implicit layer between inputs as they come and outputs as they are wanted; a constant input is its bias.

    Args:
        layer: of I + 1 inputs.
        units: of inputs and outputs.

    Attributes:
        layer: as given.
        units: as given.
    """

    def __init__(self, layer: ImplicitLayer, units: Units) -> None:
        super().__init__()
        self.layer = layer
        self.units = units

    def forward(self, u: Tensor) -> Tensor:
        """(..., Y) of (..., I)."""
        return self.units.outward(self.layer(self.units.inward(u)).values)


class GrowingModel(nn.Module):
    """A strictly triangular model while its blocks are trained one after the other, the first block first.

    Args:
        lift_KI: from inputs, of which a constant one is the last, to their features.
        sizes: states of each block.
        num_outputs: Y.
        activation: phi.
        units: of inputs and outputs.

    Attributes:
        lift: as given, (K, I).
        hidden: (H, F) of each block.
        read_out: (F, Y).
        num_blocks: how many are trained.
        best_blocks: how many of them are kept.
        best_read_out: of the model with those.
        best_score: of that model on the validation rows.
        history: of each block that is trained, the loss before and after it, the steps of its search, and its status.
    """

    lift: Tensor
    best_read_out: Tensor
    num_blocks: Tensor
    best_blocks: Tensor
    best_score: Tensor
    history: Tensor

    def __init__(
        self, lift_KI: Tensor, sizes: Sequence[int], num_outputs: int, activation: Activation, units: Units
    ) -> None:
        super().__init__()
        widths = [len(lift_KI) + sum(sizes[:k]) for k in range(len(sizes) + 1)]
        self.activation = activation
        self.units = units
        self.register_buffer("lift", lift_KI.clone())
        pairs = zip(sizes, widths[:-1], strict=True)
        self.hidden = nn.ParameterList([nn.Parameter(lift_KI.new_zeros(size, width)) for size, width in pairs])
        self.read_out = nn.Parameter(lift_KI.new_zeros(widths[-1], num_outputs))
        self.register_buffer("best_read_out", self.read_out.detach().clone())
        self.register_buffer("num_blocks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("best_blocks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("history", torch.zeros(len(sizes), 4, dtype=torch.float64))
        self.register_buffer("best_score", torch.full((), float("inf"), dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        """(..., Y) of (..., I), with all blocks trained so far."""
        features = self.units.inward(u) @ self.lift.mT
        for weights in self.hidden:
            features = torch.cat((features, self.activation(features @ weights.mT)), -1)
        return self.units.outward(features @ self.read_out)

    @torch.no_grad()
    def keep_best(self) -> None:
        """Sets the read-out to that of the blocks that are kept, which leaves the others without effect."""
        self.read_out.copy_(self.best_read_out)

    @torch.no_grad()
    def finished(self) -> ImplicitModel:
        """The implicit model of the blocks that are kept."""
        count = max(int(self.best_blocks), 1)
        hidden = [weights.detach() for weights in self.hidden[:count]]
        width = hidden[-1].shape[1] + len(hidden[-1])
        a, b, c, d = matrices(hidden, self.read_out.detach()[:width], self.lift)
        kind = StrictlyTriangular(block_sizes=[len(weights) for weights in reversed(hidden)])
        layer = ImplicitLayer.from_matrices(a, b, c, d, activation=self.activation, well_posed=kind)
        return ImplicitModel(layer, self.units)


def write_model(path: Path, model: ImplicitModel, about: Mapping[str, Any]) -> None:
    """A, B, C, D, shifts and scales as safetensors, and what it takes to use them as JSON.

    Args:
        path: of a directory, which must not exist.
        model: to write.
        about: names of activation and inputs and the like; JSON.
    """
    layer = model.layer
    weights = {name: getattr(layer, name).detach() for name in "ABCD"} | dict(model.units.named_buffers())
    kind = layer.well_posed
    blocks = list(kind.block_sizes) if isinstance(kind, StrictlyTriangular) else None
    (architecture,) = _KIND.architectures
    model_files.write_model(path, weights, {"architecture": architecture, "block_sizes": blocks} | dict(about))


def read_model(path: Path) -> tuple[ImplicitModel, dict[str, Any]]:
    """The implicit model of a run directory, or of its model directory, in evaluation mode, and what was written about it.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with model_files.read_model(path, _KIND) as (about, weights):
        blocks = about["block_sizes"]
        kind = StrictlyTriangular(block_sizes=blocks) if blocks else WELL_POSED[about["well_posed"]]
        layer = ImplicitLayer.from_matrices(
            *(weights[name] for name in "ABCD"), activation=ACTIVATIONS[about["activation"]], well_posed=kind
        )
        units = Units(*(weights[name] for name in ("shift", "scale", "out_shift", "out_scale")))
    return ImplicitModel(layer, units).eval(), about

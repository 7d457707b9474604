"""A quantized weight trained the slow way: dense float64 steps, and the two grid points each weight may be rounded to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherlight.functional import QuantizedTensor
from featherlight.optim.zeroth_order import StepRecord, Target
from tests.oracles.exact_update import updated


def weights_after(weight: QuantizedTensor, target: Target, records: Sequence[StepRecord]) -> Tensor:
    """The weight behind some steps in float64, with nothing rounded; it starts from the whole numbers alone."""
    plain = Target(
        name=target.name,
        parameter=torch.nn.Parameter(stored(weight).double()),
        index=target.index,
        group=target.group,
        shared=target.shared,
    )
    for record in records:
        with torch.no_grad():
            plain.parameter.copy_(updated(plain, record))
    return plain.parameter.detach()


def stored(weight: QuantizedTensor) -> Tensor:
    """What the whole numbers and scales stand for, one weight at a time."""
    grid, rows = weight.grid, []
    for codes, scales in zip(weight.codes.tolist(), weight.scales.double().tolist(), strict=True):
        if grid.bits == 4:
            codes = [byte % 16 - 8 for byte in codes] + [byte // 16 - 8 for byte in codes]
        width = grid.group or max(1, len(codes))
        rows.append([code * scales[place // width] for place, code in enumerate(codes)][: grid.columns])
    return torch.tensor(rows, dtype=torch.float64)


def units_of(weight: QuantizedTensor) -> Tensor:
    """What one unit of the grid is worth at each weight, (R, C)."""
    width = weight.grid.group or weight.grid.padded
    return weight.scales.double().repeat_interleave(width, dim=1)[:, : weight.grid.columns]

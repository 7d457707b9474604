"""Weights rounded to the multiples of a step, where a bit that is saved counts as much as some error.

Legend of shapes: R rows, C columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.functional.entropy_model import EntropyModel, level_contexts

_FEWEST = 256
_SHARED = 256
_REACH = 500
_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Coarseness:
    """How much is given up.

    Attributes:
        step: between neighbouring levels, in standard deviations of the tensor.
        bit: squared error, in squared steps, that a saved bit is worth.
    """

    step: float
    bit: float


def roundable(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are rounded: float matrices and kernels of many values; the others are kept as they are."""
    return [
        name
        for name, one in tensors.items()
        if one.is_floating_point() and one.dim() > 1 and one.numel() >= _FEWEST and len(_some_values(one)) > _SHARED
    ]


def round_all(tensors: Mapping[str, Tensor], how: Coarseness) -> dict[str, Tensor]:
    """All tensors, those that are `roundable` rounded. Other floats of one axis are rounded to float16 if they lie within it."""
    chosen = set(roundable(tensors))
    return {name: round_one(one, how) if name in chosen else _narrowed(one) for name, one in tensors.items()}


@torch.no_grad()
def round_one(weight: Float[Tensor, "..."], how: Coarseness) -> Float[Tensor, "..."]:
    """A weight at levels that weigh error against bits.

    Each level may move one step to zero, or to zero at once. Bits are those of the entropy model, fitted to the levels of the
    round before.

    Args:
        weight: any shape of two axes or more.
        how: step and worth of a bit.

    Source: rate-distortion optimised quantization as in DeepCABAC (Wiedemann et al. 2020, equation 11), with neighbours'
    levels held.
    """
    exact = weight.float()
    step = float(exact.std()) * how.step
    step = max(step, float(exact.abs().max()) / _REACH)
    if not step > 0:
        return weight
    units = exact / step
    levels = units.round().to(torch.int32)
    for _ in range(_ROUNDS if how.bit > 0 else 0):
        levels = _cheaper(units, levels, how.bit)
    return (levels.to(torch.float32) * torch.tensor(step, dtype=torch.float32)).to(weight.dtype) + 0.0


def _cheaper(units: Tensor, levels: Tensor, bit: float) -> Tensor:
    nearest = units.round().to(torch.int32)
    model = EntropyModel.fit(levels, reach=int(nearest.abs().max()))
    zero_bits = model.zero_bits[level_contexts(levels)]
    best, best_cost = nearest, torch.full_like(units, torch.inf)
    for candidate in (nearest, nearest - nearest.sign(), torch.zeros_like(nearest)):
        bits = zero_bits.gather(-1, (candidate != 0).long()[..., None])[..., 0]
        bits = bits + model.level_bits[candidate.long() + model.reach]
        cost = (units - candidate).square() + bit * bits
        best = torch.where(cost < best_cost, candidate, best)
        best_cost = torch.minimum(cost, best_cost)
    return best


def _narrowed(tensor: Tensor) -> Tensor:
    if tensor.dtype is not torch.float32 or tensor.dim() != 1 or tensor.numel() < 2:
        return tensor
    narrow = tensor.half().float()
    return narrow if torch.isfinite(narrow).all() else tensor


def _some_values(tensor: Tensor) -> Tensor:
    return torch.unique(tensor.reshape(-1)[: 1 << 16].float())

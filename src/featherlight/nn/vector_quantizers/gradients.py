"""How a gradient passes the choice of a code, which has none.

Legend of shapes: ... are rows, F features.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-12


class GradientEstimator(Protocol):
    """A rule that takes the gradient at the chosen codes back to the rows."""

    def __call__(self, rows: Float[Tensor, "... F"], chosen: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """The values of `chosen`, exactly, with a gradient in `rows` alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class StraightThrough:
    """The gradient at the codes is that at the rows. Source: Bengio et al. 2013; van den Oord et al. 2017."""

    def __call__(self, rows: Float[Tensor, "... F"], chosen: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """See `GradientEstimator`."""
        return _with_gradient_of(rows, chosen)


@dataclass(frozen=True, kw_only=True)
class RotationTrick:
    """The gradient is turned and scaled by the rotation that takes a row to its code, held constant.

    The angle between gradient and code is kept, so that gradients push rows of one cell apart or together. Rows or codes
    of length 0 have no direction: there the gradient passes straight through.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick" (arXiv 2410.06424), section
    4.2, as Householder reflections.
    """

    def __call__(self, rows: Float[Tensor, "... F"], chosen: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """See `GradientEstimator`."""
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return chosen.detach()
        row, code = rows.detach(), chosen.detach()
        row_norm, code_norm = row.norm(dim=-1, keepdim=True), code.norm(dim=-1, keepdim=True)
        u, q = row / row_norm.clamp(min=_TINY), code / code_norm.clamp(min=_TINY)
        between = torch.nn.functional.normalize(u + q, dim=-1, eps=1e-6)
        turned = rows - 2 * between * _dot(between, rows) + 2 * q * _dot(u, rows)
        scaled = turned * (code_norm / row_norm.clamp(min=_TINY))
        return _with_gradient_of(torch.where((row_norm > _TINY) & (code_norm > _TINY), scaled, rows), chosen)


def _with_gradient_of(source: Tensor, values: Tensor) -> Tensor:
    """`values` to the last bit, with the gradient of `source`."""
    if not (torch.is_grad_enabled() and source.requires_grad):
        return values.detach()
    return values.detach() + (source - source.detach())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)

"""How a gradient passes the choice of a code, which has none.

Legend of shapes: ... are rows, F features.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return chosen.detach()
        return _apply(_StraightThrough, rows, chosen.detach())


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
        return _apply(_Rotation, rows, chosen.detach())


def _apply(function: type[torch.autograd.Function], rows: Tensor, chosen: Tensor) -> Tensor:
    return function.apply(rows, chosen)  # pyright: ignore[reportReturnType]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, chosen: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return chosen.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Rotation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, chosen: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return chosen.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, chosen = ctx.saved_tensors
        row_norm, code_norm = rows.norm(dim=-1, keepdim=True), chosen.norm(dim=-1, keepdim=True)
        u, q = rows / row_norm.clamp(min=_TINY), chosen / code_norm.clamp(min=_TINY)
        between = torch.nn.functional.normalize(u + q, dim=-1, eps=1e-6)
        turned = grad - 2 * between * _dot(between, grad) + 2 * u * _dot(q, grad)
        scaled = turned * (code_norm / row_norm.clamp(min=_TINY))
        return torch.where((row_norm > _TINY) & (code_norm > _TINY), scaled, grad), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)

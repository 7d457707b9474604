"""State-driven training: a sparse model whose states match those of a trained one.

Legend of shapes: N rows, I inputs, S states, Y outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherlight.nn.implicit import ImplicitLayer, RowProjection, StrictlyTriangular
from featherlight.solvers.row_lasso import LassoProblem, RowLasso, row_lasso

_TOLERANCE = 1e-5
"""Of the gap, in parts of a row's loss at 0: far below what a model's scores show."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A sparse model, and how its rows were found.

    Attributes:
        layer: the model.
        states: the solves of the rows of [A, B].
        outputs: the solves of the rows of [C, D].
        zeros: the part of all entries of A, B, C, D (below the diagonal blocks apart) that is 0.
    """

    layer: ImplicitLayer
    states: RowLasso
    outputs: RowLasso
    zeros: float


def match_states(
    layer: ImplicitLayer, u_NI: Tensor, *, penalty: float, bound: float = 0.95, max_steps: int = 400
) -> Matched:
    """The sparsest rows, by the sum of their sizes, that give the states and outputs of a trained layer.

    Row by row, [A, B] is fitted to the inputs of the activation (x = phi(z)), and [C, D] to the outputs. Of a strictly
    triangular layer each block sees the blocks that it saw before; of any other, the sizes in a row of A sum to at most `bound`,
    which keeps the model well posed.

    Args:
        layer: trained.
        u_NI: inputs, which ought to be like those it will see.
        penalty: in parts of the smallest that leaves nothing of any row.
        bound: of the rows of a full A.
        max_steps: of each search; a row that is not done then says so in its status, and is used as it is.

    Raises:
        ValueError: a penalty that is not between 0 and 1, or inputs of another shape.

    Cost: products of N (S + I)^2, and those of `row_lasso`.

    Source: Tsai, Gautam, Anderson, Sojoudi, El Ghaoui 2022, "State-driven implicit modeling for sparsity and robustness".
    """
    if not 0 < penalty < 1:
        raise ValueError(f"`penalty` must be between 0 (all is kept) and 1 (nothing is); got {penalty}.")
    with torch.no_grad():
        found = layer(u_NI)
        x, u = found.states, u_NI.to(found.states.dtype)
        z = x @ layer.A.mT + u @ layer.B.mT
    limits: dict[str, Any] = {"tolerance": _TOLERANCE, "max_steps": max_steps}
    features = torch.cat((x, u), 1)
    kind = layer.well_posed
    if isinstance(kind, StrictlyTriangular):
        states = _by_blocks(features, z, kind.block_sizes, penalty, limits)
    else:
        problem = LassoProblem.of(features, z)
        states = row_lasso(
            problem,
            penalty=penalty * _largest(problem),
            bound=bound,
            num_bounded=layer.state_dim,
            tolerance=_TOLERANCE,
            max_steps=max_steps,
        )
    problem = LassoProblem.of(features, found.values)
    outputs = row_lasso(problem, penalty=penalty * _largest(problem), **limits)
    return _put_together(layer, states, outputs)


def _by_blocks(features: Tensor, z: Tensor, sizes: Sequence[int], penalty: float, limits: dict[str, Any]) -> RowLasso:
    """Rows of [A, B], each block's on later blocks and inputs alone."""
    whole, start, parts = LassoProblem.of(features, z), 0, []
    for size in sizes:
        stop = start + size
        part = LassoProblem(
            gram=whole.gram[stop:, stop:], onto=whole.onto[start:stop, stop:], square=whole.square[start:stop]
        )
        parts.append(row_lasso(part, penalty=penalty * _largest(part), **limits))
        start = stop
    width = features.shape[1]
    return RowLasso(
        weights=torch.cat([torch.nn.functional.pad(p.weights, (width - p.weights.shape[1], 0)) for p in parts]),
        **{name: torch.cat([getattr(p, name) for p in parts]) for name in ("objective", "gap", "status", "steps")},
    )


def _largest(problem: LassoProblem) -> float:
    """The penalty from which on all entries of all rows are 0."""
    return float(problem.onto.abs().max().clamp(min=1e-300))


def _put_together(layer: ImplicitLayer, states: RowLasso, outputs: RowLasso) -> Matched:
    width = layer.state_dim
    like = layer.B
    a, b = states.weights[:, :width].to(like), states.weights[:, width:].to(like)
    c, d = outputs.weights[:, :width].to(like), outputs.weights[:, width:].to(like)
    kind = layer.well_posed
    free = width * width
    if isinstance(kind, StrictlyTriangular):
        free = sum(rows.numel() for rows in layer.free.values())
    else:
        kind = RowProjection(bound=1 - 1e-6)
    sparse = ImplicitLayer.from_matrices(a, b, c, d, activation=layer.activation, well_posed=kind)
    kept = sum(int(torch.count_nonzero(matrix)) for matrix in (a, b, c, d))
    total = free + b.numel() + c.numel() + d.numel()
    return Matched(layer=sparse, states=states, outputs=outputs, zeros=1 - kept / total)

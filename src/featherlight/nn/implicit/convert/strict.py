"""Triangular models without their diagonal, in an order of few blocks.

Legend of shapes: S numbers of a state.
"""

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import IDENTITY, RELU
from featherlight.nn.implicit.convert.sparse import sparse
from featherlight.nn.implicit.convert.system import ImplicitSystem, StateBlock


def to_strictly_triangular(system: ImplicitSystem) -> ImplicitSystem:
    """The same model with a strictly upper block triangular A, exactly.

    A state that depends on itself, x = relu(a x + r) with a < 1, is x = relu(r / (1 - a)): its rows are divided by 1 - a and its
    diagonal entry is gone. The states then come in the order of their depth, all of one depth and activation in a block,
    which takes as few steps as the model has layers.

    Args:
        system: states of ReLU or the identity where the diagonal is not 0; no two states may depend on each other.

    Returns:
        The same outputs; the states are a permutation of the given ones.

    Raises:
        ValueError: a diagonal entry of 1 or more, by how much; another activation there; states that depend on each other.

    Cost: the entries of A for each depth.

    Source: El Ghaoui et al. 2021, section 3.1, for triangular models; the diagonal follows from relu(s r) = s relu(r), s > 0.
    """
    diagonal = _diagonal(system)
    _check_diagonal(system, diagonal)
    free = _without_diagonal(system, 1 / (1 - diagonal))
    depth = _depths(free)
    kinds = {activation: i for i, activation in enumerate(dict.fromkeys(block.activation for block in system.blocks))}
    sizes = torch.tensor([block.size for block in system.blocks], device=depth.device)
    kind = torch.tensor([kinds[block.activation] for block in system.blocks], device=depth.device).repeat_interleave(
        sizes
    )
    key = (depth.max() - depth) * len(kinds) + kind if len(depth) else depth
    order = torch.argsort(key, stable=True)
    found, counts = torch.unique_consecutive(key[order], return_counts=True)
    activations = list(kinds)
    blocks = [StateBlock(n, activations[k % len(kinds)]) for k, n in zip(found.tolist(), counts.tolist(), strict=True)]
    return free.reordered(order, blocks)


def _diagonal(system: ImplicitSystem) -> Tensor:
    row, column = system.a.indices()
    on = row == column
    found = torch.zeros_like(system.state_bias)
    found[row[on]] = system.a.values()[on]
    return found


def _check_diagonal(system: ImplicitSystem, diagonal: Tensor) -> None:
    if bool((diagonal >= 1).any()):
        state = int(diagonal.argmax())
        raise ValueError(
            f"the model is not well posed: state {state} depends on itself with the factor {float(diagonal[state]):.4g}, "
            f"{float(diagonal[state]) - 1:.4g} above what is below 1. Lower that entry of A's diagonal."
        )
    begin = 0
    for block in system.blocks:
        if block.activation not in (RELU, IDENTITY) and bool(diagonal[begin : begin + block.size].any()):
            raise ValueError(
                f"states {begin} to {begin + block.size - 1} depend on themselves, and their activation does not scale as ReLU "
                "does, so there is no strictly triangular form; use ImplicitLayer."
            )
        begin += block.size


def _without_diagonal(system: ImplicitSystem, scale: Tensor) -> ImplicitSystem:
    def scaled(matrix: Tensor, kept: Tensor) -> Tensor:
        row = matrix.indices()[0]
        values = (matrix.values() * scale[row])[kept]
        return sparse(matrix.indices()[:, kept], values, (matrix.shape[0], matrix.shape[1]))

    row, column = system.a.indices()
    return ImplicitSystem(
        a=scaled(system.a, (row != column) & (system.a.values() != 0)),
        b=scaled(system.b, torch.ones_like(system.b.indices()[0], dtype=torch.bool)),
        c=system.c,
        d=system.d,
        state_bias=system.state_bias * scale,
        output_bias=system.output_bias,
        blocks=system.blocks,
    )


def _depths(system: ImplicitSystem) -> Tensor:
    """How many states the longest path to each one has."""
    row, column = system.a.indices()
    depth = torch.zeros(len(system.state_bias), dtype=torch.int64, device=row.device)
    for _ in range(len(depth) + 1):
        deeper = depth.scatter_reduce(0, row, depth[column] + 1, "amax")
        if torch.equal(deeper, depth):
            return depth
        depth = deeper
    state = int(depth.argmax())
    raise ValueError(
        f"some states depend on each other in a circle (state {state} is among them or behind them), so no order of them makes A "
        "triangular; use ImplicitLayer."
    )

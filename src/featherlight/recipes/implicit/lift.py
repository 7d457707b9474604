"""Features of the inputs that all blocks share: the inputs themselves, or a whitened few of their directions.

What a block does with the inputs is B u. With B = W L and L fixed for all blocks, L u is computed once and kept, and the
blocks learn W on whitened features, which need fewer and cheaper steps.

Legend of shapes: N rows, I inputs (a constant one last), K features of them.
"""

import torch
from torch import Tensor

ROWS = 6000
"""That tell the directions well enough."""


def whole(num_inputs: int, *, dtype: torch.dtype) -> Tensor:
    """The constant, and every input: (I, I), for inputs that are already of unit size."""
    return torch.eye(num_inputs, dtype=dtype).roll(1, 0)


def whitened(inputs_NI: Tensor, num_directions: int, *, shrink: float = 0.1) -> Tensor:
    """The constant, and the directions of largest variance, nearly of the same size each.

    Args:
        inputs_NI: some rows, such as `ROWS` drawn at random; the last input is the constant one.
        num_directions: at most I - 1.
        shrink: directions of less than this part of the largest variance stay small.

    Returns:
        (1 + num_directions, I).

    Raises:
        ValueError: more directions than inputs.

    Cost: a product of I^2 numbers for each of the rows, and an eigendecomposition of (I, I).
    """
    num_inputs = inputs_NI.shape[1] - 1
    if not 1 <= num_directions <= num_inputs:
        raise ValueError(
            f"`directions` must be between 1 and the {num_inputs} inputs; got {num_directions}. Turn it off (None) to take the "
            "inputs as they are."
        )
    mean = inputs_NI[:, :-1].mean(0)
    some = inputs_NI[:, :-1] - mean
    variances, vectors = torch.linalg.eigh(some.mT @ some / len(some))
    variances, vectors = variances.flip(0)[:num_directions], vectors.flip(1)[:, :num_directions]
    scaled = vectors / (variances + shrink * variances[0]).clamp(min=1e-12).sqrt()
    overall = ((some @ scaled).square().mean()).sqrt().clamp(min=1e-12)
    scaled = scaled / overall
    lift = inputs_NI.new_zeros(1 + num_directions, num_inputs + 1)
    lift[0, -1] = 1
    lift[1:, :-1], lift[1:, -1] = scaled.mT, -(mean @ scaled)
    return lift

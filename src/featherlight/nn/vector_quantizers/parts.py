"""What quantizers that are made of quantizers share: their parts fit together, and codes are stacked and taken apart.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, Q stages or groups.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.results import Codes, Quantizer


def check_parts(name: str, parts: Sequence[Quantizer], *, same_dim: bool) -> list[nn.Module]:
    """The parts as modules.

    Args:
        name: of the argument, for sentences.
        parts: the quantizers.
        same_dim: whether all must take the same number of features.

    Raises:
        ValueError: no parts, one that is no module, one that is there twice, or parts that do not fit together.
    """
    if not parts:
        raise ValueError(f"`{name}` must have at least one quantizer; got none.")
    modules: list[nn.Module] = [part for part in parts if isinstance(part, nn.Module)]
    if len(modules) < len(parts):
        other = next(part for part in parts if not isinstance(part, nn.Module))
        raise ValueError(f"`{name}` must be quantizers, modules such as `VectorQuantizer`; got {type(other).__name__}.")
    if len({id(part) for part in parts}) < len(parts):
        raise ValueError(
            f"`{name}` must be quantizers of their own, as each keeps what it learned of its own inputs; got one of them "
            "twice. Make a copy with `copy.deepcopy`."
        )
    dims = [part.dim for part in parts]
    if same_dim and len(set(dims)) > 1:
        raise ValueError(
            f"`{name}` must take the same number of features, as each codes what the others left; got {dims}. For different "
            "ones see `GroupedQuantizer`."
        )
    shapes = [part.code_shape for part in parts]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"`{name}` must have codes of the same shape, as they are stacked; got {shapes}. Take as many mixed codes, "
            "stages and groups in each."
        )
    return modules


def stack_codes(parts: Sequence[Codes], shape: torch.Size) -> Codes:
    """Codes of rows, (N, ...) each, as one with an axis of parts behind the positions, (*shape, Q, ...).

    Raises:
        ValueError: codes of different shapes, of parts that were changed since they were put together.
    """
    shapes = [tuple(part.indices.shape[1:]) for part in parts]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"Quantizers put together must have codes of one shape; got {shapes}. Is only some of them `hard`?"
        )
    indices = torch.stack([part.indices for part in parts], dim=1)
    weights = [part.weights for part in parts if part.weights is not None]
    return Codes(
        indices.reshape(*shape, *indices.shape[1:]),
        torch.stack(weights, dim=1).reshape(*shape, *indices.shape[1:]) if weights else None,
    )


def to_row_codes(codes: Codes, code_shape: tuple[int, ...]) -> tuple[Codes, torch.Size]:
    """Codes by position as codes of rows, (N, Q, ...), and the shape of the positions.

    Raises:
        ValueError: codes of another shape. The first axis of parts may be shorter.
    """
    cut = codes.indices.ndim - len(code_shape)
    if cut < 0 or codes.indices.shape[cut + 1 :] != code_shape[1:] or codes.indices.shape[cut] > code_shape[0]:
        raise ValueError(
            f"Codes of this quantizer have indices of shape (positions, {', '.join(map(str, code_shape))}); got "
            f"{tuple(codes.indices.shape)}."
        )
    shape, tail = codes.indices.shape[:cut], codes.indices.shape[cut:]
    count = math.prod(shape)
    weights = None if codes.weights is None else codes.weights.reshape(count, *tail)
    return Codes(codes.indices.reshape(count, *tail), weights), shape


def part_codes(rows: Codes, number: int) -> Codes:
    """The codes of one part of codes of rows."""
    weights: Tensor | None = None if rows.weights is None else rows.weights[:, number]
    return Codes(rows.indices[:, number], weights)

"""Soft convex quantization: each vector becomes a convex mixture of codes, the answer of a small convex program.

Legend of shapes: ... are positions, N all of them, F features, K codes, k codes that are mixed at a position.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.balancing import Balancing
from featherlight.nn.vector_quantizers.codebook import Codebook, look_up
from featherlight.nn.vector_quantizers.mixing import Exact, Mixing, Mixture, bits_of
from featherlight.nn.vector_quantizers.positions import Positions, to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid


class GradientPath(Protocol):
    """How gradients of the values reach the vectors. Those of the codes are always true."""

    def __call__(self, rows_NF: Tensor, mixing: Mixing, codes_KF: Tensor, strength: Tensor, grid: WeightGrid | None) -> Mixture:
        """The mixtures of the rows, with the gradient that is wanted."""
        ...


class SoftConvexQuantizer(nn.Module):
    ...

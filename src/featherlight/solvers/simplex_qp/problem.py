"""The program that soft convex quantization solves for each vector, checked, and the form of every answer to it.

Legend of shapes: N rows, F features, K codes, k codes that a row may mix.

Of a row z, with the codes as the rows of C and e the one-hot vector of its prior code, the program is

    minimise over p:  ||z - C' p||^2 + strength * ||p - e||^2      with p >= 0 and sum(p) = 1.

With g = C (C' p - z) + strength * (p - e), half the gradient, p is the answer when g has one value on the codes that p
uses and no lower value elsewhere.
"""

import math
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

PRICES_AT_ONCE = 1 << 22
"""Elements of the largest buffer of rows by codes that is held at a time."""


class SimplexStatus(IntEnum):
    """How the solution of a row ended."""

    CONVERGED = 0
    """The answer, to rounding or to the tolerance of the method."""
    STEP_LIMIT = 1
    """Feasible, not yet optimal: the steps were used up."""
    SUPPORT_LIMIT = 2
    """Best on the codes it uses; another code would help, but no more are allowed."""
    STALLED = 3
    """Feasible; rounding lets no further step succeed, though the gap is above what rounding explains."""
    APPROXIMATE = 4
    """Feasible by a method that does not aim at the optimum."""
    NON_FINITE = 5
    """The row or its prior code holds nan or inf, or the square of the row in units of the codes is infinite: no code is used,
    values and gradients are 0."""


class SimplexProblem(NamedTuple):
    """A batch of programs with one codebook.

    Attributes:
        z_NF: float32 or float64.
        codebook_KF: of the same dtype and device. A code that is not finite is never used.
        strength: (), above 0, in the unit of ||z||^2.
        prior_N: int64, the prior code of each row; None is the nearest code, the first of several.
    """

    z_NF: Float[Tensor, "N F"]
    codebook_KF: Float[Tensor, "K F"]
    strength: Float[Tensor, ""]
    prior_N: Int[Tensor, "N"] | None


class SimplexSolution(NamedTuple):
    """What a method found, row by row.

    Attributes:
        values_NF: weights @ codes; differentiable in z, codebook and strength.
        indices_Nk: int64, the codes that are mixed; -1 where a row uses fewer than k.
        weights_Nk: their shares, which sum to 1; 0 beside an index of -1; differentiable as the values are.
        status_N: int64, a `SimplexStatus` each.
        kkt_residual_N: largest violation of the optimality conditions, in the unit of `g` above.
        gap_N: duality gap, 2 (g . p - min g): the objective is at most this far above its minimum.
    """

    values_NF: Float[Tensor, "N F"]
    indices_Nk: Int[Tensor, "N k"]
    weights_Nk: Float[Tensor, "N k"]
    status_N: Int[Tensor, "N"]
    kkt_residual_N: Float[Tensor, "N"]
    gap_N: Float[Tensor, "N"]


class Found(NamedTuple):
    """What a method found, outside of any graph: as `SimplexSolution`, with the prior codes that were taken."""

    prior_N: Int[Tensor, "N"]
    indices_Nk: Int[Tensor, "N k"]
    weights_Nk: Float[Tensor, "N k"]
    status_N: Int[Tensor, "N"]
    kkt_residual_N: Float[Tensor, "N"]
    gap_N: Float[Tensor, "N"]

    def trimmed(self) -> "Found":
        """Without the slots that no row uses; at least one stays."""
        used = int((self.indices_Nk >= 0).any(0).sum()) if len(self.indices_Nk) else 0
        used = max(1, used)
        return self._replace(indices_Nk=self.indices_Nk[:, :used], weights_Nk=self.weights_Nk[:, :used])


class SimplexMethod(Protocol):
    """A way to solve the programs of a batch."""

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The solution of every row of a problem that was checked."""
        ...


def check_problem(
    z_NF: Tensor, codebook_KF: Tensor, strength: Tensor | float, prior_N: Tensor | None
) -> SimplexProblem:
    """The problem with its strength as a tensor, or a sentence on what is wrong with it."""
    _check_shapes(z_NF, codebook_KF)
    _check_types(z_NF, codebook_KF)
    strength = _checked_strength(strength, z_NF)
    if prior_N is not None:
        _check_prior(prior_N, z_NF, codebook_KF)
    return SimplexProblem(z_NF, codebook_KF, strength, prior_N)


def _check_shapes(z: Tensor, codebook: Tensor) -> None:
    if z.ndim != 2 or codebook.ndim != 2:
        raise ValueError(
            f"the rows must have shape (N, F) and the codebook (K, F); got {tuple(z.shape)} and {tuple(codebook.shape)}. "
            "Flatten the positions of `z` to rows."
        )
    if z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"rows and codes must have the same number of features; the rows have {z.shape[1]} and the codes "
            f"{codebook.shape[1]}. A mixture of codes must be able to stand in for a row."
        )
    if codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ValueError(
            f"the codebook must hold at least one code of at least one feature; got shape {tuple(codebook.shape)}, "
            "which leaves nothing to mix."
        )


def _check_types(z: Tensor, codebook: Tensor) -> None:
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rows must be float32 or float64; got {z.dtype}, in which the optimality conditions cannot be told from "
            "rounding. Convert rows and codebook to float32 first."
        )
    if codebook.dtype != z.dtype or codebook.device != z.device:
        raise ValueError(
            f"rows and codebook must share dtype and device; the rows are {z.dtype} on {z.device}, the codebook is "
            f"{codebook.dtype} on {codebook.device}. Convert one of them."
        )


def _checked_strength(strength: Tensor | float, z: Tensor) -> Tensor:
    if isinstance(strength, Tensor):
        if strength.numel() != 1:
            raise ValueError(
                f"`strength` must be one number for all rows; got a tensor of shape {tuple(strength.shape)}. "
                "Solve groups of rows apart to use several."
            )
        result = strength.reshape(()).to(device=z.device, dtype=z.dtype)
        if torch.compiler.is_compiling():
            return result
        value = float(result.detach())
    else:
        result = torch.tensor(float(strength), dtype=z.dtype, device=z.device)
        value = float(result)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(
            f"`strength` must be above 0 and finite; got {value}. At 0 the shares of the codes are not unique; take a "
            "small part of the codes' mean squared length to come close to it."
        )
    return result


def _check_prior(prior: Tensor, z: Tensor, codebook: Tensor) -> None:
    if prior.shape != z.shape[:1] or prior.dtype != torch.int64 or prior.device != z.device:
        raise ValueError(
            f"`prior_N` must hold one int64 code number a row, shape ({z.shape[0]},) on {z.device}; got "
            f"{tuple(prior.shape)} of {prior.dtype} on {prior.device}."
        )
    if torch.compiler.is_compiling() or prior.numel() == 0:
        return
    low, high = int(prior.min()), int(prior.max())
    if low < 0 or high >= codebook.shape[0]:
        raise ValueError(
            f"`prior_N` must hold code numbers in [0, {codebook.shape[0]}); got values from {low} to {high}. "
            "Leave it out to take the nearest code of each row."
        )

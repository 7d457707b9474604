"""What all methods ask of the whole codebook: the nearest code of each row, and how optimal an answer is.

Legend of shapes: N rows, n rows of a chunk, F features, K codes, k codes that a row mixes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featherlight.solvers.simplex_qp.problem import PRICES_AT_ONCE, Found, SimplexProblem, SimplexStatus

_GAP_OF_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


class Centred(NamedTuple):
    """Rows and codes with the mean code taken off, which changes no program, and with nothing left that is not finite.

    Attributes:
        z_NF: rows that are not usable are 0.
        codebook_KF: codes that are not usable are 0.
        usable_N: rows that hold finite numbers only, whose squared length is finite too.
        usable_K: codes that hold finite numbers only.
        scale: (), mean squared length of the codes.
    """

    z_NF: Float[Tensor, "N F"]
    codebook_KF: Float[Tensor, "K F"]
    usable_N: Bool[Tensor, "N"]
    usable_K: Bool[Tensor, "K"]
    scale: Float[Tensor, ""]


def centre(z_NF: Tensor, codebook_KF: Tensor) -> Centred:
    """Takes the mean of the usable codes off rows and codes."""
    usable_K = torch.isfinite(codebook_KF).all(1)
    codebook_KF = torch.where(usable_K[:, None], codebook_KF, 0)
    count = usable_K.sum().clamp(min=1)
    mean_F = codebook_KF.sum(0) / count
    codebook_KF = torch.where(usable_K[:, None], codebook_KF - mean_F, 0)
    z_NF = z_NF - mean_F
    usable_N = torch.isfinite(z_NF.square().sum(1))
    z_NF = torch.where(usable_N[:, None], z_NF, 0)
    return Centred(z_NF, codebook_KF, usable_N, usable_K, codebook_KF.square().sum() / count)


def unit_of(codebook_KF: Tensor) -> Float[Tensor, ""]:
    """A power of two near to the largest number of the codes, by which programs are brought to numbers around 1.

    In such units no square is lost to the ends of the range of floats, and no digit changes. Nothing flows back to the codes.
    """
    sizes_KF = codebook_KF.detach().abs()
    largest = torch.where(torch.isfinite(sizes_KF), sizes_KF, 0).max()
    smallest = torch.finfo(codebook_KF.dtype).tiny
    return torch.where(largest >= smallest, largest.clamp(min=smallest).log2().floor().exp2(), 1.0)


def rows_at_once(*widths: int) -> int:
    """How many rows are worked on together, so that no buffer of rows by one of these widths is larger than is allowed."""
    return max(1, PRICES_AT_ONCE // max(1, *widths))


def nearest_codes(centred: Centred) -> Int[Tensor, "N"]:
    """The nearest usable code of each row; the first of several."""
    half_K = torch.where(centred.usable_K, 0.5 * centred.codebook_KF.square().sum(1), torch.inf)
    if torch.compiler.is_compiling():
        return torch.argmin(half_K - centred.z_NF @ centred.codebook_KF.T, dim=1)
    parts = centred.z_NF.split(rows_at_once(len(half_K)))
    return torch.cat([torch.argmin(half_K - z @ centred.codebook_KF.T, dim=1) for z in parts])


def certified(
    problem: SimplexProblem, centred: Centred, prior_N: Tensor, indices_Nk: Tensor, weights_Nk: Tensor, status_N: Tensor
) -> Found:
    """What a method found with its KKT residuals and gaps; rows that are not usable have no codes, whatever was found."""
    usable_N = centred.usable_N & centred.usable_K[prior_N]
    indices_Nk = torch.where(usable_N[:, None], indices_Nk, -1)
    weights_Nk = torch.where(usable_N[:, None], weights_Nk, 0)
    status_N = torch.where(usable_N, status_N, int(SimplexStatus.NON_FINITE))
    residual_N, gap_N = measure(problem, centred, prior_N, indices_Nk, weights_Nk)
    return Found(prior_N, indices_Nk, weights_Nk, settled(centred, status_N, gap_N), residual_N, gap_N)


def settled(centred: Centred, status_N: Tensor, gap_N: Tensor) -> Int[Tensor, "N"]:
    """The status of rows, where those that stalled within what rounding explains have converged."""
    allowed_N = _GAP_OF_ROUNDING[gap_N.dtype] * (centred.z_NF.square().sum(1) + centred.scale)
    explained_N = (status_N == int(SimplexStatus.STALLED)) & (gap_N <= allowed_N)
    return torch.where(explained_N, int(SimplexStatus.CONVERGED), status_N)


def measure(
    problem: SimplexProblem, centred: Centred, prior_N: Tensor, indices_Nk: Tensor, weights_Nk: Tensor
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """KKT residual and duality gap of each row, (N,) each."""
    rows = (centred.z_NF, prior_N, indices_Nk, weights_Nk)
    if torch.compiler.is_compiling():
        found = [_measure_chunk(problem.strength, centred, *rows)]
    else:
        size = rows_at_once(len(problem.codebook_KF), indices_Nk.shape[1] * problem.z_NF.shape[1])
        chunks = zip(*(x.split(size) for x in rows), strict=True)
        found = [_measure_chunk(problem.strength, centred, *chunk) for chunk in chunks]
    residual_N, gap_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    usable_N = (indices_Nk >= 0).any(1)
    return torch.where(usable_N, residual_N, 0), torch.where(usable_N, gap_N, 0)


def _measure_chunk(
    strength: Tensor, centred: Centred, z_nF: Tensor, prior_n: Tensor, indices_nk: Tensor, weights_nk: Tensor
) -> tuple[Tensor, Tensor]:
    used_nk = indices_nk >= 0
    slots_nk = indices_nk.clamp(min=0)
    residual_nF = mix(weights_nk, slots_nk, centred.codebook_KF) - z_nF
    price_nK = residual_nF @ centred.codebook_KF.T
    price_nK = torch.where(centred.usable_K, price_nK, torch.inf)
    price_nK.scatter_add_(1, prior_n[:, None], (-strength).expand(z_nF.shape[0], 1))
    price_nK.scatter_add_(1, slots_nk, strength * weights_nk)
    lowest_n = price_nK.amin(1)
    on_support_nk = price_nK.gather(1, slots_nk)
    mean_n = (weights_nk * on_support_nk).sum(1)
    uneven_n = torch.where(used_nk, (on_support_nk - mean_n[:, None]).abs(), 0).amax(1)
    return torch.maximum(uneven_n, mean_n - lowest_n), (2 * (mean_n - lowest_n)).clamp(min=0)


def mix(weights_nk: Tensor, slots_nk: Tensor, codebook_KF: Tensor) -> Float[Tensor, "n F"]:
    """The sum of the codes at `slots_nk`, weighted."""
    return torch.bmm(weights_nk[:, None], codebook_KF[slots_nk])[:, 0]


def mean_price(
    strength: Tensor, residual_NF: Tensor, values_NF: Tensor, indices_Nk: Tensor, weights_Nk: Tensor, prior_N: Tensor
) -> Float[Tensor, "N"]:
    """The mean price of the codes in use, each by its share."""
    at_prior_N = torch.where(indices_Nk == prior_N[:, None], weights_Nk, 0).sum(1)
    return (residual_NF * values_NF).sum(1) + strength * (weights_Nk.square().sum(1) - at_prior_N)


def rounding(residual_NF: Tensor, z_NF: Tensor, longest: Tensor, strength: Tensor) -> Float[Tensor, "N"]:
    """Differences of prices that mean nothing, (N,), for codes of length at most `longest`."""
    eps = 4 * torch.finfo(z_NF.dtype).eps
    size_N = residual_NF.square().sum(1).sqrt() + eps * (longest + z_NF.square().sum(1).sqrt())
    return eps * (longest * size_N + strength)

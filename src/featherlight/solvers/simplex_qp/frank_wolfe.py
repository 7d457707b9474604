"""Mixtures of at most a few codes: fully corrective Frank-Wolfe in a fixed number of steps.

Legend of shapes: N rows, F features, K codes, k codes that a row may mix.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featherlight.solvers.simplex_qp.backward import attach, connect
from featherlight.solvers.simplex_qp.compiled import solve_compiled, use_kernels
from featherlight.solvers.simplex_qp.pricing import (
    Centred,
    centre,
    certified,
    mean_price,
    mix,
    nearest_codes,
    rounding,
    settled,
)
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem, SimplexSolution, SimplexStatus
from featherlight.solvers.simplex_qp.support import Mixtures, Program, add, at_prior, move, refine

MOST_CODES = 64
"""Above this `ActiveSet` is the method to take: it stops where no further code helps."""

MOVES_A_STEP = 2
"""Moves towards the best shares after each code, each of which drops at most one code."""


@dataclass(frozen=True, kw_only=True)
class FrankWolfe:
    """Mixtures of at most `max_codes` codes, taken one by one at the lowest price, with the best shares at each step.

    The first code is the prior. A row whose answer needs fewer codes converges; the others end with status SUPPORT_LIMIT,
    best on the codes they use. The gradient is that of the shares with the codes held fixed. The number of operations
    does not depend on the values, so that it compiles and exports; see `greedy_mixture`.

    Args:
        max_codes: k, in [1, K]; 2, 4 and 8 are usual.

    Cost: k products of (N, F) by (F, K), one less than that without its certificate.

    Source: fully corrective Frank-Wolfe, Lacoste-Julien and Jaggi 2015, arXiv 1511.05932, algorithm 4.
    """

    max_codes: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.max_codes <= MOST_CODES:
            raise ValueError(
                f"`max_codes` must be in [1, {MOST_CODES}]; got {self.max_codes}. To mix more codes take `ActiveSet()`, "
                "which uses as many as the row needs."
            )

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The solution of every row."""
        check_max_codes(self.max_codes, len(problem.codebook_KF))
        with torch.no_grad():
            centred = centre(problem.z_NF, problem.codebook_KF)
            if use_kernels(problem.z_NF):
                found = _compiled(problem, centred, self.max_codes, certify=True)
            else:
                found = _batched(problem, centred, self.max_codes)
        return connect(problem, found)


def mix_greedily(problem: SimplexProblem, *, max_codes: int) -> tuple[Tensor, Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """Values, indices and weights of `FrankWolfe(max_codes=k)` without its certificate, which costs a product with all codes.

    Args:
        problem: from `check_problem`, or parts that are known to fit.
        max_codes: k, at most K.

    Returns:
        As the solution's `values_NF`, `indices_Nk`, `weights_Nk`; differentiable alike.
    """
    with torch.no_grad():
        centred = centre(problem.z_NF, problem.codebook_KF)
        if use_kernels(problem.z_NF):
            prior_N, indices_Nk, weights_Nk, *_ = _compiled(problem, centred, max_codes, certify=False)
        else:
            prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N
            indices_Nk, weights_Nk = _greedy(problem, centred, prior_N, max_codes)
    values_NF, weights_Nk = attach(problem, prior_N, indices_Nk, weights_Nk)
    return values_NF, indices_Nk, weights_Nk


def _compiled(problem: SimplexProblem, centred: Centred, max_codes: int, *, certify: bool) -> Found:
    found = Found(
        *solve_compiled(problem, centred, width=max_codes, num_steps=max_codes - 1, moves=MOVES_A_STEP, certify=certify)
    )
    return found._replace(status_N=settled(centred, found.status_N, found.gap_N)) if certify else found


def _batched(problem: SimplexProblem, centred: Centred, max_codes: int) -> Found:
    """A row whose gap is no more than rounding has converged."""
    prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N
    indices_Nk, weights_Nk = _greedy(problem, centred, prior_N, max_codes)
    found = certified(
        problem, centred, prior_N, indices_Nk, weights_Nk, torch.full_like(prior_N, int(SimplexStatus.STALLED))
    )
    stopped_N = found.status_N == int(SimplexStatus.STALLED)
    return found._replace(status_N=torch.where(stopped_N, int(SimplexStatus.SUPPORT_LIMIT), found.status_N))


def check_max_codes(max_codes: int, num_codes: int) -> None:
    """A sentence where more codes are to be mixed than there are."""
    if max_codes > num_codes:
        raise ValueError(
            f"`max_codes` is {max_codes}, but the codebook has only {num_codes} codes. Lower it to at most {num_codes}."
        )


def greedy_mixture(
    z_NF: Float[Tensor, "N F"],
    codebook_KF: Float[Tensor, "K F"],
    strength: Float[Tensor, ""],
    *,
    max_codes: int,
    prior_N: Int[Tensor, "N"] | None = None,
) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The codes and shares of `FrankWolfe(max_codes=k)`, without gradient, check or certificate.

    A pure function of tensors whose operations are fixed by the shapes: matrix products, argmin, gather, and updates of
    rank one to k x k inverses in the dtype of `z_NF`, with no factorisation and no branch on values. It compiles without
    breaks and exports to ONNX.

    Args:
        z_NF: (N, F), float32 or float64.
        codebook_KF: (K, F), same dtype.
        strength: (), same dtype, above 0.
        max_codes: k, at most K.
        prior_N: (N,) int64; None is the nearest code.

    Returns:
        Indices, (N, k) int64, in order of falling share, -1 where fewer codes are used; and weights, (N, k).
    """
    with torch.no_grad():
        problem = SimplexProblem(z_NF, codebook_KF, strength, prior_N)
        centred = centre(z_NF, codebook_KF)
        prior_N = nearest_codes(centred) if prior_N is None else prior_N
        return _greedy(problem, centred, prior_N, max_codes)


def _greedy(problem: SimplexProblem, centred: Centred, prior_N: Tensor, max_codes: int) -> tuple[Tensor, Tensor]:
    strength = problem.strength
    program = Program(centred.codebook_KF, strength, centred.scale + strength)
    longest = centred.codebook_KF.square().sum(1).amax(0).sqrt()
    mixtures = at_prior(program, centred.z_NF, prior_N, max_codes)
    for step in range(1, max_codes):
        code_N, worth_N = _cheapest(program, centred, mixtures, prior_N, longest)
        mixtures, _, _ = add(program, mixtures, centred.z_NF, code_N, prior_N, worth_N)
        for _ in range(min(step, MOVES_A_STEP)):
            mixtures = move(mixtures).mixtures
    mixtures = refine(program, mixtures, centred.z_NF, prior_N)
    usable_N = (centred.usable_N & centred.usable_K[prior_N])[:, None]
    weights_Nk, order_Nk = torch.topk(torch.where(usable_N, mixtures.weights_nk, 0), max_codes, dim=1)
    return torch.where(weights_Nk > 0, mixtures.indices_nk.gather(1, order_Nk), -1), weights_Nk


def _cheapest(
    program: Program, centred: Centred, mixtures: Mixtures, prior_N: Tensor, longest: Tensor
) -> tuple[Int[Tensor, "N"], Bool[Tensor, "N"]]:
    """The unused code of the lowest price, and whether it would lower the objective by more than rounding."""
    indices_Nk, weights_Nk = mixtures.indices_nk, mixtures.weights_nk
    values_NF = mix(weights_Nk, indices_Nk.clamp(min=0), centred.codebook_KF)
    residual_NF = values_NF - centred.z_NF
    price_NK = torch.where(centred.usable_K, residual_NF @ centred.codebook_KF.T, torch.inf)
    at_prior_N = price_NK.gather(1, prior_N[:, None]) - program.strength
    price_NK = price_NK.scatter(1, prior_N[:, None], at_prior_N)
    blocked_Nk = torch.where(indices_Nk >= 0, indices_Nk, indices_Nk.amax(1, keepdim=True))
    price_NK = price_NK.scatter(1, blocked_Nk, torch.inf)
    code_N = torch.argmin(price_NK, 1)
    lowest_N = price_NK.gather(1, code_N[:, None])[:, 0]
    level_N = mean_price(program.strength, residual_NF, values_NF, indices_Nk, weights_Nk, prior_N)
    return code_N, level_N - lowest_N > rounding(residual_NF, centred.z_NF, longest, program.strength)

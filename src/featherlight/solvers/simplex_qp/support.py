"""The program on a few codes, for many rows at once: the state of a primal active-set method, and its three moves.

Everything is made of elementwise products and batched matrix products of a fixed shape, without any branch on values, so
that it compiles, exports, and gives each row the same bits whatever stands in the others.

Legend of shapes: n rows, k slots for codes, F features, K codes.

Each code is lengthened by one coordinate of sqrt(lift), and so is each row, which changes nothing where the shares sum to 1.
H = C_A C_A' + lift + strength I is then well conditioned as long as the codes of a support are affinely independent, and
taking a code in or out is an update of rank one to its inverse.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


class Mixtures(NamedTuple):
    """Which codes the rows mix, with what is needed to find the best shares.

    Attributes:
        indices_nk: the code in each slot, -1 where there is none.
        weights_nk: shares; 0 in free slots.
        free_nk: H^-1 (C_A z + lift + strength * prior), the minimiser whatever its sum; 0 in free slots.
        by_sum_nk: H^-1 1, along which the sum is set; 0 in free slots.
        inverse_nkk: of H on the slots in use; 0 in the rows and columns of free slots.
    """

    indices_nk: Int[Tensor, "n k"]
    weights_nk: Float[Tensor, "n k"]
    free_nk: Float[Tensor, "n k"]
    by_sum_nk: Float[Tensor, "n k"]
    inverse_nkk: Float[Tensor, "n k k"]

    def rows(self, which: Tensor) -> "Mixtures":
        """The state of some rows."""
        return Mixtures(*(x[which] for x in self))

    def widened(self, slots: int) -> "Mixtures":
        """The state with so many more free slots."""
        by_slot = (pad(self.indices_nk, (0, slots), value=-1), *(pad(x, (0, slots)) for x in self[1:4]))
        return Mixtures._make((*by_slot, pad(self.inverse_nkk, (0, slots, 0, slots))))


class Program(NamedTuple):
    """What the moves need of the problem, in the dtype of the work.

    Attributes:
        codebook_KF: centred codes; 0 where not usable.
        strength: ().
        lift: (), above 0.
    """

    codebook_KF: Float[Tensor, "K F"]
    strength: Float[Tensor, ""]
    lift: Float[Tensor, ""]


def at_prior(program: Program, z_nF: Tensor, prior_n: Tensor, num_slots: int) -> Mixtures:
    """All of each row on its prior code."""
    first_k = torch.arange(num_slots, device=z_nF.device) == 0
    code_nF = program.codebook_KF[prior_n]
    linear_n = (code_nF * z_nF).sum(1) + program.lift + program.strength
    curvature_n = code_nF.square().sum(1) + program.lift + program.strength
    return Mixtures(
        torch.where(first_k, prior_n[:, None], -1),
        first_k.to(z_nF.dtype).expand(z_nF.shape[0], -1).clone(),
        torch.where(first_k, (linear_n / curvature_n)[:, None], 0),
        torch.where(first_k, (1 / curvature_n)[:, None], 0),
        torch.where(first_k[:, None] & first_k, (1 / curvature_n)[:, None, None], 0),
    )


def best_shares(mixtures: Mixtures) -> Float[Tensor, "n k"]:
    """The minimiser on the codes in use among all shares that sum to 1, whatever their signs."""
    level_n = (1 - mixtures.free_nk.sum(1)) / mixtures.by_sum_nk.sum(1)
    return mixtures.free_nk + level_n[:, None] * mixtures.by_sum_nk


def refine(program: Program, mixtures: Mixtures, z_nF: Tensor, prior_n: Tensor) -> Mixtures:
    """Shares with the rounding of the inverses taken out, by one correction along the gradient at hand."""
    indices_nk, weights_nk, _, by_sum_nk, inverse_nkk = mixtures
    codes_nkF = program.codebook_KF[indices_nk.clamp(min=0)]
    residual_nF = torch.bmm(weights_nk[:, None], codes_nkF)[:, 0] - z_nF
    at_prior_nk = (indices_nk == prior_n[:, None]).to(weights_nk.dtype)
    gradient_nk = torch.bmm(codes_nkF, residual_nF[..., None])[..., 0] + program.strength * (weights_nk - at_prior_nk)
    uneven_nk = gradient_nk - (weights_nk * gradient_nk).sum(1, keepdim=True)
    change_nk = torch.bmm(inverse_nkk, uneven_nk[..., None])[..., 0]
    level_n = (change_nk.sum(1) - (weights_nk.sum(1) - 1)) / by_sum_nk.sum(1)
    better_nk = weights_nk - change_nk + level_n[:, None] * by_sum_nk
    return mixtures._replace(weights_nk=torch.where((better_nk < 0).any(1, keepdim=True), weights_nk, better_nk))


class Moved(NamedTuple):
    """The outcome of a move towards the best shares.

    Attributes:
        mixtures: with one code less in the rows that were blocked.
        blocked_n: whether a share reached 0 on the way.
        slot_n: whose share it was.
    """

    mixtures: Mixtures
    blocked_n: Bool[Tensor, "n"]
    slot_n: Int[Tensor, "n"]


def move(mixtures: Mixtures) -> Moved:
    """Goes to the best shares, or as far towards them as no share falls below 0, and drops the code that blocks."""
    weights_nk = mixtures.weights_nk
    target_nk = best_shares(mixtures)
    falling_nk = target_nk < 0
    room_nk = torch.where(falling_nk, weights_nk / torch.where(falling_nk, weights_nk - target_nk, 1), 2)
    slot_n = torch.argmin(room_nk, 1)
    step_n = room_nk.gather(1, slot_n[:, None])
    blocked_n = step_n[:, 0] < 2
    part_nk = weights_nk + step_n.clamp(max=1) * (target_nk - weights_nk)
    weights_nk = torch.where(blocked_n[:, None], part_nk, target_nk)
    dropped_nk = _one_hot(slot_n, mixtures) & blocked_n[:, None]
    weights_nk = torch.where(dropped_nk, 0, weights_nk.clamp(min=0))
    column_nk = torch.bmm(mixtures.inverse_nkk, dropped_nk.to(weights_nk.dtype)[..., None])[..., 0]
    pivot_n = torch.where(blocked_n, torch.where(dropped_nk, column_nk, 0).sum(1), 1)
    scaled_nk = column_nk / pivot_n[:, None]
    inverse_nkk = mixtures.inverse_nkk - scaled_nk[..., None] * column_nk[:, None]
    free_n, by_sum_n = (torch.where(dropped_nk, x, 0).sum(1, keepdim=True) for x in mixtures[2:4])
    kept_nk = ~dropped_nk
    left = Mixtures(
        torch.where(dropped_nk, -1, mixtures.indices_nk),
        weights_nk,
        torch.where(kept_nk, mixtures.free_nk - scaled_nk * free_n, 0),
        torch.where(kept_nk, mixtures.by_sum_nk - scaled_nk * by_sum_n, 0),
        torch.where(kept_nk[..., None] & kept_nk[:, None], inverse_nkk, 0),
    )
    return Moved(left, blocked_n, slot_n)


def add(
    program: Program,
    mixtures: Mixtures,
    z_nF: Tensor,
    code_n: Tensor,
    prior_n: Tensor,
    wanted_n: Bool[Tensor, "n"],
) -> tuple[Mixtures, Bool[Tensor, "n"], Int[Tensor, "n"]]:
    """Takes a code into the first free slot of the rows that want it, with share 0.

    Returns:
        The mixtures, the rows where it succeeded, which fails when no slot is free or when rounding hides what the code
        would add, and the slots.
    """
    indices_nk, _, free_nk, by_sum_nk, inverse_nkk = mixtures
    used_nk = indices_nk >= 0
    slot_n = torch.argmin(used_nk.to(torch.int64), 1)
    code_nF = program.codebook_KF[code_n]
    curvature_n = code_nF.square().sum(1) + program.lift + program.strength
    cross_nk = torch.bmm(program.codebook_KF[indices_nk.clamp(min=0)], code_nF[..., None])[..., 0] + program.lift
    cross_nk = torch.where(used_nk, cross_nk, 0)
    solved_nk = torch.bmm(inverse_nkk, cross_nk[..., None])[..., 0]
    pivot_n = curvature_n - (cross_nk * solved_nk).sum(1)
    eps = torch.finfo(pivot_n.dtype).eps
    done_n = wanted_n & ~used_nk.all(1) & (pivot_n > 64 * eps * curvature_n)
    new_nk = _one_hot(slot_n, mixtures) & done_n[:, None]
    vector_nk = torch.where(done_n[:, None], solved_nk, 0) - new_nk.to(solved_nk.dtype)
    scaled_nk = vector_nk / torch.where(done_n, pivot_n, 1)[:, None]
    linear_n = (
        (code_nF * z_nF).sum(1) + program.lift + torch.where(code_n == prior_n, program.strength, 0).to(z_nF.dtype)
    )
    added = Mixtures(
        torch.where(new_nk, code_n[:, None], indices_nk),
        mixtures.weights_nk,
        free_nk + scaled_nk * ((cross_nk * free_nk).sum(1) - linear_n)[:, None],
        by_sum_nk + scaled_nk * ((cross_nk * by_sum_nk).sum(1) - 1)[:, None],
        inverse_nkk + vector_nk[..., None] * scaled_nk[:, None],
    )
    return added, done_n, slot_n


def largest_first(indices_nk: Tensor, weights_nk: Tensor) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Slots in order of falling share, those without a share last and free."""
    order_nk = torch.argsort(weights_nk, dim=1, descending=True, stable=True)
    weights_nk = weights_nk.gather(1, order_nk)
    return torch.where(weights_nk > 0, indices_nk.gather(1, order_nk), -1), weights_nk


def _one_hot(slot_n: Tensor, mixtures: Mixtures) -> Bool[Tensor, "n k"]:
    slots_k = torch.arange(mixtures.indices_nk.shape[1], device=slot_n.device)
    return slot_n[:, None] == slots_k

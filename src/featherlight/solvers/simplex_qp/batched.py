"""The active-set method in torch's batched operations, for any device: rows that are solved leave the batch.

Legend of shapes: N rows, n rows still at work, F features, K codes, k codes that a row may mix.
"""

import torch
from torch import Tensor

from featherlight.solvers.simplex_qp.pricing import (
    Centred,
    certified,
    mean_price,
    mix,
    nearest_codes,
    rounding,
    rows_at_once,
)
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem, SimplexStatus
from featherlight.solvers.simplex_qp.support import Program, add, at_prior, largest_first, move, refine

_COMPACTION = 0.75
_FIRST_SLOTS = 12


def solve_batched(problem: SimplexProblem, centred: Centred, width: int, max_steps: int) -> Found:
    """The answers of all rows, a chunk of rows at a time."""
    work = torch.float32 if problem.z_NF.device.type == "mps" else torch.float64
    lift = (centred.scale + problem.strength).to(work)
    program = Program(centred.codebook_KF.to(work), problem.strength.to(work), lift)
    prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N.clone()
    num_codes, dim = problem.codebook_KF.shape
    size = rows_at_once(num_codes, 2 * min(width, 2 * dim) * (min(width, 2 * dim) + dim))
    chunks = zip(centred.z_NF.split(size), prior_N.split(size), strict=True)
    found = [_Rows(program, centred, z, prior, width).run(max_steps) for z, prior in chunks]
    indices_Nk, weights_Nk, status_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    return certified(problem, centred, prior_N, indices_Nk, weights_Nk.to(problem.z_NF.dtype), status_N)


class _Rows:
    """A chunk of rows and the state of those that are not yet solved."""

    def __init__(self, program: Program, centred: Centred, z_nF: Tensor, prior_n: Tensor, width: int) -> None:
        self.program = program
        self.prices_KF = centred.codebook_KF
        self.usable_K = centred.usable_K
        self.z_nF = z_nF.to(program.codebook_KF.dtype)
        self.prior_n = prior_n
        self.width = width
        self.mixtures = at_prior(program, self.z_nF, prior_n, min(width, _FIRST_SLOTS))
        self.number_n = torch.arange(z_nF.shape[0], device=z_nF.device)
        self.newest_n = torch.full_like(prior_n, -1)
        self.open_n = torch.ones_like(prior_n, dtype=torch.bool)
        self.indices_nk = torch.full((z_nF.shape[0], width), -1, device=z_nF.device)
        self.weights_nk = self.z_nF.new_zeros(z_nF.shape[0], width)
        self.status_n = torch.full_like(prior_n, int(SimplexStatus.STEP_LIMIT))
        self.longest = self.prices_KF.square().sum(1).max().sqrt()

    def run(self, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Steps until every row is solved."""
        for _ in range(max_steps):
            if not self._step():
                break
        self._store(self.open_n)
        return *largest_first(self.indices_nk, self.weights_nk), self.status_n

    def _step(self) -> bool:
        """One code in or out for each open row; False when none is open."""
        self.mixtures, blocked_n, slot_n = move(self.mixtures)
        useless_n = blocked_n & (slot_n == self.newest_n)
        code_n, worth_n = self._price()
        ready_n = self.open_n & ~blocked_n
        self._make_room(ready_n & worth_n)
        self.mixtures, added_n, added_slot_n = add(
            self.program, self.mixtures, self.z_nF, code_n, self.prior_n, ready_n & worth_n
        )
        self.newest_n = torch.where(added_n, added_slot_n, -1)
        full_n = (self.mixtures.indices_nk >= 0).all(1)
        self._close(ready_n & ~worth_n, SimplexStatus.CONVERGED)
        self._close(ready_n & worth_n & ~added_n & full_n, SimplexStatus.SUPPORT_LIMIT)
        self._close(ready_n & worth_n & ~added_n & ~full_n, SimplexStatus.STALLED)
        self._close(self.open_n & useless_n, SimplexStatus.STALLED)
        return self._compact()

    def _price(self) -> tuple[Tensor, Tensor]:
        """The code of the lowest price for each row, and whether it would lower the objective by more than rounding."""
        indices_nk, weights_nk = self.mixtures.indices_nk, self.mixtures.weights_nk
        slots_nk = indices_nk.clamp(min=0)
        dtype = self.prices_KF.dtype
        strength = self.program.strength.to(dtype)
        values_nF = mix(weights_nk, slots_nk, self.program.codebook_KF)
        residual_nF = values_nF - self.z_nF
        price_nK = residual_nF.to(dtype) @ self.prices_KF.T
        price_nK = torch.where(self.usable_K, price_nK, torch.inf)
        price_nK.scatter_add_(1, self.prior_n[:, None], (-strength).expand(price_nK.shape[0], 1))
        price_nK.scatter_add_(1, slots_nk, strength * weights_nk.to(dtype))
        code_n = torch.argmin(price_nK, 1)
        lowest_n = price_nK.gather(1, code_n[:, None])[:, 0]
        level_n = mean_price(self.program.strength, residual_nF, values_nF, indices_nk, weights_nk, self.prior_n)
        noise_n = rounding(residual_nF.to(dtype), self.z_nF.to(dtype), self.longest, strength)
        used_n = (indices_nk == code_n[:, None]).any(1)
        return code_n, (level_n - lowest_n > noise_n) & ~used_n

    def _make_room(self, wanting_n: Tensor) -> None:
        slots = self.mixtures.indices_nk.shape[1]
        if slots < self.width and bool((wanting_n & (self.mixtures.indices_nk >= 0).all(1)).any()):
            self.mixtures = self.mixtures.widened(min(slots, self.width - slots))

    def _close(self, which_n: Tensor, status: SimplexStatus) -> None:
        self.status_n[self.number_n[which_n]] = int(status)
        self._store(which_n)
        self.open_n = self.open_n & ~which_n

    def _compact(self) -> bool:
        num_open = int(self.open_n.sum())
        if num_open <= _COMPACTION * self.open_n.shape[0]:
            keep = self.open_n.nonzero()[:, 0]
            self.mixtures = self.mixtures.rows(keep)
            self.z_nF, self.prior_n, self.number_n = self.z_nF[keep], self.prior_n[keep], self.number_n[keep]
            self.newest_n, self.open_n = self.newest_n[keep], self.open_n[keep]
        return num_open > 0

    def _store(self, which_n: Tensor) -> None:
        closing = self.mixtures.rows(which_n)
        closing = refine(self.program, closing, self.z_nF[which_n], self.prior_n[which_n])
        number_n, slots = self.number_n[which_n], closing.indices_nk.shape[1]
        self.indices_nk[number_n, :slots] = closing.indices_nk
        self.weights_nk[number_n, :slots] = closing.weights_nk

"""How codes learn: by moving averages of the rows they stand for, or by gradients.

A part says how; `part.attach(codebook)` makes the module that does it and keeps the statistics.

Legend of shapes: B codebooks, N rows, F features, K codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.codebook import Codebook
from featherlight.nn.vector_quantizers.dead_codes import ReplaceDead
from featherlight.nn.vector_quantizers.kmeans import Start
from featherlight.nn.vector_quantizers.processes import num_processes, sum_over_processes

_UNUSED = 1e-3  # rows a batch, under which a moving average says nothing any more


class Assigned(NamedTuple):
    """One training batch and the codes of its rows.

    Attributes:
        rows_BNF: as the rule of assignment prepared them; masked rows are 0.
        indices_BN: in each book, from 0.
        chosen_BNF: the codes.
        mask_N: True at rows that count, or None.
    """

    rows_BNF: Float[Tensor, "B N F"]
    indices_BN: Int[Tensor, "B N"]
    chosen_BNF: Float[Tensor, "B N F"]
    mask_N: Bool[Tensor, "N"] | None


class Learner(nn.Module):
    """Abstract: statistics of a codebook's use, and what moves its codes."""

    loss_weight: float = 0.0
    """Weight of the mean squared error whose gradient moves the codes; 0 for none."""

    writes_codes: bool = True
    """Whether `update` may set codes, so that a forward pass in training is not the same a second time."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Learner":
        """As torch.nn.Module does, but statistics stay in float32 or more: counts outgrow half precision."""
        precise = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in precise.items():
            after = self._buffers[name]
            assert after is not None
            if after.is_floating_point() and after.element_size() < 4:
                self._buffers[name] = before.to(after.device)
        return self

    def restart(self, codebook: Codebook, start: Start) -> None:
        """Forgets what was learned if `codebook` started again, and takes up how many rows each code stood for."""
        raise NotImplementedError

    def update(self, codebook: Codebook, batch: Assigned) -> None:
        """Learns from a batch, in place and without a gradient; in all processes at the same time."""
        raise NotImplementedError


class Learning(Protocol):
    """A part that says how codes learn, such as `EmaUpdate`."""

    def attach(self, codebook: Codebook) -> Learner:
        """The module that does so for one codebook."""
        ...


@dataclass(frozen=True, kw_only=True)
class EmaUpdate:
    """Codes are moving averages of the rows they stood for.

    Args:
        decay: share of the past that stays at each batch, in [0, 1). 0.9 follows an encoder that learns; 0.99, which is
            common, lags behind it.
        eps: rows that are added to the count of each code before it divides.
        replace: what becomes of codes without use; None leaves them.

    Source: van den Oord et al. 2017, appendix A.1; the counts smoothed as in its published code. There, codes without use
    shrink to 0 in the end; here they stay.
    """

    decay: float = 0.9
    eps: float = 1e-5
    replace: ReplaceDead | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or not self.eps > 0:
            raise ValueError(
                f"`decay` must be in [0, 1) and `eps` above 0; got {self.decay} and {self.eps}. For codes that do not "
                "move, call `eval()` on the quantizer."
            )

    def attach(self, codebook: Codebook) -> "EmaLearner":
        """See `Learning`.

        Raises:
            ValueError: the codebook is learnable.
        """
        if codebook.learnable:
            raise ValueError(
                "EmaUpdate writes codes itself, but the codebook was made with `learnable=True`, for an optimizer. Make it "
                "with `learnable=False`, or use `GradientUpdate`."
            )
        return EmaLearner(self, codebook)


@dataclass(frozen=True, kw_only=True)
class GradientUpdate:
    """Codes are parameters, pulled to the rows they stand for by a squared error in `aux_loss`.

    Args:
        weight: of that error.
        replace: what becomes of codes without use; None leaves them.
        decay: of the moving average of use, which only `replace` looks at.

    Give codes a learning rate of their own with `codebook_parameter_groups`: with Adam, `weight` does not change their speed.
    Source: van den Oord et al. 2017, equation 3, second term.
    """

    weight: float = 1.0
    replace: ReplaceDead | None = None
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not self.weight > 0 or not 0 <= self.decay < 1:
            raise ValueError(f"`weight` must be above 0 and `decay` in [0, 1); got {self.weight} and {self.decay}.")

    def attach(self, codebook: Codebook) -> "GradientLearner":
        """See `Learning`.

        Raises:
            ValueError: the codebook is not learnable.
        """
        if not codebook.learnable:
            raise ValueError(
                "GradientUpdate needs codes that an optimizer moves, but the codebook was made with `learnable=False`. Make "
                "it with `learnable=True`, or use `EmaUpdate`."
            )
        return GradientLearner(self, codebook)


class EmaLearner(Learner):
    """Made by `EmaUpdate`.

    Attributes:
        counts: (B * K,) moving average of the rows a batch of each code.
        sums: (B * K, F) moving average of the sum of those rows.
        steps: (), int64; batches learned from.
    """

    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, part: EmaUpdate, codebook: Codebook) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("counts", torch.ones_like(codebook.weight[:, 0]))
        self.register_buffer("sums", codebook.weight.detach().clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, codebook: Codebook, start: Start) -> None:
        """See `Learner`."""
        _restart_counts(self.counts, start)
        self.sums.copy_(torch.where(start.restarted, codebook.weight * self.counts[:, None], self.sums))

    @torch.no_grad()
    def update(self, codebook: Codebook, batch: Assigned) -> None:
        """See `Learner`."""
        self.steps.add_(1)
        counts, sums = _totals(codebook, batch)
        self.counts.lerp_(counts.to(self.counts.dtype), 1 - self.part.decay)
        self.sums.lerp_(sums.to(self.sums.dtype), 1 - self.part.decay)
        means = self.sums / self._smoothed(codebook)[:, None]
        codebook.weight.copy_(torch.where(self.counts[:, None] < _UNUSED, codebook.weight, means))
        if self.part.replace is not None:
            dead, rows = _replace(self.part.replace, codebook, self.counts, batch, self.steps)
            self.sums.copy_(torch.where(dead[:, None], rows * self.part.replace.threshold, self.sums))

    def _smoothed(self, codebook: Codebook) -> Tensor:
        """Counts plus `eps`, scaled to the sum they had before, book by book."""
        counts_BK = self.counts.view(codebook.num_books, -1)
        total_B1 = counts_BK.sum(1, keepdim=True)
        return ((counts_BK + self.part.eps) / (total_B1 + self.part.eps * codebook.num_codes) * total_B1).flatten()


class GradientLearner(Learner):
    """Made by `GradientUpdate`.

    Attributes:
        counts: (B * K,) moving average of the rows a batch of each code; only kept up for `replace`.
        steps: (), int64; batches learned from.
    """

    counts: Tensor
    steps: Tensor

    def __init__(self, part: GradientUpdate, codebook: Codebook) -> None:
        super().__init__()
        self.part = part
        self.loss_weight, self.writes_codes = part.weight, part.replace is not None
        self.register_buffer("counts", torch.ones_like(codebook.weight[:, 0].detach()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, codebook: Codebook, start: Start) -> None:
        """See `Learner`."""
        _restart_counts(self.counts, start)

    @torch.no_grad()
    def update(self, codebook: Codebook, batch: Assigned) -> None:
        """See `Learner`."""
        if self.part.replace is None:
            return
        self.steps.add_(1)
        counts, _ = _totals(codebook, batch)
        self.counts.lerp_(counts.to(self.counts.dtype), 1 - self.part.decay)
        _replace(self.part.replace, codebook, self.counts, batch, self.steps)


def _restart_counts(counts: Tensor, start: Start) -> None:
    counts.copy_(torch.where(start.restarted, start.counts_BK.flatten().to(counts.dtype), counts))


def _totals(codebook: Codebook, batch: Assigned) -> tuple[Tensor, Tensor]:
    """Rows of each code and their sum over all processes, (B * K,) and (B * K, F)."""
    rows = batch.rows_BNF.detach().flatten(0, 1)
    indices = batch.indices_BN
    if codebook.num_books > 1:
        indices = indices + codebook.num_codes * torch.arange(codebook.num_books, device=rows.device)[:, None]
    indices = indices.flatten()
    num_codes = codebook.num_books * codebook.num_codes
    ones = torch.ones_like(rows[:, 0])
    if batch.mask_N is not None:
        ones = batch.mask_N.to(rows.dtype).repeat(codebook.num_books)
    counts = rows.new_zeros(num_codes).index_add_(0, indices, ones)
    sums = _sum_rows(rows, indices, num_codes)
    if num_processes() == 1:
        return counts, sums
    total = sum_over_processes(torch.cat((counts[:, None], sums), 1))
    return total[:, 0], total[:, 1:]


def _sum_rows(rows: Tensor, indices: Tensor, num_codes: int) -> Tensor:
    """Sum of the rows of each index, always in the same order: adding with atomics, as a GPU does, would not be."""
    if rows.device.type == "cpu":
        return rows.new_zeros(num_codes, rows.shape[1]).index_add_(0, indices, rows)
    return torch.ops.aten.embedding_dense_backward(rows, indices, num_codes, -1, False)


def _replace(
    replace: ReplaceDead, codebook: Codebook, counts: Tensor, batch: Assigned, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes new codes and their counts; which they are, (B * K,), and the rows, (B * K, F)."""
    counts_BK = counts.view(codebook.num_books, -1)
    if not torch.compiler.is_compiling() and not bool((counts_BK < replace.threshold).any()):
        return torch.zeros_like(counts, dtype=torch.bool), codebook.weight.detach()
    rows_BNF = batch.rows_BNF.detach()
    errors_BN = (rows_BNF - batch.chosen_BNF.detach()).square().sum(2)
    dead_BK, rows_BKF = replace(counts_BK, rows_BNF, errors_BN, batch.mask_N, step)
    dead, rows = dead_BK.flatten(), rows_BKF.flatten(0, 1).to(codebook.weight.dtype)
    codebook.weight.copy_(torch.where(dead[:, None], rows, codebook.weight))
    counts.copy_(counts.masked_fill(dead, replace.threshold))
    return dead, rows

"""Codes that no row has needed for long start again at rows that are badly served.

Legend of shapes: B codebooks, N rows, F features, K codes, M rows that may become codes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featherlight.functional import philox_4x32
from featherlight.nn.vector_quantizers.processes import num_processes

_WORDS = 2.0**32


@dataclass(frozen=True, kw_only=True)
class ReplaceDead:
    """Moves codes whose use fell under a threshold onto rows of the batch.

    Rows are drawn without repetition, in proportion to their squared error, as k-means++ does; rows that a code meets
    exactly are never drawn. Where there are more dead codes than such rows, some wait for the next batch.

    Args:
        threshold: moving average of the rows a batch that a code gets, under which it is dead; also the use that it
            starts again with.
        seed: of the drawing, together with the number of the step; nothing is drawn from torch's generators.
    """

    threshold: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(
                f"`threshold` must be above 0, in rows a batch; got {self.threshold}. Leave `replace=None` to keep dead codes."
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"`seed` must be in [0, 2**64); got {self.seed}.")

    def __call__(
        self,
        counts_BK: Float[Tensor, "B K"],
        rows_BNF: Float[Tensor, "B N F"],
        errors_BN: Float[Tensor, "B N"],
        mask_N: Bool[Tensor, "N"] | None,
        step: Int[Tensor, ""],
    ) -> tuple[Bool[Tensor, "B K"], Float[Tensor, "B K F"]]:
        """Which codes are replaced, and by what; the same in all processes, whose rows all may be drawn."""
        dead_BK = counts_BK < self.threshold
        if mask_N is not None:
            errors_BN = errors_BN.masked_fill(~mask_N, 0.0)
        keys_BM, rows_BMF = self._candidates(rows_BNF, errors_BN, counts_BK.shape[1], step)
        order_BK = dead_BK.cumsum(1) - 1
        place_BK = order_BK.clamp(0, keys_BM.shape[1] - 1)
        usable_BK = keys_BM.gather(1, place_BK) > -torch.inf
        new_BKF = rows_BMF.gather(1, place_BK[..., None].expand(-1, -1, rows_BMF.shape[2]))
        return dead_BK & usable_BK & (order_BK < keys_BM.shape[1]), new_BKF

    def _candidates(self, rows_BNF: Tensor, errors_BN: Tensor, num_codes: int, step: Tensor) -> tuple[Tensor, Tensor]:
        """Up to `num_codes` rows in the order of the drawing, and their keys; of all processes."""
        keys_BN = errors_BN.double().log() + self._gumbel(errors_BN, step)
        keys_BM, rows_BMF = _best(keys_BN, rows_BNF, min(num_codes, keys_BN.shape[1]))
        processes = num_processes()
        if processes == 1:
            return keys_BM, rows_BMF
        missing = num_codes - keys_BM.shape[1]
        keys_BM = torch.nn.functional.pad(keys_BM, (0, missing), value=-torch.inf)
        rows_BMF = torch.nn.functional.pad(rows_BMF, (0, 0, 0, missing))
        return _best(_gathered(keys_BM, processes), _gathered(rows_BMF, processes), num_codes)

    def _gumbel(self, like_BN: Tensor, step: Tensor) -> Tensor:
        """Noise for each row of each book, addressed by step and number of the row among those of all processes."""
        books, rows = like_BN.shape
        first = rows * dist.get_rank() if num_processes() > 1 else 0
        row_BN = torch.arange(first, first + rows, device=like_BN.device).expand(books, -1)
        book_BN = torch.arange(books, device=like_BN.device)[:, None].expand(-1, rows)
        zero_BN = torch.zeros_like(row_BN)
        counter = torch.stack((row_BN, book_BN, zero_BN, zero_BN + step), -1)
        word_BN = philox_4x32(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))[..., 0]
        return -(-((word_BN.double() + 0.5) / _WORDS).log()).log()


def _best(keys_BN: Tensor, rows_BNF: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best = keys_BN.topk(count, dim=1)
    return best.values, rows_BNF.gather(1, best.indices[..., None].expand(-1, -1, rows_BNF.shape[2]))


def _gathered(part: Tensor, processes: int) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(processes)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, 1)

"""Codes from data: k-means++ seeding, then Lloyd's iterations, on a few of the first batches.

Legend of shapes: B codebooks, N rows, M rows that are used, F features, K codes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.processes import num_processes

_MAX_ROUNDS = 256
_JITTER = 1e-2  # of the standard deviation of the rows, where there are more codes than rows


class Start(NamedTuple):
    """What came of a batch that codes might start from.

    Attributes:
        restarted: (), bool; whether codes were set from it.
        counts_BK: how many rows are nearest to each code, at least 1; only meant where codes were set.
    """

    restarted: Tensor
    counts_BK: Tensor


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """Starts codes at the means of clusters of the first batch, and again of the 2nd, 4th, 8th, ... batch.

    An encoder that is still untrained moves its latents away from codes that were set once; the few codes that stay in
    reach then take them all. Starting again while it moves fastest keeps all codes in use, with no resets later.

    Learnable codes are overwritten as well, while an optimizer keeps the moments of those before them; Adam's are forgotten
    after about ten steps, of at most its learning rate each. Where the encoder is trained already, take `batches=1`.

    Args:
        batches: the last batch that codes may start from; 1 for the first alone.
        iterations: of Lloyd's algorithm.
        rows_per_code: at most so many rows for each code are looked at, drawn from the batch.
        seed: of the seeding; the same rows and seed give the same codes.

    Cost of a start: about K / max(1, K // 256) products of the rows by one to K // 256 codes, and `iterations` searches.
    Compiled code asks each batch in training whether codes start from it, on a CUDA device with a wait, until the next
    `train()` or `eval()` of the model after the last one.
    Source: Arthur and Vassilvitskii, k-means++ (2007); above 256 codes, several are drawn at once, as in k-means|| of
    Bahmani et al. (2012). Starting again: Łańcucki et al. 2020, "Robust training of vector quantized bottleneck models".
    """

    batches: int = 128
    iterations: int = 10
    rows_per_code: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batches < 1 or self.iterations < 0 or self.rows_per_code < 1:
            raise ValueError(
                "k-means takes `batches` and `rows_per_code` from 1 on, and `iterations` from 0 on; got "
                f"{self.batches}, {self.rows_per_code} and {self.iterations}."
            )

    def __call__(
        self,
        codes_BKF: Float[Tensor, "B K F"],
        rows_BNF: Float[Tensor, "B N F"],
        mask_N: Bool[Tensor, "N"] | None,
        batch: Int[Tensor, ""],
    ) -> Start:
        """Writes new codes if it is time. Rows of all processes count, so that all get the same codes.

        Where rows are fewer than codes, or alike, the codes that are left over are rows moved by a little noise. From a
        batch in which no row counts, codes do not start.

        Args:
            codes_BKF: those so far, written in place.
            rows_BNF: what the codes of each book will stand for.
            mask_N: True at the rows that count, for all books.
            batch: the number of the batch, from 1.

        Raises:
            ValueError: a row is not finite.
        """
        settings = (self.batches, self.iterations, self.rows_per_code, self.seed)
        return Start(*_start_codes(codes_BKF.detach(), rows_BNF.detach(), mask_N, batch, *settings))


@torch.library.custom_op("featherlight::kmeans_codes", mutates_args=("codes_BKF",))
def _start_codes(
    codes_BKF: Tensor,
    rows_BNF: Tensor,
    mask_N: Tensor | None,
    batch: Tensor,
    batches: int,
    iterations: int,
    rows_per_code: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """One operator for torch.compile, since what it does depends on values: whether codes were written, and counts."""
    number = int(batch)
    untouched = torch.tensor(False, device=batch.device), torch.ones_like(codes_BKF[..., 0])
    if number > batches or number & (number - 1):
        return untouched
    rows = _of_all_processes(rows_BNF if mask_N is None else rows_BNF[:, mask_N])
    num_codes, num_rows = codes_BKF.shape[1], rows.shape[1]
    if num_rows == 0:
        return untouched
    generator = torch.Generator(rows.device).manual_seed(seed)
    if num_rows > num_codes * rows_per_code:
        used = torch.randperm(num_rows, generator=generator, device=rows.device)[: num_codes * rows_per_code]
        rows = rows[:, used]
    _check(rows)
    books = [_kmeans(book, num_codes, iterations, generator) for book in rows.unbind()]
    codes, counts = (torch.stack(parts).to(codes_BKF.dtype) for parts in zip(*books, strict=True))
    codes_BKF.copy_(codes)
    return torch.tensor(True, device=batch.device), counts.clamp(min=1.0)


@_start_codes.register_fake
def _(
    codes_BKF: Tensor,
    rows_BNF: Tensor,
    mask_N: Tensor | None,
    batch: Tensor,
    batches: int,
    iterations: int,
    rows_per_code: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    return batch.new_empty((), dtype=torch.bool), torch.empty_like(codes_BKF[..., 0])


def _of_all_processes(rows_BNF: Tensor) -> Tensor:
    """The rows of all processes, by rank; each may have another number of them."""
    processes = num_processes()
    if processes == 1:
        return rows_BNF
    length = torch.tensor([rows_BNF.shape[1]], device=rows_BNF.device)
    lengths = [torch.zeros_like(length) for _ in range(processes)]
    dist.all_gather(lengths, length)
    sizes = [int(one) for one in lengths]
    padded = rows_BNF.new_zeros(rows_BNF.shape[0], max(sizes), rows_BNF.shape[2])
    padded[:, : rows_BNF.shape[1]] = rows_BNF
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)


def _check(rows_BMF: Tensor) -> None:
    if not bool(torch.isfinite(rows_BMF).all()):
        raise ValueError(
            "The batch has vectors that are not finite, so codes cannot start from data. Look for a division by "
            "zero before the quantizer, or for inputs that were not normalised."
        )


def _kmeans(rows_MF: Tensor, num_codes: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    codes_KF = _seed_codes(rows_MF, num_codes, generator)
    counts_K = rows_MF.new_zeros(num_codes)
    for step in range(iterations + 1):
        indices_M = nearest_codes(rows_MF, codes_KF)
        counts_K = counts_K.zero_().index_add_(0, indices_M, torch.ones_like(rows_MF[:, 0]))
        if step < iterations:
            sums_KF = torch.zeros_like(codes_KF).index_add_(0, indices_M, rows_MF)
            means_KF = sums_KF / counts_K.clamp(min=1)[:, None]
            codes_KF = torch.where(counts_K[:, None] > 0, means_KF, codes_KF)
    return codes_KF, counts_K


def _seed_codes(rows_MF: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Rows drawn with probabilities in proportion to their squared distance to the codes drawn before."""
    codes_KF = rows_MF.new_empty(num_codes, rows_MF.shape[1])
    distances_M = torch.full_like(rows_MF[:, 0], torch.inf)
    weights_M = torch.ones_like(distances_M)
    spread_F = rows_MF.std(0, correction=0)
    start = 0
    while start < num_codes:
        drawn = min(max(1, num_codes // _MAX_ROUNDS) if start else 1, num_codes - start, int((weights_M > 0).sum()))
        if drawn == 0:
            missing = num_codes - start
            rows = torch.randint(len(rows_MF), (missing,), generator=generator, device=rows_MF.device)
            noise = torch.randn(
                missing, rows_MF.shape[1], generator=generator, device=rows_MF.device, dtype=rows_MF.dtype
            )
            codes_KF[start:] = rows_MF[rows] + _JITTER * (spread_F + 0.1 * rows_MF.abs().mean()) * noise
            return codes_KF
        chosen = _draw(weights_M, drawn, generator)
        codes_KF[start : start + drawn] = rows_MF[chosen]
        new_KF = rows_MF[chosen]
        nearest = nearest_codes(rows_MF, new_KF)
        distances_M = torch.minimum(distances_M, (rows_MF - new_KF[nearest]).square().sum(1))
        distances_M[chosen] = 0.0
        weights_M = distances_M
        start += drawn
    return codes_KF


def _draw(weights_M: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different rows by their weights: the greatest of log weight plus Gumbel noise, any number of rows."""
    uniform = torch.rand(weights_M.shape, generator=generator, device=weights_M.device, dtype=torch.float64)
    keys = weights_M.double().log() - (-uniform.clamp(min=1e-300).log()).log()
    return keys.topk(count).indices

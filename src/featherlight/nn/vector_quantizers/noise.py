"""Random numbers for quantizers in training: addressed by (seed, draw, row, number), never from a global generator.

Legend of shapes: N rows, D numbers of a row, W blocks of four random words that hold them.
"""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.functional import philox_4x32
from featherlight.nn.vector_quantizers.processes import num_processes
from featherlight.nn.vector_quantizers.recomputation import refuse_recomputation

_BITS = 23
"""Of a uniform number: with half a step added it is exact in float32, above 0 and below 1."""

_BLOCKS_AT_ONCE = 1 << 15
"""So many lie in cache, which makes the generator three times as fast; compiled code holds no intermediates anyway."""


class NoiseStream(nn.Module):
    """Numbers of a counter-based generator, one row of them for each vector of a batch.

    A draw is not repeated, so that layers which draw must stay outside of `torch.utils.checkpoint` in training; those are
    told by a ValueError.

    The rows of several processes follow each other in the order of the processes: with batches of equal size they draw
    what one process draws for the whole batch. A row's numbers do not depend on how many others there are.

    Args:
        seed: key of the generator, in [0, 2**64).

    Attributes:
        seed: as given.
        draws: how often was drawn, () int64; it is saved with the module, so that a resumed run goes on as if it had not
            stopped. Each draw adds one.

    Raises:
        ValueError: a seed that does not fit in 64 bits.

    Two streams of one seed are the same, so quantizers in one model need seeds of their own. Cost: about 30 operations of
    int64 a number, two to three times as much as a sequential generator; less than one under torch.compile.
    Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """

    draws: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"`seed` must fit in 64 bits without sign; got {seed}. Pass a value in [0, 2**64).")
        self.seed = seed
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def uniform(self, num_rows: int, num_columns: int) -> Float[Tensor, "N D"]:
        """Numbers above 0 and below 1, float32, (num_rows, num_columns), on the device of the module.

        Raises:
            ValueError: called again by a backward pass, see `refuse_recomputation`.
        """
        refuse_recomputation("random numbers")
        rank = dist.get_rank() if num_processes() > 1 else 0
        rows_N = torch.arange(num_rows, device=self.draws.device) + rank * num_rows
        chunk = max(_BLOCKS_AT_ONCE // max(-(-num_columns // 4), 1), 1)
        if torch.compiler.is_compiling() or num_rows <= chunk:
            u_ND = self._numbers(rows_N, num_columns)
        else:
            u_ND = torch.cat([self._numbers(some, num_columns) for some in rows_N.split(chunk)])
        self.draws.add_(1)
        return u_ND

    def normal(self, num_rows: int, num_columns: int) -> Float[Tensor, "N D"]:
        """Standard normal numbers (Box and Muller), float32, (num_rows, num_columns)."""
        half = -(-num_columns // 2)
        u_ND = self.uniform(num_rows, 2 * half)
        radius, angle = (-2.0 * u_ND[:, :half].log()).sqrt(), (2.0 * math.pi) * u_ND[:, half:]
        return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :num_columns]

    def gumbel(self, num_rows: int, num_columns: int) -> Float[Tensor, "N D"]:
        """Standard Gumbel numbers, float32, (num_rows, num_columns)."""
        return -(-self.uniform(num_rows, num_columns).log()).log()

    def _numbers(self, rows_N: Tensor, num_columns: int) -> Float[Tensor, "N D"]:
        """Uniform numbers of some rows of the present draw."""
        blocks_W = torch.arange(-(-num_columns // 4), device=rows_N.device)
        rows_N1 = rows_N[:, None]
        counter_NW4 = torch.stack(
            torch.broadcast_tensors(blocks_W, rows_N1 & 0xFFFFFFFF, rows_N1 >> 32, self.draws & 0xFFFFFFFF), dim=-1
        )
        words_ND = philox_4x32(counter_NW4, (self.seed & 0xFFFFFFFF, self.seed >> 32)).flatten(1)[:, :num_columns]
        return ((words_ND >> (32 - _BITS)).float() + 0.5) * 2.0**-_BITS

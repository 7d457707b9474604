"""Which code stands for a row: the nearest one, by distance or by angle.

Legend of shapes: N rows, F features, K codes, n rows or k codes of a chunk, W codes of a block; ... are codebooks, each
with its own rows, or nothing.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CPU_CHUNK = 2**20  # scores that are held at a time, for each thread: 4 MB of float32
_DEVICE_CHUNK = 2**27
_TRACED_CODES = 2048
_BLOCK = 64


class Assignment(Protocol):
    """A rule that chooses one code for each row."""

    def prepare(self, vectors: Float[Tensor, "... F"]) -> Tensor:
        """Rows or codes as the rule sees them, with a gradient; values are made of prepared codes."""
        ...

    def __call__(self, rows: Float[Tensor, "... N F"], codes: Float[Tensor, "... K F"]) -> Int[Tensor, "... N"]:
        """The code of each row; both prepared. No gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The code at the least Euclidean distance."""

    def prepare(self, vectors: Float[Tensor, "... F"]) -> Tensor:
        """`vectors` themselves."""
        return vectors

    def __call__(self, rows: Float[Tensor, "... N F"], codes: Float[Tensor, "... K F"]) -> Int[Tensor, "... N"]:
        """See `nearest_codes`."""
        return nearest_codes(rows, codes)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """The code at the least angle; rows and codes are brought to length 1, and so are the values."""

    def prepare(self, vectors: Float[Tensor, "... F"]) -> Tensor:
        """`vectors` at length 1; those shorter than 1e-6 are divided by 1e-6."""
        return torch.nn.functional.normalize(vectors, dim=-1, eps=1e-6)

    def __call__(self, rows: Float[Tensor, "... N F"], codes: Float[Tensor, "... K F"]) -> Int[Tensor, "... N"]:
        """See `greatest_scores`."""
        return greatest_scores(rows, codes, None)


def nearest_codes(rows: Float[Tensor, "... N F"], codes: Float[Tensor, "... K F"]) -> Int[Tensor, "... N"]:
    """The code at the least Euclidean distance to each row; of equally near ones the first.

    Args:
        rows: float32 or float64; nothing or one axis before N, the same as before K.
        codes: same dtype.

    Codes are taken from their mean first, so that latents far from 0 lose no digits.
    Cost: one product of rows and codes, and a pass over it while it lies in cache: no root, no (N, K) matrix.
    """
    codes = codes.detach()
    mean = codes.mean(-2, keepdim=True)
    codes = codes - mean
    return greatest_scores(rows, codes, -(codes * (mean + 0.5 * codes)).sum(-1))


def greatest_scores(
    rows: Float[Tensor, "... N F"], codes: Float[Tensor, "... K F"], bias: Float[Tensor, "... K"] | None
) -> Int[Tensor, "... N"]:
    """The code with the greatest product with each row, plus a number for each code; of equal ones the first."""
    rows, codes = rows.detach(), codes.detach()
    if rows.ndim == 3 and rows.shape[0] == 1:
        return greatest_scores(rows[0], codes[0], None if bias is None else bias[0])[None]
    if torch.compiler.is_compiling():
        return _by_codes(rows, codes, bias)
    books = rows[..., 0, 0].numel() if rows.shape[-2] else 1
    budget = _CPU_CHUNK * torch.get_num_threads() if rows.device.type == "cpu" else _DEVICE_CHUNK
    chunk = max(budget // (books * codes.shape[-2]), 16)
    if rows.shape[-2] <= chunk:
        return _argmax(_scores(rows, codes, bias))
    return torch.cat([_argmax(_scores(part, codes, bias)) for part in rows.split(chunk, -2)], -1)


def _by_codes(rows: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
    """For torch.compile and torch.export, where the number of rows may be unknown: chunks of codes."""
    if codes.shape[-2] <= _TRACED_CODES:
        return _scores(rows, codes, bias).argmax(-1)
    best, indices = None, None
    for start in range(0, codes.shape[-2], _TRACED_CODES):
        some = slice(start, start + _TRACED_CODES)
        scores = _scores(rows, codes[..., some, :], None if bias is None else bias[..., some])
        chosen = scores.argmax(-1)
        greatest = scores.amax(-1)
        if best is None or indices is None:
            best, indices = greatest, chosen
        else:
            indices = torch.where(greatest > best, chosen + start, indices)
            best = torch.maximum(greatest, best)
    assert indices is not None
    return indices


def _scores(rows: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return rows @ codes.mT
    if rows.ndim == 2:
        return torch.addmm(bias, rows, codes.mT)
    return (rows @ codes.mT).add_(bias[..., None, :])


def _argmax(scores: Tensor) -> Tensor:
    """The first greatest entry along the last axis. On a CPU a vectorised maximum of blocks first, which is faster."""
    num_codes = scores.shape[-1]
    if scores.device.type != "cpu" or num_codes % _BLOCK or num_codes < 4 * _BLOCK:
        return scores.argmax(-1)
    blocks = scores.unflatten(-1, (-1, _BLOCK))
    block = blocks.amax(-1).argmax(-1)
    wide = block[..., None, None].expand(*block.shape, 1, _BLOCK)
    return block * _BLOCK + blocks.gather(-2, wide).squeeze(-2).argmax(-1)

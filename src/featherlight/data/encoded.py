"""Tokenised text, held flat, and batches of it.

Axes: B rows of a batch, T tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featherlight.data.text import TextRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ROWS = 2048
_MOST_LOST_UNASKED = 0.01
_IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedText:
    """The tokens of N rows in one flat tensor: 4 bytes a token and 8 a row, and no padding until a batch is made.

    Args:
        input_ids: tokens of all rows, one row after the other, int32, (num_tokens,).
        offsets: where each row begins, and the end of the last, int64, (N + 1,).
        token_type_ids: which text of a pair a token is of, uint8, (num_tokens,); None where the tokenizer gives none.
        targets: what to predict, one a row, (N,); None where there is nothing, or where `is_causal`.
        is_causal: the labels are the tokens themselves, as causal language models want them.
        pad_id: the token that fills short rows of a batch.
        padding_side: the side on which they are filled.
        num_truncated_rows: rows that lost tokens to the length limit.
        num_truncated_tokens: tokens that were lost.
    """

    input_ids: Tensor
    offsets: Tensor
    token_type_ids: Tensor | None = None
    targets: Tensor | None = None
    is_causal: bool = False
    pad_id: int = 0
    padding_side: Literal["left", "right"] = "right"
    num_truncated_rows: int = 0
    num_truncated_tokens: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens held."""
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64, (N,)."""
        return self.offsets.diff()

    def length(self, i: int) -> int:
        """Return the number of tokens of row `i`."""
        return int(self.offsets[i + 1] - self.offsets[i])

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Gather rows, padded to the longest of them.

        Args:
            indices: rows in [0, N), (B,), at least one.

        Returns:
            `input_ids` and `attention_mask` (1 = token, 0 = padding), int64, (B, T); `token_type_ids` likewise where
            the tokenizer gives them; `labels`, (B,), where there are targets, or (B, T) with -100 at padding where
            causal.

        Raises:
            ValueError: no index, or one outside [0, N).
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if rows.dim() != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(self):
            raise ValueError(
                f"a batch takes a list of at least one row in 0..{len(self) - 1}, each a row of the text; got "
                f"{str(rows.tolist())[:60]}."
            )
        mask, positions = self._positions(rows)
        batch = {"input_ids": _gather(self.input_ids, positions, mask, self.pad_id), "attention_mask": mask.long()}
        if self.token_type_ids is not None:
            batch["token_type_ids"] = _gather(self.token_type_ids, positions, mask, 0)
        if self.is_causal:
            batch["labels"] = batch["input_ids"].masked_fill(~mask, _IGNORED_LABEL)
        elif self.targets is not None:
            batch["labels"] = self.targets[rows]
        return batch

    def _positions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return which cells of the batch hold a token, and the flat position of each (0 where none), (B, T)."""
        starts, ends = self.offsets[rows].unsqueeze(1), self.offsets[rows + 1].unsqueeze(1)
        columns = torch.arange(int((ends - starts).max()))
        if self.padding_side == "right":
            positions = starts + columns
            mask = positions < ends
        else:
            positions = ends - len(columns) + columns
            mask = positions >= starts
        return mask, positions.where(mask, 0)


def encode_text(
    rows: TextRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    allow_truncation: bool = False,
    targets: Tensor | None = None,
) -> EncodedText:
    """Tokenise rows of one text or a pair.

    Args:
        rows: the texts.
        tokenizer: a Hugging Face tokenizer; its special tokens, truncation and padding sides hold. Where it has no pad
            token the end-of-sequence token pads, which the attention mask hides.
        max_length: most tokens a row keeps, special ones included.
        allow_truncation: accept that more than 1 % of all tokens are cut.
        targets: one target a row, (N,), as `Labels.encode` gives them; None where there are none.

    Returns:
        The tokens, with what was cut.

    Raises:
        ValueError: a limit that leaves no room for text, more than 1 % of all tokens cut and not allowed, a row without
            a token, more than two texts a row, another number of targets than of rows, or no token to pad with.
    """
    _check_encodable(rows, tokenizer, max_length, targets)
    pieces = list(_pieces(rows.texts, tokenizer, max_length))
    lengths = np.concatenate([piece.lengths for piece in pieces])
    _check_lengths(lengths, rows.source)
    num_cut, num_lost = sum(piece.num_cut for piece in pieces), sum(piece.num_lost for piece in pieces)
    share = num_lost / (num_lost + int(lengths.sum()))
    if share > _MOST_LOST_UNASKED and not allow_truncation:
        raise ValueError(
            f"{num_cut:,} of {len(rows):,} rows of {rows.source} are longer than {max_length} tokens and would be "
            f"cut, losing {share:.1%} of all tokens, which the model would never see. Raise the limit "
            "(`max_length`), or accept the loss with `--allow-truncation`."
        )
    types = [piece.types for piece in pieces if piece.types is not None]
    return EncodedText(
        input_ids=torch.from_numpy(np.concatenate([piece.ids for piece in pieces])),
        offsets=torch.from_numpy(np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])),
        token_type_ids=torch.from_numpy(np.concatenate(types)) if types else None,
        targets=targets,
        pad_id=_pad_id(tokenizer),
        padding_side="left" if tokenizer.padding_side == "left" else "right",
        num_truncated_rows=num_cut,
        num_truncated_tokens=num_lost,
    )


def lm_blocks(text: str, tokenizer: PreTrainedTokenizerBase, *, block_length: int) -> EncodedText:
    """Cut one long text into contiguous blocks for a causal language model.

    Args:
        text: the text, tokenised in one go without special tokens.
        tokenizer: a Hugging Face tokenizer.
        block_length: tokens a block, at least 2.

    Returns:
        Blocks whose labels are their tokens; the last tokens, too few for a block, are dropped and counted in
        `num_truncated_tokens`.

    Raises:
        ValueError: a block too short to predict a token in, or a text shorter than one block.
    """
    if block_length < 2:
        raise ValueError(
            "a block (`max_length`) must have at least 2 tokens, so that one is predicted from another; got "
            f"{block_length}."
        )
    ids: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    num_blocks, num_left = divmod(len(ids), block_length)
    if not num_blocks:
        raise ValueError(
            f"the text has {len(ids):,} tokens, fewer than one block of {block_length:,}, so there is nothing to "
            "learn or score. Give more text or shorter blocks (`max_length`)."
        )
    num_kept = num_blocks * block_length
    return EncodedText(
        input_ids=torch.tensor(ids[:num_kept], dtype=torch.int32),
        offsets=torch.arange(0, num_kept + 1, block_length),
        is_causal=True,
        num_truncated_tokens=num_left,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """The tokens of some rows, and what the limit cut from them."""

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    lengths: NDArray[np.int64]
    num_cut: int
    num_lost: int


def _pieces(texts: list[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[_Piece]:
    for start in range(0, len(texts), _CHUNK_ROWS):
        yield _encode_piece(texts[start : start + _CHUNK_ROWS], tokenizer, max_length)


def _encode_piece(texts: list[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> _Piece:
    """Tokenise whole, then once more only those that are too long: the tokenizer knows how to cut a pair."""
    ids, types = _tokenize(texts, tokenizer, None)
    too_long = [i for i, row in enumerate(ids) if len(row) > max_length]
    num_lost = 0
    if too_long:
        short_ids, short_types = _tokenize([texts[i] for i in too_long], tokenizer, max_length)
        for j, i in enumerate(too_long):
            num_lost += len(ids[i]) - len(short_ids[j])
            ids[i] = short_ids[j]
            if types is not None and short_types is not None:
                types[i] = short_types[j]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    num_tokens = int(lengths.sum())
    return _Piece(
        ids=np.fromiter(chain.from_iterable(ids), np.int32, num_tokens),
        types=None if types is None else np.fromiter(chain.from_iterable(types), np.uint8, num_tokens),
        lengths=lengths,
        num_cut=len(too_long),
        num_lost=num_lost,
    )


def _tokenize(
    texts: list[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[list[int]], list[list[int]] | None]:
    first, second = [row[0] for row in texts], [row[1] for row in texts if len(row) == 2]
    encoding: Any = tokenizer(
        first,
        second or None,
        padding=False,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    return encoding["input_ids"], encoding.get("token_type_ids")


def _gather(flat: Tensor, positions: Tensor, mask: Tensor, fill: int) -> Tensor:
    return flat[positions].long().masked_fill(~mask, fill)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    raise ValueError(
        "the tokenizer has neither a pad nor an end-of-sequence token, so rows of different length cannot be put in "
        "one batch. Name a `pad_token` in the model's tokenizer_config.json."
    )


def _check_encodable(
    rows: TextRows, tokenizer: PreTrainedTokenizerBase, max_length: int, targets: Tensor | None
) -> None:
    width = len(rows.texts[0])
    if not 1 <= width <= 2:
        raise ValueError(
            f"a row of {rows.source} has {width} texts, and a tokenizer takes one or a pair. Join the texts first."
        )
    num_special = tokenizer.num_special_tokens_to_add(pair=width == 2)
    if max_length <= num_special:
        raise ValueError(
            f"`max_length` must exceed the {num_special} special tokens of each row, or no text is left; got "
            f"{max_length}."
        )
    if targets is not None and len(targets) != len(rows):
        raise ValueError(
            f"there must be one target a row, so that each text has its own; got {len(targets):,} targets for "
            f"{len(rows):,} rows of {rows.source}."
        )
    _pad_id(tokenizer)


def _check_lengths(lengths: NDArray[np.int64], source: str) -> None:
    bare = np.flatnonzero(lengths == 0)
    if len(bare):
        raise ValueError(
            f"{len(bare):,} rows of {source} have no token, first row {bare[0] + 1:,}, so a model has nothing to read "
            "there. Leave empty texts out."
        )

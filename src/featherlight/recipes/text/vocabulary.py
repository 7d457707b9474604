"""What the tokens of a text are: its characters, or its bytes."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from featherlight.data import read_plain_text

_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens, and the text that they stand for.

    Attributes:
        characters: in the order of their tokens; empty takes bytes of UTF-8.
    """

    characters: str = ""

    def __len__(self) -> int:
        return len(self.characters) or _BYTES

    def encode(self, text: str) -> Int[Tensor, "T"]:
        """The tokens of a text; raises ValueError for a character that has none."""
        if not self.characters:
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        numbers = {character: number for number, character in enumerate(self.characters)}
        if strange := sorted(set(text) - numbers.keys()):
            raise ValueError(
                f"the text has {len(strange)} characters that the model has no token for, such as {strange[0]!r}; it was made "
                f"for a text with {len(self.characters)} different ones. Leave them out, or train with `tokens` set to bytes."
            )
        return torch.tensor([numbers[character] for character in text], dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, "T"]) -> str:
        """The text of tokens; bytes that are no UTF-8 become a mark."""
        if not self.characters:
            return bytes(tokens.tolist()).decode(errors="replace")
        return "".join(self.characters[number] for number in tokens.tolist())


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text as tokens.

    Attributes:
        train: (T,), to learn from.
        valid: (T,), what comes after it.
        vocabulary: of the tokens.
        characters_per_token: of the validation text; below 1 for bytes of anything but English.
    """

    train: Int[Tensor, "T"]
    valid: Int[Tensor, "t"]
    vocabulary: Vocabulary
    characters_per_token: float


def load_corpus(data: str, *, tokens: str, valid_fraction: float, context: int) -> Corpus:
    """Reads a text.

    Args:
        data: "shakespeare", or a path.
        tokens: "characters" or "bytes".
        valid_fraction: share at its end that validates, where it comes as one.
        context: tokens of a sequence, of which both parts must have one and a token more.

    Raises:
        ValueError: there is no such text, or it is too short.
    """
    train, valid = _shakespeare() if data == "shakespeare" else _split(read_plain_text(Path(data)), valid_fraction)
    vocabulary = Vocabulary(characters="".join(sorted(set(train + valid))) if tokens == "characters" else "")
    corpus = Corpus(
        train=vocabulary.encode(train),
        valid=vocabulary.encode(valid),
        vocabulary=vocabulary,
        characters_per_token=len(valid) / max(1, len(vocabulary.encode(valid))),
    )
    if (least := min(len(corpus.train), len(corpus.valid))) <= context:
        raise ValueError(
            f"the text {data} is too short: a part of it has {least} tokens, and a sequence takes {context + 1}. Lower "
            "`context`, or take a longer text."
        )
    return corpus


def _split(text: str, valid_fraction: float) -> tuple[str, str]:
    cut = round(len(text) * (1 - valid_fraction))
    return text[:cut], text[cut:]


def _shakespeare() -> tuple[str, str]:
    root = os.environ.get("FEATHERLIGHT_DATA")
    if not root:
        raise ValueError(
            "this text is read from tiny-shakespeare/ in a folder of data, and FEATHERLIGHT_DATA does not say which. Set it, or "
            "set `data` to the path of a text of your own."
        )
    folder = Path(root) / "tiny-shakespeare"
    return read_plain_text(folder / "train.parquet"), read_plain_text(folder / "validation.parquet")

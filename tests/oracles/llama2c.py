"""Slow, obvious references for the llama2.c legacy format: the forward pass in float64 and the greedy tokenizer."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BOS = 1


@dataclass(frozen=True)
class LegacyModel:
    """A legacy file read in order, every array in float64."""

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    arrays: dict[str, Array]

    @classmethod
    def read(cls, path: Path) -> "LegacyModel":
        with path.open("rb") as file:
            dim, hidden, layers, heads, kv_heads, vocab, seq_len = struct.unpack("<7i", file.read(28))
            head_dim = dim // heads
            arrays: dict[str, Array] = {}

            def take(name: str, *shape: int) -> None:
                arrays[name] = np.fromfile(file, dtype="<f4", count=int(np.prod(shape))).reshape(shape).astype(float)

            take("embedding", abs(vocab), dim)
            take("rms_att", layers, dim)
            take("wq", layers, heads * head_dim, dim)
            take("wk", layers, kv_heads * head_dim, dim)
            take("wv", layers, kv_heads * head_dim, dim)
            take("wo", layers, dim, heads * head_dim)
            take("rms_ffn", layers, dim)
            take("w1", layers, hidden, dim)
            take("w2", layers, dim, hidden)
            take("w3", layers, hidden, dim)
            take("rms_final", dim)
            take("cos", seq_len, head_dim // 2)
            take("sin", seq_len, head_dim // 2)
            arrays["output"] = arrays["embedding"]
            if vocab < 0:
                take("output", abs(vocab), dim)
            assert not file.read()
        return cls(dim, layers, heads, kv_heads, arrays)

    def logits(self, tokens: list[int]) -> Array:
        """Next-token logits at every position, (len(tokens), vocabulary)."""
        x = self.arrays["embedding"][tokens]
        for layer in range(self.num_layers):
            w = {name: array[layer] for name, array in self.arrays.items() if name[0] in "rw" and array.ndim > 1}
            x = x + self._attention(_rms_norm(x, w["rms_att"]), w)
            h = _rms_norm(x, w["rms_ffn"])
            gate = h @ w["w1"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"].T)) @ w["w2"].T
        return _rms_norm(x, self.arrays["rms_final"]) @ self.arrays["output"].T

    def greedy(self, tokens: list[int], num_new: int) -> list[int]:
        """`tokens` followed by `num_new` most likely ones."""
        tokens = list(tokens)
        for _ in range(num_new):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens

    def _attention(self, x: Array, w: dict[str, Array]) -> Array:
        num_tokens, head_dim = len(x), self.dim // self.num_heads
        queries = self._rotate((x @ w["wq"].T).reshape(num_tokens, self.num_heads, head_dim))
        keys = self._rotate((x @ w["wk"].T).reshape(num_tokens, self.num_kv_heads, head_dim))
        values = (x @ w["wv"].T).reshape(num_tokens, self.num_kv_heads, head_dim)
        out = np.zeros((num_tokens, self.num_heads, head_dim))
        for head in range(self.num_heads):
            shared = head // (self.num_heads // self.num_kv_heads)
            for t in range(num_tokens):
                scores = keys[: t + 1, shared] @ queries[t, head] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ values[: t + 1, shared]
        return out.reshape(num_tokens, self.dim) @ w["wo"].T

    def _rotate(self, x: Array) -> Array:
        """Turn each adjacent pair (2r, 2r + 1) of a head by its position's angle."""
        cos = self.arrays["cos"][: len(x), None]
        sin = self.arrays["sin"][: len(x), None]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out


def _rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


@dataclass(frozen=True)
class LegacyTokenizer:
    """The vocabulary of a tokenizer file and the greedy algorithm over it; strings are bytes, as in the C program."""

    pieces: list[bytes]
    scores: list[float]

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> "LegacyTokenizer":
        pieces, scores = [], []
        with path.open("rb") as file:
            file.read(4)
            for _ in range(vocab_size):
                score, length = struct.unpack("<fi", file.read(8))
                scores.append(score)
                pieces.append(file.read(length))
            assert not file.read()
        return cls(pieces, scores)

    def encode(self, text: str) -> list[int]:
        """BOS, a space in front of any text, characters or their bytes, then the best pair merged until none is left.

        The C program stops at a NUL character; here it is a character like the others.
        """
        ids = {piece: index for index, piece in enumerate(self.pieces)}
        tokens: list[int] = []
        for character in f" {text}" if text else "":
            piece = character.encode()
            tokens += [ids[piece]] if piece in ids else [byte + 3 for byte in piece]
        while True:
            best_score, best_at, best_id = -1e10, -1, -1
            for at in range(len(tokens) - 1):
                merged = ids.get(self.pieces[tokens[at]] + self.pieces[tokens[at + 1]], -1)
                if merged != -1 and self.scores[merged] > best_score:
                    best_score, best_at, best_id = self.scores[merged], at, merged
            if best_at == -1:
                return [BOS, *tokens]
            tokens[best_at : best_at + 2] = [best_id]

    def decode(self, tokens: list[int]) -> str:
        """The text of ids that begin with BOS, the space in front removed."""
        out = b"".join(bytes([token - 3]) if 3 <= token < 259 else self.pieces[token] for token in tokens[1:])
        return out.removeprefix(b" ").decode()

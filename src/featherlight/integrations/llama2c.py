"""Convert a llama2.c legacy model and its tokenizer to a Hugging Face Llama directory.

Shape legend: L layers, V vocabulary, D model width, Q rows of all query heads (= D), K rows of all key heads,
F feed-forward width, S longest sequence, R rotated pairs of a head.
"""

import json
import math
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig

from featherlight.files import replace_file

__all__ = ["convert_llama2c"]

Array = npt.NDArray[np.float32]

_UNK, _BOS, _EOS = 0, 1, 2
_SPECIAL = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FIRST_PIECE = len(_SPECIAL) + len(_BYTES)
_HEADER = struct.Struct("<7i")
_SIZES = ("dim", "hidden_dim", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "max_seq_len")
_VERSIONED_MAGIC = 0x616B3432
_ROPE_BASE = 10000.0
_NORM_EPS = 1e-5
_LOWEST_SCORE = -1e10
_NO_MODEL = "the file is cut short, altered or no llama2.c legacy model; download or export it again."
_NO_TOKENIZER = "the file is cut short, altered or not this model's llama2.c tokenizer; download or export it again."


def convert_llama2c(model_path: str | Path, tokenizer_path: str | Path, out_dir: str | Path) -> Path:
    """Write the llama2.c legacy model and tokenizer as a Hugging Face Llama directory, whole or not at all.

    Args:
        model_path: A llama2.c legacy (version 0) float32 file, such as `stories260K.bin`.
        tokenizer_path: The llama2.c tokenizer of that model, such as `tok512.bin`.
        out_dir: The directory to make; it must not exist. Missing parents are made.

    Returns:
        `out_dir` as a Path. It holds config.json, generation_config.json, model.safetensors, tokenizer.json and
        tokenizer_config.json, which `AutoModelForCausalLM` and `AutoTokenizer` load offline.

    Raises:
        ValueError: If `out_dir` exists, or either file is missing, truncated, altered or of another format.

    Cost: reads the weights through a memory map; the query and key matrices are copied, the rest is not.
    Source: karpathy/llama2.c, `run.c`. Ids are those of its `encode` while `split_special_tokens` keeps its saved
    value, true. We add a padding token: `<unk>`, which byte fallback leaves unused. See docs/llama2c.md.
    """
    model, vocabulary, out = Path(model_path), Path(tokenizer_path), Path(out_dir)
    _refuse_existing(out)
    header, weights = _read_model(model)
    tokenizer = _read_tokenizer(vocabulary, header.vocab_size)
    with _published(out) as staging:
        _write_model(header, weights, staging)
        _write_tokenizer(tokenizer, header.max_seq_len, staging)
    return out


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The seven integers at the start of a legacy file; a negative vocabulary size there means `tied` is false."""

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_seq_len: int
    tied: bool

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"the header says {name} = {getattr(self, name)}, but no size can be below 1: {_NO_MODEL}"
                )
        if self.dim % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"the header says dim = {self.dim}, {self.num_heads} heads, {self.num_kv_heads} key-value heads, but "
                f"heads must be of one even width and share key-value heads evenly: {_NO_MODEL}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array, in the order of the file."""
        layers, dim, hidden = self.num_layers, self.dim, self.hidden_dim
        kv, rope = self.num_kv_heads * self.head_dim, (self.max_seq_len, self.head_dim // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "token_embedding": (self.vocab_size, dim),
            "rms_att": (layers, dim),
            "wq": (layers, dim, dim),
            "wk": (layers, kv, dim),
            "wv": (layers, kv, dim),
            "wo": (layers, dim, dim),
            "rms_ffn": (layers, dim),
            "w1": (layers, hidden, dim),
            "w2": (layers, dim, hidden),
            "w3": (layers, hidden, dim),
            "rms_final": (dim,),
            "rope_cos": rope,
            "rope_sin": rope,
        }
        return shapes if self.tied else {**shapes, "wcls": (self.vocab_size, dim)}


def _read_model(path: Path) -> tuple[_Header, dict[str, Array]]:
    """The header and memory-mapped arrays of a legacy file, checked as far as its format allows."""
    size = _file_size(path, "model")
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    try:
        header = _parse_header(head)
        expected = _HEADER.size + 4 * sum(math.prod(shape) for shape in header.layout().values())
        if size != expected:
            sizes = ", ".join(f"{name} {value}" for name, value in vars(header).items())
            raise ValueError(f"it has {size} bytes where its header ({sizes}) calls for {expected}: {_NO_MODEL}")
        weights = _map_arrays(path, header)
        _check_arrays(header, weights)
    except ValueError as error:
        raise ValueError(f"cannot convert {path}: {error}") from None
    return header, weights


def _parse_header(head: bytes) -> _Header:
    if len(head) < _HEADER.size:
        raise ValueError(f"it has {len(head)} bytes, fewer than the {_HEADER.size} of a header: {_NO_MODEL}")
    sizes = dict(zip(_SIZES, _HEADER.unpack(head), strict=True))
    if sizes["dim"] == _VERSIONED_MAGIC:
        raise ValueError(
            f"it begins with the mark of llama2.c version {sizes['hidden_dim']}, whose layout differs from the legacy "
            "one read here; export it with `--version 0`."
        )
    return _Header(**{**sizes, "vocab_size": abs(sizes["vocab_size"])}, tied=sizes["vocab_size"] > 0)


def _map_arrays(path: Path, header: _Header) -> dict[str, Array]:
    flat = np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size)
    weights: dict[str, Array] = {}
    start = 0
    for name, shape in header.layout().items():
        stop = start + math.prod(shape)
        weights[name] = flat[start:stop].reshape(shape)
        start = stop
    return weights


def _check_arrays(header: _Header, weights: Mapping[str, Array]) -> None:
    """Refuse weights that are not finite, and rotation tables other than those of base 10000."""
    for name, array in weights.items():
        with np.errstate(invalid="ignore"):
            total = array.sum(dtype=np.float64)
        if not math.isfinite(total):
            raise ValueError(f"`{name}` adds up to {total}, so outputs would not be finite: {_NO_MODEL}")
    rates_R = _ROPE_BASE ** (-2.0 * np.arange(header.head_dim // 2) / header.head_dim)
    angles_SR = np.outer(np.arange(header.max_seq_len), rates_R)
    stored_SR = weights["rope_cos"] + 1j * weights["rope_sin"]
    error = float(np.abs(stored_SR - np.exp(1j * angles_SR)).max())
    if not error <= 1e-3 + 1e-6 * header.max_seq_len:
        raise ValueError(
            f"its rotation tables are {error:.1e} off those of base {_ROPE_BASE:g}, llama2.c's only one: {_NO_MODEL}"
        )


def _write_model(header: _Header, weights: Mapping[str, Array], out: Path) -> None:
    tensors = _named_tensors(header, weights)
    replace_file(out / "model.safetensors", lambda beside: save_file(tensors, beside, metadata={"format": "pt"}))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=header.vocab_size,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        max_position_embeddings=header.max_seq_len,
        rms_norm_eps=_NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=header.tied,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        pad_token_id=_UNK,
        dtype="float32",
    )
    config.save_pretrained(out)
    # llama2.c ends a story where the next one would begin, at BOS.
    GenerationConfig(bos_token_id=_BOS, eos_token_id=[_BOS, _EOS], pad_token_id=_UNK).save_pretrained(out)


def _named_tensors(header: _Header, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The Hugging Face names of the arrays, one entry per layer, queries and keys reordered."""
    tensors = {"model.embed_tokens.weight": weights["token_embedding"], "model.norm.weight": weights["rms_final"]}
    if not header.tied:
        tensors["lm_head.weight"] = weights["wcls"]
    for layer in range(header.num_layers):
        arrays = {
            "input_layernorm": weights["rms_att"][layer],
            "self_attn.q_proj": _pairs_to_halves(weights["wq"][layer], header.num_heads),
            "self_attn.k_proj": _pairs_to_halves(weights["wk"][layer], header.num_kv_heads),
            "self_attn.v_proj": weights["wv"][layer],
            "self_attn.o_proj": weights["wo"][layer],
            "post_attention_layernorm": weights["rms_ffn"][layer],
            "mlp.gate_proj": weights["w1"][layer],
            "mlp.down_proj": weights["w2"][layer],
            "mlp.up_proj": weights["w3"][layer],
        }
        tensors.update({f"model.layers.{layer}.{name}.weight": array for name, array in arrays.items()})
    return tensors


def _pairs_to_halves(w: Array, num_heads: int) -> Array:
    """Rows (0, 1, 2, 3, ...) of each head in the order (0, 2, ..., 1, 3, ...): partners half a head apart."""
    rows, dim = w.shape
    return np.ascontiguousarray(w.reshape(num_heads, -1, 2, dim).swapaxes(1, 2)).reshape(rows, dim)


def _read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """The fast tokenizer of a llama2.c tokenizer file, checked against the layout that llama2.c relies on."""
    _file_size(path, "tokenizer")
    try:
        pieces, scores = _parse_vocabulary(path.read_bytes(), vocab_size)
        pieces[: len(_SPECIAL)] = [piece.strip("\n") for piece in pieces[: len(_SPECIAL)]]
        _check_vocabulary(pieces, scores)
        return _fast_tokenizer(pieces, scores)
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot convert {path}: token {error.object!r} is not UTF-8 text: {_NO_TOKENIZER}") from None
    except ValueError as error:
        raise ValueError(f"cannot convert {path}: {error}") from None


def _parse_vocabulary(data: bytes, vocab_size: int) -> tuple[list[str], list[float]]:
    pieces, scores = list[str](), list[float]()
    longest = int.from_bytes(data[:4], "little", signed=True)
    at = 4
    while len(pieces) < vocab_size and at + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 < length <= min(longest, len(data) - at):
            raise ValueError(
                f"token {len(pieces)} claims {length} bytes where the longest has {longest} and {len(data) - at} are "
                f"left: {_NO_TOKENIZER}"
            )
        pieces.append(data[at : at + length].decode("utf-8"))
        scores.append(score)
        at += length
    if len(pieces) < vocab_size or at != len(data):
        raise ValueError(
            f"it holds {len(pieces)} tokens and {max(0, len(data) - at)} bytes more where the model's vocabulary has "
            f"{vocab_size}: {_NO_TOKENIZER}"
        )
    return pieces, scores


def _check_vocabulary(pieces: Sequence[str], scores: Sequence[float]) -> None:
    """Refuse a vocabulary without the fixed tokens 0..258, with repeats, or with scores that are not finite."""
    expected = (*_SPECIAL, *_BYTES)
    for index, want in enumerate(expected):
        seen = pieces[index] if index < len(pieces) else None
        if seen != want:
            raise ValueError(
                f"token {index} is {seen!r} where a llama2.c tokenizer has {want!r} (unknown, BOS, EOS, then 256 byte "
                "tokens, without which some text has no ids); export a tokenizer with byte fallback."
            )
    first: dict[str, int] = {}
    for index, (piece, score) in enumerate(zip(pieces, scores, strict=True)):
        if first.setdefault(piece, index) != index or not math.isfinite(score):
            raise ValueError(
                f"token {index} is {piece!r} with score {score}, but a token must be given once (first at "
                f"{first[piece]}) with a finite score, or its id is undefined: {_NO_TOKENIZER}"
            )


def _fast_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Tokenizer:
    """A `tokenizers` pipeline with the ids of llama2.c: a space in front, BPE with byte fallback, BOS."""
    bpe = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=_merges(pieces, scores),
        unk_token=_SPECIAL[_UNK],
        byte_fallback=True,
        fuse_unk=False,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bos = _SPECIAL[_BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, _BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def _merges(pieces: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """One pair per piece that merging can make, best score first.

    Merges inside a span happen in one order whatever surrounds it, so a piece only ever arises from the pair that
    merging of its own text ends with; with distinct scores the list makes llama2.c's choices, leftmost first, exactly.
    """
    score_of = dict(zip(pieces[_FIRST_PIECE:], scores[_FIRST_PIECE:], strict=True))
    found: dict[float, tuple[str, str]] = {}
    for piece, score in score_of.items():
        pair = _last_pair(piece, score_of)
        if pair is None:
            continue
        if score in found:
            raise ValueError(
                f"tokens {''.join(found[score])!r} and {piece!r} share the score {score}, so what merges first depends "
                "on the text, as no fast tokenizer can; give each a score of its own."
            )
        found[score] = pair
    return [found[score] for score in sorted(found, reverse=True)]


def _last_pair(piece: str, score_of: Mapping[str, float]) -> tuple[str, str] | None:
    """The two parts that greedy merging of `piece` joins last, or None where it never becomes one token."""
    parts = list(piece)
    if any(part not in score_of for part in parts):
        return None
    while len(parts) > 1:
        ranks = [score_of.get(left + right, -math.inf) for left, right in pairwise(parts)]
        best = max(ranks)
        if best <= _LOWEST_SCORE:
            return None
        at = ranks.index(best)
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None


def _write_tokenizer(tokenizer: Tokenizer, max_seq_len: int, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_seq_len,
        "bos_token": _SPECIAL[_BOS],
        "eos_token": _SPECIAL[_EOS],
        "unk_token": _SPECIAL[_UNK],
        "pad_token": _SPECIAL[_UNK],
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _file_size(path: Path, kind: str) -> int:
    if not path.is_file():
        raise ValueError(f"{path} is not a file, so there is no llama2.c {kind} to read; check the path.")
    return path.stat().st_size


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A hidden directory beside `out` that is flushed and renamed to it at the end, or removed on any error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    staging.mkdir()
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            _flush(path)
        _refuse_existing(out)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _flush(out.parent)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} already exists and would be overwritten; remove it or pass another directory.")


def _flush(path: Path) -> None:
    """Force a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The llama2.c converter against a float64 forward pass and the greedy tokenizer, on real and made-up models."""

import json
import math
import string
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from featherlight.integrations import llama2c
from featherlight.integrations.llama2c import convert_llama2c
from tests.oracles.llama2c import BOS, LegacyModel, LegacyTokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
TEXTS = [
    "",
    " ",
    "   ",
    "  two spaces in front",
    "two  spaces   inside, three after   ",
    "\n",
    "A line.\n\nAnother line.\r\n\tTabbed.",
    STORY,
    "café, señor, “quotes” \u2013 and — dashes…",
    "naïve Ünïcödé",
    "漢字とかな 한국어 العربية",
    "🙂🙂 👩‍👩‍👧 e\u0301 \u00a0 \u200a \u2581\u2581",
    "<s> </s> <unk> <0x0A> <s>",
    "\x00\x7f\ufffd",
    "1234567890 != 3.14 (really) [yes] {no} ~`|\\",
    "aaaaaaaaaaaa eeeeeeee therethethere",
]
SPECIAL = ["<unk>", "\n<s>\n", "\n</s>\n"] + [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["th", " th", "he", " the", "ca", "at", " c", " cat", "cat", "é", "oo", "ooo", "oooo"]
LETTERS = list(" " + string.ascii_lowercase + ".")


def pretrained(auto: Any, path: Path) -> Any:
    return auto.from_pretrained(path, local_files_only=True)


def write_tokenizer(path: Path, pieces: Sequence[str | bytes], scores: Sequence[float]) -> None:
    raw = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    records = [struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(raw, scores, strict=True)]
    path.write_bytes(struct.pack("<i", max(map(len, raw))) + b"".join(records))


def vocabulary() -> tuple[list[str | bytes], list[float]]:
    pieces: list[str | bytes] = [*SPECIAL, *WORDS, *LETTERS]
    return pieces, [0.0] * len(SPECIAL) + [-float(rank) for rank in range(len(WORDS) + len(LETTERS))]


def write_model(path: Path, *, heads: int, kv_heads: int, tied: bool, head_dim: int = 4, layers: int = 2) -> None:
    """A small random model, large enough in scale that attention is far from uniform."""
    rng = np.random.default_rng(7 * heads + kv_heads)
    vocab, dim, hidden, seq_len = len(vocabulary()[0]), heads * head_dim, 20, 48
    kv = kv_heads * head_dim
    shapes = [(vocab, dim), (layers, dim), (layers, dim, dim), (layers, kv, dim), (layers, kv, dim)]
    shapes += [(layers, dim, dim), (layers, dim), (layers, hidden, dim), (layers, dim, hidden)]
    shapes += [(layers, hidden, dim), (dim,)]
    arrays = [rng.normal(scale=0.5, size=shape) for shape in shapes]
    angles = np.outer(np.arange(seq_len), 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim))
    arrays += [np.cos(angles), np.sin(angles)]
    if not tied:
        arrays.append(rng.normal(size=(vocab, dim)))
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, seq_len)
    path.write_bytes(header + b"".join(array.astype("<f4").tobytes() for array in arrays))


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    model, tokenizer = tmp_path / "model.bin", tmp_path / "tok.bin"
    write_model(model, heads=4, kv_heads=2, tied=True)
    write_tokenizer(tokenizer, *vocabulary())
    return model, tokenizer


@pytest.fixture(scope="module")
def real(real_data: Path) -> Path:
    return real_data / "stories260K"


@pytest.fixture(scope="module")
def converted(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama2c") / "deep" / "stories260K"
    return convert_llama2c(real / "stories260K.bin", real / "tok512.bin", out)


@pytest.fixture(scope="module")
def real_tokenizers(real: Path, converted: Path) -> tuple[Any, LegacyTokenizer]:
    return pretrained(AutoTokenizer, converted), LegacyTokenizer.read(real / "tok512.bin", 512)


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


class TestRealModel:
    def test_logits_agree_at_every_position(self, real: Path, converted: Path, real_tokenizers: Any) -> None:
        tokens = real_tokenizers[0](STORY)["input_ids"]
        ours = logits(pretrained(AutoModelForCausalLM, converted), tokens)
        np.testing.assert_allclose(ours, LegacyModel.read(real / "stories260K.bin").logits(tokens), rtol=0, atol=1e-4)

    def test_greedy_story(self, real: Path, converted: Path, real_tokenizers: Any) -> None:
        tokenizer = real_tokenizers[0]
        expected = LegacyModel.read(real / "stories260K.bin").greedy([BOS], 96)
        model = pretrained(AutoModelForCausalLM, converted)
        inputs = tokenizer("", return_tensors="pt")
        ours = model.generate(**inputs, do_sample=False, max_new_tokens=96)[0].tolist()
        assert ours == expected
        assert tokenizer.decode(ours, skip_special_tokens=True).startswith(STORY)

    def test_perplexity_of_a_story_is_low(self, converted: Path, real_tokenizers: Any) -> None:
        tokens = torch.tensor([real_tokenizers[0](STORY)["input_ids"]])
        with torch.no_grad():
            loss = pretrained(AutoModelForCausalLM, converted)(tokens, labels=tokens).loss.item()
        assert 1.0 < math.exp(loss) < 4.0

    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_and_text(self, real_tokenizers: Any, text: str) -> None:
        assert_same_ids(*real_tokenizers, text)

    @settings(deadline=None, max_examples=300)
    @given(text=st.text(max_size=60))
    def test_ids_of_any_text(self, real_tokenizers: Any, text: str) -> None:
        assert_same_ids(*real_tokenizers, text)

    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_ids_of_text_made_of_pieces(self, real_tokenizers: Any, data: st.DataObject) -> None:
        pieces = [piece.decode() for piece in real_tokenizers[1].pieces[259:]]
        text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=30)))
        assert_same_ids(*real_tokenizers, text)


def assert_same_ids(tokenizer: Any, oracle: LegacyTokenizer, text: str) -> None:
    expected = oracle.encode(text)
    ids = tokenizer(text)["input_ids"]
    assert ids == expected
    assert tokenizer.decode(ids, skip_special_tokens=True) == text == oracle.decode(expected)


class TestMadeUpModels:
    @pytest.mark.parametrize(
        ("heads", "kv_heads", "tied", "head_dim"),
        [(4, 2, True, 4), (4, 4, True, 6), (6, 2, True, 2), (4, 1, False, 8), (2, 2, False, 4), (1, 1, True, 10)],
    )
    def test_logits_agree(self, tmp_path: Path, heads: int, kv_heads: int, tied: bool, head_dim: int) -> None:
        write_model(tmp_path / "model.bin", heads=heads, kv_heads=kv_heads, tied=tied, head_dim=head_dim)
        write_tokenizer(tmp_path / "tok.bin", *vocabulary())
        out = convert_llama2c(tmp_path / "model.bin", str(tmp_path / "tok.bin"), tmp_path / "out")
        model = pretrained(AutoModelForCausalLM, out)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, 40).tolist()
        expected = LegacyModel.read(tmp_path / "model.bin").logits(tokens)
        np.testing.assert_allclose(logits(model, tokens), expected, rtol=0, atol=1e-4)

    def test_files_and_settings(self, sources: tuple[Path, Path], tmp_path: Path) -> None:
        out = convert_llama2c(*sources, tmp_path / "out")
        assert sorted(file.name for file in out.iterdir()) == [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
        tokenizer, model = pretrained(AutoTokenizer, out), pretrained(AutoModelForCausalLM, out)
        assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.pad_token_id == model.config.pad_token_id == 0
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 48
        assert len(tokenizer) == model.config.vocab_size == len(vocabulary()[0])
        batch = tokenizer(["the cat", ""], padding=True)
        assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]

    def test_two_conversions_are_the_same_bytes(self, sources: tuple[Path, Path], tmp_path: Path) -> None:
        first, second = (convert_llama2c(*sources, tmp_path / name) for name in ("first", "second"))
        for file in first.iterdir():
            assert file.read_bytes() == (second / file.name).read_bytes()

    def test_tokenizer_survives_saving_again(self, sources: tuple[Path, Path], tmp_path: Path) -> None:
        tokenizer = pretrained(AutoTokenizer, convert_llama2c(*sources, tmp_path / "out"))
        tokenizer.save_pretrained(tmp_path / "again")
        again = pretrained(AutoTokenizer, tmp_path / "again")
        assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]

    def test_special_tokens_in_text_on_request(self, sources: tuple[Path, Path], tmp_path: Path) -> None:
        out = convert_llama2c(*sources, tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(out, split_special_tokens=False)
        assert tokenizer("the</s>")["input_ids"][-1] == tokenizer.eos_token_id

    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_ids_with_any_vocabulary(self, data: st.DataObject) -> None:
        """Scores in any order, pieces with several splits, unreachable pieces, and letters that only bytes spell."""
        letters = [" ", "a", "b", *data.draw(st.sampled_from([(), ("é",)]))]
        words = data.draw(st.lists(st.text(" abé", min_size=2, max_size=4), unique=True, max_size=8))
        for left, right in data.draw(st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=12)):
            known = letters + words
            words.append(known[left % len(known)] + known[right % len(known)])
        words = list(dict.fromkeys(words))
        scores = data.draw(st.permutations(range(len(letters) + len(words))))
        pieces = [*SPECIAL, *letters, *words]
        all_scores = [0.0] * len(SPECIAL) + [float(score) for score in scores]
        plain = ["<unk>", "<s>", "</s>", *pieces[3:]]
        tokenizer = llama2c._fast_tokenizer(plain, all_scores)
        oracle = LegacyTokenizer([piece.encode() for piece in pieces], all_scores)
        for text in data.draw(st.lists(st.text(" ab" * 4 + "éx", min_size=20, max_size=60), min_size=1, max_size=4)):
            ids = tokenizer.encode(text).ids
            assert ids == oracle.encode(text)
            assert tokenizer.decode(ids) == text


def patch(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def header_field(index: int, value: int) -> Callable[[Path], None]:
    return lambda path: patch(path, 4 * index, struct.pack("<i", value))


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"bytes where its header \(dim 16"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes where its header"),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes, fewer than the 28"),
    "header only": (lambda path: path.write_bytes(path.read_bytes()[:28]), "it has 28 bytes where"),
    "no layers": (header_field(2, 0), "num_layers = 0"),
    "negative width": (header_field(0, -16), "dim = -16"),
    "no words": (header_field(5, 0), "vocab_size = 0"),
    "huge": (header_field(1, 2**31 - 1), "hidden_dim 2147483647"),
    "heads": (header_field(3, 3), "3 heads, 2 key-value heads"),
    "odd heads": (header_field(3, 16), "even width"),
    "kv heads": (header_field(4, 3), "4 heads, 3 key-value heads"),
    "untied sign": (header_field(5, -len(vocabulary()[0])), "tied False"),
    "newer version": (lambda path: patch(path, 0, struct.pack("<Ii", 0x616B3432, 2)), "mark of llama2.c version 2"),
    "nan": (lambda path: patch(path, 28, struct.pack("<f", math.nan)), "`token_embedding` adds up to nan"),
    "infinities": (lambda path: patch(path, 28, struct.pack("<2f", math.inf, -math.inf)), "`token_embedding`"),
    "rotation": (lambda path: patch(path, path.stat().st_size - 4, struct.pack("<f", 0.5)), "rotation tables"),
}


def changed(index: int, piece: str | bytes | None = None, score: float | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pieces, scores = vocabulary()
        pieces[index] = pieces[index] if piece is None else piece
        scores[index] = scores[index] if score is None else score
        write_tokenizer(path, pieces, scores)

    return write


BAD_TOKENIZERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut in a token": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "claims 6 bytes"),
    "cut in a record": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "it holds 299 tokens and 4 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "it holds 0 tokens and 0 bytes more"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"abc"), "and 3 bytes more"),
    "other vocabulary": (lambda path: write_tokenizer(path, SPECIAL, [0.0] * len(SPECIAL)), "it holds 259 tokens"),
    "absurd length": (lambda path: patch(path, 8, struct.pack("<i", 2**30)), "token 0 claims 1073741824 bytes"),
    "negative length": (lambda path: patch(path, 8, struct.pack("<i", -5)), "token 0 claims -5 bytes"),
    "special": (changed(1, "[CLS]"), r"token 1 is '\[CLS\]' where"),
    "bytes": (changed(13, "q"), "token 13 is 'q' where .* '<0x0A>'"),
    "repeated": (changed(260, "th"), "token 260 is 'th' .*first at 259"),
    "repeated special": (changed(260, "<s>"), "token 260 is '<s>' .*first at 1"),
    "not text": (changed(270, b"\xff\xfe"), "is not UTF-8 text"),
    "score": (changed(260, score=math.nan), "with score nan"),
    "equal scores": (changed(260, score=0.0), "tokens 'th' and ' th' share the score"),
}


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_left_behind(self, sources: tuple[Path, Path], tmp_path: Path) -> Iterator[None]:
        yield
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "kept") == ["model.bin", "tok.bin"]

    @pytest.mark.parametrize("case", BAD_MODELS)
    def test_bad_model(self, sources: tuple[Path, Path], tmp_path: Path, case: str) -> None:
        damage, message = BAD_MODELS[case]
        damage(sources[0])
        with pytest.raises(ValueError, match=message) as caught:
            convert_llama2c(*sources, tmp_path / "out")
        assert_sentence(caught.value, sources[0])

    @pytest.mark.parametrize("case", BAD_TOKENIZERS)
    def test_bad_tokenizer(self, sources: tuple[Path, Path], tmp_path: Path, case: str) -> None:
        damage, message = BAD_TOKENIZERS[case]
        damage(sources[1])
        with pytest.raises(ValueError, match=message) as caught:
            convert_llama2c(*sources, tmp_path / "out")
        assert_sentence(caught.value, sources[1])

    @pytest.mark.parametrize("missing", [0, 1])
    def test_missing_file(self, sources: tuple[Path, Path], tmp_path: Path, missing: int) -> None:
        paths = [*sources]
        paths[missing] = tmp_path / "absent.bin"
        with pytest.raises(ValueError, match=r"absent\.bin is not a file"):
            convert_llama2c(paths[0], paths[1], tmp_path / "out")

    @pytest.mark.parametrize("kind", ["empty folder", "file", "dangling link"])
    def test_existing_output(self, sources: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
        out = tmp_path / "kept"
        make = {"empty folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}
        make[kind]()
        with pytest.raises(ValueError, match="kept already exists"):
            convert_llama2c(*sources, out)

    @pytest.mark.parametrize("stage", ["save_file", "_write_tokenizer", "_flush"])
    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
    def test_failure_midway(
        self,
        sources: tuple[Path, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        stage: str,
        error: BaseException,
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(llama2c, stage, fail)
        with pytest.raises(type(error)):
            convert_llama2c(*sources, tmp_path / "out")


def assert_sentence(error: ValueError, path: Path) -> None:
    message = str(error)
    assert message.startswith(f"cannot convert {path}: ")
    assert message.endswith(".")
    assert ". " not in message
    assert "\n" not in message

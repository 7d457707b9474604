from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.data import EncodedText, Labels, TextRows, encode_text, lm_blocks, load_text, read_plain_text

MakeTokenizer = Callable[..., Any]
ROW_LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{first + i}" for i in range(count))


def rows_of(*texts: str | tuple[str, str]) -> TextRows:
    return TextRows(texts=[(t,) if isinstance(t, str) else t for t in texts], labels=None, source="here")


def encoded_rows(lengths: list[int], padding_side: Any = "right") -> EncodedText:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    flat = torch.arange(1, int(ends[-1]) + 1, dtype=torch.int32)
    types = (flat % 2).to(torch.uint8)
    targets = torch.arange(len(lengths)) * 10
    return EncodedText(
        input_ids=flat, offsets=ends, token_type_ids=types, targets=targets, pad_id=99, padding_side=padding_side
    )


@settings(deadline=None)
@given(lengths=ROW_LENGTHS, side=st.sampled_from(["left", "right"]), draw=st.data())
def test_a_batch_equals_padding_row_by_row(lengths: list[int], side: str, draw: st.DataObject):
    text = encoded_rows(lengths, side)
    indices = draw.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = text.batch(indices)
    width = max(lengths[i] for i in indices)
    for row, i in enumerate(indices):
        begin = sum(lengths[:i])
        ids = list(range(begin + 1, begin + 1 + lengths[i]))
        fill = width - lengths[i]
        for key, values, pad in (
            ("input_ids", ids, 99),
            ("attention_mask", [1] * len(ids), 0),
            ("token_type_ids", [token % 2 for token in ids], 0),
        ):
            padding = [pad] * fill
            assert batch[key][row].tolist() == (padding + values if side == "left" else values + padding)
    assert batch["labels"].tolist() == [10 * i for i in indices]
    assert {batch[key].dtype for key in ("input_ids", "attention_mask", "token_type_ids")} == {torch.int64}
    assert text.lengths.tolist() == lengths == [text.length(i) for i in range(len(text))]


@pytest.mark.parametrize("indices", [[], [3], [-1], [[0]]])
def test_a_batch_takes_rows_of_the_text(indices: list[Any]):
    with pytest.raises(ValueError, match=r"at least one row in 0\.\.2"):
        encoded_rows([1, 2, 3]).batch(indices)


def test_causal_labels_are_the_tokens():
    text = EncodedText(
        input_ids=torch.arange(5, dtype=torch.int32), offsets=torch.tensor([0, 2, 5]), is_causal=True, pad_id=7
    )
    batch = text.batch(torch.tensor([0, 1]))
    assert batch["input_ids"].tolist() == [[0, 1, 7], [2, 3, 4]]
    assert batch["labels"].tolist() == [[0, 1, -100], [2, 3, 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_encoding_agrees_with_the_tokenizer(make_tokenizer: MakeTokenizer, side: str):
    tokenizer = make_tokenizer(padding_side=side)
    pairs = [(words(i % 5), words(1 + i % 3, 50)) for i in range(30)]
    text = encode_text(rows_of(*pairs), tokenizer, max_length=20, targets=torch.arange(30))
    batch = text.batch(range(30))
    expected = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[key].equal(expected[key]), key
    assert batch["labels"].tolist() == list(range(30))
    assert (text.num_truncated_rows, text.num_truncated_tokens, text.num_tokens) == (
        0,
        0,
        int(batch["attention_mask"].sum()),
    )


def test_chunks_join(make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch):
    rows, tokenizer = rows_of(*(words(1 + i % 9) for i in range(50))), make_tokenizer()
    whole = encode_text(rows, tokenizer, max_length=6, allow_truncation=True)
    monkeypatch.setattr("featherlight.data.encoded._CHUNK_ROWS", 7)
    parts = encode_text(rows, tokenizer, max_length=6, allow_truncation=True)
    assert parts.input_ids.equal(whole.input_ids)
    assert parts.offsets.equal(whole.offsets)
    assert parts.num_truncated_tokens == whole.num_truncated_tokens > 0


def test_truncation_is_refused_unless_allowed(make_tokenizer: MakeTokenizer):
    rows, tokenizer = rows_of(words(10), words(3)), make_tokenizer()
    with pytest.raises(
        ValueError,
        match=r"1 of 2 rows of here are longer than 8 tokens .* losing 23\.5% of all tokens.*`--allow-truncation`",
    ):
        encode_text(rows, tokenizer, max_length=8)
    text = encode_text(rows, tokenizer, max_length=8, allow_truncation=True)
    assert (text.num_truncated_rows, text.num_truncated_tokens, text.num_tokens) == (1, 4, 13)
    assert text.batch([0])["input_ids"].tolist() == [tokenizer(words(6))["input_ids"]]


def test_a_cut_pair_keeps_both_texts_and_their_types(make_tokenizer: MakeTokenizer):
    tokenizer = make_tokenizer()
    text = encode_text(rows_of((words(10), words(9, 50))), tokenizer, max_length=9, allow_truncation=True)
    expected = tokenizer(words(10), words(9, 50), truncation=True, max_length=9)
    batch = text.batch([0])
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert batch["token_type_ids"].tolist() == [expected["token_type_ids"]]


def test_a_loss_below_one_percent_is_counted_and_kept(make_tokenizer: MakeTokenizer):
    text = encode_text(rows_of(words(11), *[words(10)] * 20), make_tokenizer(), max_length=12)
    assert (text.num_truncated_rows, text.num_truncated_tokens) == (1, 1)


def test_the_end_token_pads_where_there_is_no_pad_token(make_tokenizer: MakeTokenizer):
    tokenizer = make_tokenizer(has_special=False, eos_token="<eos>")
    text = encode_text(rows_of(words(2), words(1)), tokenizer, max_length=5)
    batch = text.batch([0, 1])
    assert batch["input_ids"].tolist() == [[5, 6], [5, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_bad_encodings_are_refused_with_a_sentence(make_tokenizer: MakeTokenizer):
    tokenizer, bare = make_tokenizer(), make_tokenizer(has_special=False, eos_token="<eos>")
    three = TextRows(texts=[("a", "b", "c")], labels=None, source="here")
    cases: list[tuple[TextRows, Any, dict[str, Any], str]] = [
        (rows_of("w1"), tokenizer, {"max_length": 2}, "must exceed the 2 special tokens .* got 2"),
        (rows_of(("w1", "w2")), tokenizer, {"max_length": 3}, "must exceed the 3 special tokens"),
        (three, tokenizer, {"max_length": 9}, "a row of here has 3 texts"),
        (rows_of("w1"), tokenizer, {"max_length": 9, "targets": torch.zeros(2)}, "2 targets for 1 rows of here"),
        (rows_of("w1", "", " "), bare, {"max_length": 9}, "2 rows of here have no token, first row 2"),
        (rows_of("w1"), make_tokenizer(has_special=False), {"max_length": 9}, "neither a pad nor an end-of-sequence"),
    ]
    for rows, used, options, message in cases:
        with pytest.raises(ValueError, match=message):
            encode_text(rows, used, **options)


def test_blocks_are_contiguous(make_tokenizer: MakeTokenizer):
    blocks = lm_blocks(words(11), make_tokenizer(), block_length=4)
    assert (len(blocks), blocks.num_tokens, blocks.num_truncated_tokens) == (2, 8, 3)
    batch = blocks.batch([0, 1])
    assert batch["input_ids"].flatten().tolist() == list(range(5, 13))
    assert batch["labels"].equal(batch["input_ids"])
    with pytest.raises(ValueError, match="the text has 3 tokens, fewer than one block of 4"):
        lm_blocks(words(3), make_tokenizer(), block_length=4)
    with pytest.raises(ValueError, match=r"a block \(`max_length`\) must have at least 2"):
        lm_blocks(words(3), make_tokenizer(), block_length=1)


def test_sst2_with_a_real_tokenizer(real_data: Path, minilm_tokenizer: Any):
    rows = load_text(real_data / "sst2/validation.parquet")
    assert rows.labels is not None
    labels = Labels.fit(rows.labels)
    text = encode_text(rows, minilm_tokenizer, max_length=128, targets=labels.encode(rows.labels))
    batch = text.batch([0, 5, 9])
    expected = minilm_tokenizer([rows.texts[i][0] for i in (0, 5, 9)], padding=True, return_tensors="pt")
    assert batch["input_ids"].equal(expected["input_ids"])
    assert batch["labels"].tolist() == [rows.labels[i] for i in (0, 5, 9)]
    assert text.num_truncated_rows == 0


def test_shakespeare_in_blocks(real_data: Path, minilm_tokenizer: Any):
    blocks = lm_blocks(
        read_plain_text(real_data / "tiny-shakespeare/validation.parquet"), minilm_tokenizer, block_length=128
    )
    assert len(blocks) > 150
    assert set(blocks.lengths.tolist()) == {128}

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featherlight.data import Table, TextRows, iter_rows, load_text, read_plain_text, text_rows


def table(**columns: list[Any]) -> Table:
    return Table(columns=columns, source="here")


@pytest.mark.parametrize(
    ("columns", "text_columns", "label_column", "texts", "labels"),
    [
        ({"sentence": ["a"], "label": [1], "idx": [7]}, (), None, [("a",)], [1]),
        ({"Text": ["a"], "Label": [1]}, (), None, [("a",)], [1]),
        ({"text": ["a"]}, (), None, [("a",)], None),
        ({"premise": ["a"], "hypothesis": ["b"], "label": [1]}, (), None, [("a", "b")], [1]),
        ({"question": ["a"], "sentence": ["b"], "target": [1]}, (), None, [("a", "b")], [1]),
        ({"text": ["a"], "label": [1], "fine": ["x"]}, (), "fine", [("a",)], ["x"]),
        ({"foo": ["a"], "text": ["b"], "label": [1]}, ("foo",), None, [("a",)], [1]),
        ({"foo": ["a"], "bar": ["b"]}, ("bar", "foo"), None, [("b", "a")], None),
        ({"text": ["a"], "body": [1]}, (), "body", [("a",)], [1]),
        ({"text": [""], "target": [1], "label": [None]}, (), None, [("",)], [None]),
    ],
)
def test_columns_are_taken_or_guessed(
    columns: dict[str, list[Any]],
    text_columns: tuple[str, ...],
    label_column: str | None,
    texts: list[tuple[str, ...]],
    labels: list[Any] | None,
):
    rows = text_rows(table(**columns), text_columns=text_columns, label_column=label_column)
    assert (rows.texts, rows.labels, rows.source) == (texts, labels, "here")
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("columns", "text_columns", "label_column", "taken"),
    [
        ({"Text": ["a"], "Label": [1]}, (), None, (("Text",), "Label")),
        ({"premise": ["a"], "hypothesis": ["b"], "label": [1]}, (), None, (("premise", "hypothesis"), "label")),
        ({"text": ["a"], "label": [1], "fine": ["x"]}, (), "fine", (("text",), "fine")),
        ({"foo": ["a"], "bar": ["b"]}, ("bar", "foo"), None, (("bar", "foo"), None)),
    ],
)
def test_rows_say_which_columns_they_are_of(
    columns: dict[str, list[Any]],
    text_columns: tuple[str, ...],
    label_column: str | None,
    taken: tuple[tuple[str, ...], str | None],
):
    rows = text_rows(table(**columns), text_columns=text_columns, label_column=label_column)
    assert (rows.text_columns, rows.label_column) == taken
    again = text_rows(table(**columns), text_columns=rows.text_columns, label_column=rows.label_column)
    assert again == rows


@pytest.mark.parametrize(
    ("columns", "text_columns", "label_column", "message"),
    [
        (
            {"utterance": ["a"], "label": [1]},
            (),
            None,
            r"here .*no usual name.* columns are 'utterance', 'label'.*`--text`",
        ),
        ({"text": ["a"], "body": ["b"]}, (), None, "cannot be told .2 guesses fit.; its columns are 'text', 'body'"),
        ({"text": ["a"], "premise": ["b"], "hypothesis": ["c"]}, (), None, "2 guesses fit"),
        ({"text": ["a"], "labels": [1], "target": [1]}, (), None, r"'labels', 'target' all might.* `--label`"),
        ({"text": ["a"], "label": [1]}, (), "lable", "no column 'lable'.* Did you mean 'label'"),
        ({"text": ["a"], "label": [1]}, ("txt",), None, "no column 'txt'.* Did you mean 'text'"),
        ({"text": ["a", None, 3], "label": [1, 2, 3]}, (), None, "2 of 3 do not: row 2 has 'None' of type NoneType"),
        ({"text": ["a"], "label": [1]}, ("label",), None, "column 'label' of here must hold text.* of type int"),
        ({"text": []}, (), None, "here has no rows"),
    ],
)
def test_bad_columns_are_refused_with_a_sentence(
    columns: dict[str, list[Any]], text_columns: tuple[str, ...], label_column: str | None, message: str
):
    with pytest.raises(ValueError, match=message):
        text_rows(table(**columns), text_columns=text_columns, label_column=label_column)


def test_labels_match_texts():
    with pytest.raises(ValueError, match="2 labels for 1 texts"):
        TextRows(texts=[("a",)], labels=[1, 2], source="here")


def test_chunks_number_their_rows_within_the_file(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a" if i < 5 else None}) + "\n" for i in range(6)), encoding="utf-8")
    first, second = iter_rows(path, 3)
    assert len(text_rows(first)) == 3
    with pytest.raises(ValueError, match="row 6 has 'None'"):
        text_rows(second)


def test_the_built_in_set_loads_by_name():
    rows = load_text("stdlib-docs")
    assert rows.labels is not None
    assert len(set(rows.labels)) == 8
    assert rows.source == "stdlib-docs"
    with pytest.raises(ValueError, match="stdlib-docs has no column 'body'"):
        load_text("stdlib-docs", text_columns=("body",))


@pytest.mark.parametrize(
    ("name", "num_rows", "width"),
    [("sst2/validation.parquet", 872, 1), ("rte/validation.parquet", 277, 2), ("trec/test.parquet", 500, 1)],
)
def test_real_sets_load_without_naming_columns(real_data: Path, name: str, num_rows: int, width: int):
    rows = load_text(real_data / name)
    assert len(rows) == num_rows
    assert {len(texts) for texts in rows.texts} == {width}
    assert rows.labels is not None
    assert all(isinstance(label, int) for label in rows.labels)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\ntwo\n", "one\ntwo\n"),
        ("a.txt", b"{ not JSON\n", "{ not JSON\n"),
        ("a.txt", b"[link] first", "[link] first"),
        ("a.txt", b'{"text": "one"}\n{"text": "two"}\n', "one\ntwo"),
        ("a.csv", b"text,label\none,1\ntwo,2\n", "one\ntwo"),
        ("a.json", b'[{"text": "one"}]', "one"),
    ],
)
def test_plain_text(tmp_path: Path, name: str, content: bytes, expected: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_plain_text(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt:1: byte 3 of the file \(0xe9\) is not UTF-8"),
        ("a.jsonl", b'{"premise": "a", "hypothesis": "b"}', "the pair of text columns 'premise', 'hypothesis'"),
        ("a.jsonl", b'{"foo": "a"}', "no usual name"),
        ("a.jsonl", b'{"text": 1}', "must hold text"),
        ("a.jsonl", b'{"text": \n', r"a\.jsonl:1: the line is not JSON"),
    ],
)
def test_bad_plain_text(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_plain_text(path)


def test_the_column_of_a_plain_text_can_be_named(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text,body\none,1\ntwo,2\n")
    assert read_plain_text(path, text_columns=("body",)) == "1\n2"
    with pytest.raises(ValueError, match=r"'text', 'body'.* one text is needed.*`--text`"):
        read_plain_text(path, text_columns=("text", "body"))


def test_tiny_shakespeare(real_data: Path):
    texts = [read_plain_text(real_data / f"tiny-shakespeare/{split}.parquet") for split in ("train", "validation")]
    assert sum(map(len, texts)) == 1_115_394

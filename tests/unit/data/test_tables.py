from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.data import Table, iter_rows, read_table

ROWS = [{"text": f'row {i}, "quoted"\tand\nbroken é', "label": i % 3} for i in range(7)]
CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), max_size=12)


def parquet_bytes(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, **options), sink)
    return sink.getvalue()


def separated_bytes(rows: list[dict[str, Any]], delimiter: str, line_end: str = "\n") -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def json_lines_bytes(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FORMATS = {
    "json lines": (json_lines_bytes(ROWS), True),
    "json lines, CRLF, BOM, blank lines": (
        b"\xef\xbb\xbf\r\n" + json_lines_bytes(ROWS).replace(b"\n", b"\r\n\r\n"),
        True,
    ),
    "json array": (json.dumps(ROWS, indent=2).encode(), True),
    "json array, BOM": (b"\xef\xbb\xbf  " + json.dumps(ROWS).encode(), True),
    "parquet": (parquet_bytes(ROWS), True),
    "commas": (separated_bytes(ROWS, ","), False),
    "commas, CRLF, BOM": (b"\xef\xbb\xbf" + separated_bytes(ROWS, ",", "\r\n"), False),
    "tabs": (separated_bytes(ROWS, "\t"), False),
    "semicolons": (separated_bytes(ROWS, ";"), False),
    "bars": (separated_bytes(ROWS, "|"), False),
}


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_rows_come_from_every_format(tmp_path: Path, name: str, chunk_rows: int):
    content, is_typed = FORMATS[name]
    path = tmp_path / "rows.anything"
    path.write_bytes(content)
    labels = [row["label"] if is_typed else str(row["label"]) for row in ROWS]
    expected = {"text": [row["text"] for row in ROWS], "label": labels}

    table = read_table(path)
    assert table.columns == expected
    assert (len(table), table.source) == (7, str(path))

    chunks = list(iter_rows(path, chunk_rows))
    assert [chunk.first_row for chunk in chunks] == list(range(1, 8, chunk_rows))
    assert {key: [value for chunk in chunks for value in chunk.column(key)] for key in expected} == expected


@settings(deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), delimiter=st.sampled_from(",\t;|"))
def test_a_csv_of_quoted_fields_comes_back_as_written(rows: list[tuple[str, str]], delimiter: str):
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("first", "second"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.write_bytes(sink.getvalue().encode())
        table = read_table(path)
    assert list(zip(table.column("first"), table.column("second"), strict=True)) == rows


@settings(deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"a": CELLS, "b": st.integers() | st.none()}), min_size=1, max_size=8))
def test_json_lines_and_array_agree(rows: list[dict[str, Any]]):
    with tempfile.TemporaryDirectory() as folder:
        lines, array = Path(folder) / "lines", Path(folder) / "array"
        lines.write_bytes(json_lines_bytes(rows))
        array.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", newline="\n")
        assert read_table(lines).columns == read_table(array).columns == {k: [r[k] for r in rows] for k in ("a", "b")}


def test_a_tsv_with_stray_quotes_is_read_as_it_stands(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text('sentence\tlabel\n"Yes, he said.\t1\nsaid "no" twice\t0\n', encoding="utf-8")
    assert read_table(path).columns == {"sentence": ['"Yes, he said.', 'said "no" twice'], "label": ["1", "0"]}


def test_a_long_tsv_with_a_stray_quote_is_read_as_it_stands(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\nfirst\t1\n" + '"and so on\t1\n' + "more of it\t0\n" * 9_000, encoding="utf-8")
    assert read_table(path).columns["sentence"][:3] == ["first", '"and so on', "more of it"]


def test_a_tsv_of_sentences_with_commas_is_split_at_tabs(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text("text, raw\tlabel\none, two\t1\nthree, four\t0\n", encoding="utf-8")
    assert read_table(path).columns == {"text, raw": ["one, two", "three, four"], "label": ["1", "0"]}


def test_one_column_and_an_unnamed_one(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('text\n"a, b"\nc\n', encoding="utf-8")
    assert read_table(path).columns == {"text": ["a, b", "c"]}
    path.write_text(",text\n0,a\n1,b\n", encoding="utf-8")
    assert read_table(path).columns == {"column_1": ["0", "1"], "text": ["a", "b"]}


def test_a_quoted_field_may_span_the_end_of_the_sniffed_sample(tmp_path: Path):
    rows = [{"text": "long line\n" * 9_000, "label": "a"}, {"text": "short; one", "label": "b"}]
    path = tmp_path / "rows"
    path.write_bytes(separated_bytes(rows, ","))
    assert read_table(path).columns["label"] == ["a", "b"]


def test_a_table_is_the_same_however_it_is_chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines_bytes(ROWS))
    whole = read_table(path)
    monkeypatch.setattr("featherlight.data.tables._READ_CHUNK_ROWS", 2)
    assert read_table(path) == whole


def test_large_files_are_read_a_chunk_at_a_time(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines_bytes(ROWS) + b"this line is broken\n")
    chunks = iter_rows(path, 7)
    assert len(next(chunks)) == 7
    with pytest.raises(ValueError, match=r"rows\.jsonl:8: the line is not JSON"):
        next(chunks)


PARQUET = parquet_bytes(ROWS)
BAD_FILES = {
    "empty": (b"", "is empty"),
    "only a mark": (b"\xef\xbb\xbf", "is empty"),
    "only white space": (b" \n\r\n", "is empty"),
    "header only": (b"text,label\n", r"has a header \('text', 'label'\) but no rows"),
    "header only, one column": (b"text\r\n", r"has a header \('text'\) but no rows"),
    "ragged, short": (b"text,label\na,1\n\nb\n", r"bad:4: the row has 1 fields where the header has 2"),
    "ragged, after a long field": (b'text,label\n"a\nb",1\nb,2,3\n', r"bad:4: the row has 3 fields"),
    "open quote": (b'text,label\na,1\n"b,2\nc,3\n', r"bad:3: the record that begins here .* quotes"),
    "text after a quote": (b'text,label\na,1\n"b"x,2\n', r"bad:3: the record that begins here"),
    "field too long": (b"text,label\n" + b"a" * 140_000 + b",1\n", r"bad:2: .* field limit .* Parquet"),
    "repeated header": (b"text,label,text\na,1,b\n", r"bad:1: the header names 'text' more than once"),
    "not utf-8": (b"text,label\na,1\ncaf\xe9,0\n", r"bad:3: byte 18 of the file \(0xe9\) is not UTF-8"),
    "not utf-8, with a mark": (b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}', r"bad:2: byte 19 of the file \(0xff\)"),
    "lines that end with CR": (b"text,label\ra,1\rb,0\r", "ends its lines with CR alone"),
    "utf-16": ("text,label\na,1\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "broken line": (b'{"a": 1}\n{"a": 2\n', r"bad:2: the line is not JSON \(.* at column"),
    "indented object": (b'{\n"a": 1\n}\n', r"bad:1: the line is not JSON .* Write one object a line"),
    "row that is no object": (b'{"a": 1}\n[2]\n', r"bad:2: a row must be an object .* got '\[2\]'"),
    "row without columns": (b"{}\n", r"bad:1: a row must be an object"),
    "missing column": (b'{"a": 1, "b": 2}\n\n{"a": 3}\n', r"bad:3: the row lacks the column 'b'"),
    "extra column": (b'{"a": 1}\n{"a": 3, "c": 4}\n', r"bad:2: the row has a column 'c'"),
    "broken array": (b'[{"a": 1},\n {"a": 2]', r"bad:2: the file is not one JSON array"),
    "array of rows": (b"[[1, 2], [3, 4]]", "bad: row 1: a row must be an object"),
    "array with a missing column": (b'[{"a": 1}, {"b": 1}]', "bad: row 2: the row lacks the column 'a'"),
    "empty array": (b"[ ]", "holds an empty array"),
    "truncated parquet": (PARQUET[:-20], "begins as Parquet but cannot be read .* cut short"),
    "parquet of four bytes": (b"PAR1", "begins as Parquet but cannot be read"),
    "parquet damaged inside": (PARQUET[:4] + b"\xff" * 40 + PARQUET[44:], "begins as Parquet but cannot be read"),
    "parquet without rows": (
        parquet_bytes([], schema=pa.schema([("text", pa.string())])),
        r"has columns \('text'\) but no rows",
    ),
    "gzip": (b"\x1f\x8b\x08 more", "is gzip-compressed"),
    "workbook": (b"PK\x03\x04 more", "is a zip archive .* export the rows"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_a_sentence(tmp_path: Path, name: str):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        list(iter_rows(path))


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path):
    (tmp_path / "train.jsonl").write_bytes(json_lines_bytes(ROWS))
    with pytest.raises(ValueError, match=r"there is no file .*tarin\.jsonl.* Did you mean 'train\.jsonl'\?"):
        read_table(tmp_path / "tarin.jsonl")
    with pytest.raises(ValueError, match="there is no file"):
        iter_rows(tmp_path / "no folder" / "rows")


def test_a_directory_lists_its_files(tmp_path: Path):
    (tmp_path / "train.jsonl").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"is a directory.* 'train\.jsonl'"):
        read_table(tmp_path)


def test_a_chunk_has_at_least_one_row(tmp_path: Path):
    with pytest.raises(ValueError, match="`chunk_rows` must be at least 1"):
        iter_rows(tmp_path, 0)


def test_an_unknown_column_lists_those_there_are():
    table = Table(columns={"Sentence": ["a"], "label": [1]}, source="here")
    with pytest.raises(
        ValueError,
        match=r"here has no column 'sentense'; its columns are 'Sentence', 'label'\. Did you mean 'Sentence'\?",
    ):
        table.column("sentense")


@pytest.mark.parametrize("columns", [{}, {"a": [1], "b": []}])
def test_columns_are_equally_long(columns: dict[str, list[Any]]):
    with pytest.raises(ValueError, match="equally long"):
        Table(columns=columns, source="here")


@pytest.mark.parametrize(
    ("name", "num_rows", "columns"),
    [
        ("sst2/validation.parquet", 872, ["sentence", "label", "idx"]),
        ("sick/train.parquet", 4500, ["premise", "hypothesis", "label", "relatedness", "idx"]),
        ("trec/test.parquet", 500, ["text", "label", "fine"]),
    ],
)
def test_real_sets_survive_every_format(real_data: Path, tmp_path: Path, name: str, num_rows: int, columns: list[str]):
    table = read_table(real_data / name)
    assert (len(table), list(table.columns)) == (num_rows, columns)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]
    path = tmp_path / "rows"
    path.write_bytes(json_lines_bytes(rows))
    assert read_table(path).columns == table.columns
    for delimiter in ",\t":
        path.write_bytes(separated_bytes(rows, delimiter))
        assert read_table(path).columns == {key: list(map(str, values)) for key, values in table.columns.items()}

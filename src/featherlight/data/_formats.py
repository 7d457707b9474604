"""How each format of a table is recognised and read: bytes in, chunks of columns out."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from featherlight.data._suggest import did_you_mean, listing

Kind = Literal["parquet", "json lines", "json array", "separated"]
Columns = dict[str, list[Any]]

_SAMPLE_BYTES = 65_536
_SAMPLE_RECORDS = 64
_BOM = b"\xef\xbb\xbf"
_FOREIGN_MAGIC = {
    b"\x1f\x8b": "is gzip-compressed; decompress it first",
    b"PK\x03\x04": "is a zip archive (an .xlsx workbook is one too); export the rows as CSV or Parquet",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; decompress it first",
    b"ARROW1": "is an Arrow IPC file; write it as Parquet",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}


_TOO_DEEP = "the JSON is nested so deeply that it is no table. Write one flat object a row."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A file and what its first bytes say about its format."""

    path: Path
    kind: Kind
    delimiter: str = ","
    is_quoted: bool = True


def detect_layout(path: str | os.PathLike[str]) -> Layout:
    """Recognise the format of a file by its first 64 KiB.

    Args:
        path: the file.

    Returns:
        Its layout.

    Raises:
        ValueError: no such file, a directory, an empty file, or a format that is known and not read.
    """
    path = Path(path)
    head = file_head(path)
    if head.startswith(b"PAR1"):
        return Layout(path=path, kind="parquet")
    text = head.removeprefix(_BOM).decode("utf-8", errors="replace")
    first = text.lstrip()[:1]
    if first in ("{", "["):
        return Layout(path=path, kind="json lines" if first == "{" else "json array")
    if "\r" in text and "\n" not in text:
        raise ValueError(
            f"{path} ends its lines with CR alone, so they cannot be told apart. Save it with LF or CRLF line ends."
        )
    delimiter, is_quoted = _sniff_separators(text, is_whole=len(head) < _SAMPLE_BYTES)
    return Layout(path=path, kind="separated", delimiter=delimiter, is_quoted=is_quoted)


def file_head(path: Path) -> bytes:
    """Return the first 64 KiB of a file that has more than white space in them, or raise a ValueError."""
    if path.is_dir():
        inside = listing(sorted(child.name for child in path.iterdir() if child.is_file()), limit=4)
        raise ValueError(
            f"{path} is a directory, where one file of rows is needed. Name a file: it holds {inside or 'none'}."
        )
    if not path.exists():
        folder = path.parent
        near = did_you_mean(path.name, sorted(child.name for child in folder.iterdir())) if folder.is_dir() else ""
        raise ValueError(f"there is no file {path}, so there are no rows to read. Check the path.{near}")
    try:
        with path.open("rb") as file:
            head = file.read(_SAMPLE_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    for magic, sentence in _FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise ValueError(f"{path} {sentence} (read are JSON lines, JSON, CSV, TSV and Parquet).")
    if not head.removeprefix(_BOM).strip():
        raise ValueError(
            f"{path} is empty (no text in {len(head)} bytes), so there are no rows. Check how it was written."
        )
    return head


def column_chunks(layout: Layout, chunk_rows: int) -> Iterator[Columns]:
    """Yield the columns of `chunk_rows` rows at a time.

    Args:
        layout: the file, as `detect_layout` returned it.
        chunk_rows: rows a chunk, at least 1.

    Yields:
        Columns by name; every chunk has the same names and at least one row.

    Raises:
        ValueError: a broken line, a ragged row, or no rows at all.
    """
    if layout.kind == "parquet":
        return _parquet_chunks(layout.path, chunk_rows)
    if layout.kind == "separated":
        return _separated_chunks(layout, chunk_rows)
    rows = _json_lines(layout.path) if layout.kind == "json lines" else _json_array(layout.path)
    return _json_chunks(layout.path, rows, chunk_rows)


def decoded_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, less a byte-order mark; a ValueError names a bad byte."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith(_BOM):
                offset, raw = len(_BOM), raw[len(_BOM) :]
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: byte {offset + error.start:,} of the file ({raw[error.start]:#04x}) is not "
                    "UTF-8, so its text cannot be known. Save the file as UTF-8."
                ) from error
            yield line
            offset += len(raw)


def _sniff_separators(sample: str, *, is_whole: bool) -> tuple[str, bool]:
    """Return the (delimiter, is_quoted) under which most sampled records have as many fields as the header.

    At equal shares, one that leaves a quote open at the end of the sample loses: the quote may be part of the text.
    """
    lines = list(io.StringIO(sample, newline="\n"))
    if not is_whole and len(lines) > 1:
        lines.pop()
    best, best_score = (",", True), (0.0, False)
    for delimiter, is_quoted in (("\t", True), ("\t", False), (",", True), (";", True), ("|", True)):
        widths, is_closed = _record_widths(lines, delimiter, is_quoted=is_quoted, is_whole=is_whole)
        if not widths or widths[0] < 2:
            continue
        score = (sum(width == widths[0] for width in widths) / len(widths), is_closed)
        if score > best_score:
            best, best_score = (delimiter, is_quoted), score
    return best


def _record_widths(lines: list[str], delimiter: str, *, is_quoted: bool, is_whole: bool) -> tuple[list[int], bool]:
    """Return the number of fields of each sampled record (0 if broken), and whether the last one is complete."""
    reader = _csv_reader(lines, delimiter, is_quoted=is_quoted)
    widths: list[int] = []
    try:
        for fields in islice(reader, _SAMPLE_RECORDS):
            if fields:
                widths.append(len(fields))
    except csv.Error:
        is_cut_short = reader.line_num >= len(lines) and not is_whole
        return (widths if is_cut_short else [*widths, 0]), False
    return widths, True


def _csv_reader(lines: Iterable[str], delimiter: str, *, is_quoted: bool) -> Any:
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _separated_chunks(layout: Layout, chunk_rows: int) -> Iterator[Columns]:
    records = _separated_records(layout)
    header_line, header = next(records)
    names = [name.strip() or f"column_{position}" for position, name in enumerate(header, 1)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{layout.path}:{header_line}: the header names {listing(repeated)} more than once, so a column cannot be "
            "told by its name. Rename one."
        )
    is_empty = True
    while chunk := list(islice(records, chunk_rows)):
        is_empty = False
        for line, fields in chunk:
            if len(fields) != len(names):
                raise ValueError(
                    f"{layout.path}:{line}: the row has {len(fields)} fields where the header has {len(names)} "
                    f"({listing(names)}), so its values cannot be assigned to columns. "
                    f"Put a field that contains {layout.delimiter!r} or a line break in double quotes."
                )
        yield {
            name: list(values)
            for name, values in zip(names, zip(*(fields for _, fields in chunk), strict=True), strict=True)
        }
    if is_empty:
        raise ValueError(f"{layout.path} has a header ({listing(names)}) but no rows. Add rows below the header.")


def _separated_records(layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield (line at which the record begins, its fields), blank lines left out."""
    reader = _csv_reader(decoded_lines(layout.path), layout.delimiter, is_quoted=layout.is_quoted)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{layout.path}:{line}: the record that begins here cannot be parsed ({error}). Check its double "
                "quotes: each must close, and one inside a quoted field is written twice; very long texts belong in "
                "JSON lines or Parquet."
            ) from error
        if fields:
            yield line, fields


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where the row stands, its value) of each line that is not blank."""
    for number, line in enumerate(decoded_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: the line is not JSON ({error.msg} at column {error.colno}), so its row cannot be "
                "read. Write one object a line."
            ) from error
        except RecursionError:
            raise ValueError(f"{path}:{number}: {_TOO_DEEP}") from None


def _json_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where the row stands, its value) of each element of the one array in the file."""
    try:
        rows = json.loads("".join(decoded_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: the file is not one JSON array ({error.msg} at column {error.colno}), so its rows "
            "cannot be read. Write one array of objects, or one object a line."
        ) from error
    except RecursionError:
        raise ValueError(f"{path}: {_TOO_DEEP}") from None
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _json_chunks(path: Path, rows: Iterator[tuple[str, Any]], chunk_rows: int) -> Iterator[Columns]:
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} holds an empty array, so there are no rows. Check how it was written.")
    names = list(first[1]) if isinstance(first[1], dict) else []
    rows = chain([first], rows)
    while chunk := list(islice(rows, chunk_rows)):
        for place, row in chunk:
            _check_json_row(place, row, names)
        yield {name: [row[name] for _, row in chunk] for name in names}


def _check_json_row(place: str, row: Any, names: list[str]) -> None:
    if not isinstance(row, dict) or not row:
        raise ValueError(
            f"{place}: a row must be an object with a value for each column name, so that columns have names; "
            f"got {str(row)[:40]!r}."
        )
    missing = [name for name in names if name not in row]
    extra = [name for name in row if name not in names]
    if missing or extra:
        fault = f"lacks the column {missing[0]!r}" if missing else f"has a column {extra[0]!r}"
        raise ValueError(
            f"{place}: the row {fault}, where the first row has {listing(names)}; every row needs the same columns. "
            "Write null where a value is unknown."
        )


def _parquet_chunks(path: Path, chunk_rows: int) -> Iterator[Columns]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_empty = True
    try:
        with pq.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            for batch in file.iter_batches(batch_size=chunk_rows):
                if batch.num_rows:
                    is_empty = False
                    yield batch.to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} begins as Parquet but cannot be read ({str(error).partition(chr(10))[0][:120]}); it is most "
            "likely cut short or damaged. Copy or write it again."
        ) from error
    if is_empty:
        raise ValueError(f"{path} has columns ({listing(names)}) but no rows. Check how it was written.")

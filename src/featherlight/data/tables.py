"""Tables of named columns from files of any of five formats, recognised by content and never by extension.

Rows are counted from 1 in every message, lines of a file likewise (so the first row of a CSV stands on line 2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from featherlight.data._formats import column_chunks, detect_layout
from featherlight.data._suggest import did_you_mean, listing

_READ_CHUNK_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length.

    Args:
        columns: values of each column by its name; every list has one entry a row.
        source: where the rows come from, as errors name it.
        first_row: number of the first row within `source`, counted from 1.

    Raises:
        ValueError: the columns differ in length, or there is none.
    """

    columns: dict[str, list[Any]]
    source: str
    first_row: int = 1

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"the columns of a table must exist and be equally long, one entry a row; {self.source} "
                f"has lengths {lengths}. Give one value a row in every column."
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> list[Any]:
        """Return the values of one column.

        Args:
            name: the column's name.

        Returns:
            The column's list itself, one entry a row.

        Raises:
            ValueError: there is no such column; the message lists those there are.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.source} has no column {name!r}; its columns are {listing(self.columns)}."
                f"{did_you_mean(name, self.columns)}"
            )
        return self.columns[name]


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a whole file of rows.

    The format is told by content: Parquet by its magic bytes; JSON lines and a JSON array by their first character;
    anything else is text separated by commas, tabs, semicolons or bars with a header line, in which values stay
    strings and fields may be quoted. Text is UTF-8, with or without a byte-order mark, with LF or CRLF line ends.

    Args:
        path: the file.

    Returns:
        The table, its `source` the path.

    Raises:
        ValueError: no such file, a directory, no rows, a format that is not one of these, bytes that are not UTF-8,
            a broken or ragged line, a row that lacks a column. Where there is a line, the message begins `path:line:`.
    """
    columns: dict[str, list[Any]] = {}
    for chunk in iter_rows(path, chunk_rows=_READ_CHUNK_ROWS):
        if not columns:
            columns = chunk.columns
            continue
        for name, values in chunk.columns.items():
            columns[name] += values
    return Table(columns=columns, source=os.fspath(path))


def iter_rows(path: str | os.PathLike[str], chunk_rows: int = 1024) -> Iterator[Table]:
    """Read a file in tables of `chunk_rows` rows, for files larger than memory.

    Holds one chunk at a time (and one Parquet row group); a JSON array alone is read whole, since it has no lines.

    Args:
        path: the file, as for `read_table`.
        chunk_rows: rows a table; the last may have fewer.

    Returns:
        An iterator of tables with the same columns, each with its `first_row`; at least one.

    Raises:
        ValueError: as `read_table`; what the first bytes tell at the call, what a later line tells when it is reached.
    """
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be at least 1, since a table holds that many rows; got {chunk_rows}.")
    layout = detect_layout(path)
    return _tables(column_chunks(layout, chunk_rows), source=os.fspath(path))


def _tables(chunks: Iterator[dict[str, list[Any]]], *, source: str) -> Iterator[Table]:
    first_row = 1
    for columns in chunks:
        table = Table(columns=columns, source=source, first_row=first_row)
        yield table
        first_row += len(table)

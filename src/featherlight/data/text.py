"""Rows of text with their labels, from the user's files or from Python's own library."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherlight.data._formats import decoded_lines, file_head
from featherlight.data._suggest import listing
from featherlight.data.stdlib_docs import stdlib_docs
from featherlight.data.tables import Table, read_table

STDLIB_DOCS = "stdlib-docs"
"""The source name under which `load_text` gives the built-in set."""

_PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
)
_TEXT_NAMES = ("text", "sentence", "content", "document", "review", "question", "comment", "tweet", "body")
_LABEL_NAMES = ("labels", "target", "class")
_TABLE_SUFFIXES = (".csv", ".tsv", ".json")


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """Texts of equal width with their labels.

    Args:
        texts: the texts of each row: (text,), or (first, second) for a pair.
        labels: one raw label a row, or None where there are none.
        source: where the rows come from, as errors name it.
        text_columns: the columns the texts are of, as given or guessed; empty where the rows are of no table.
        label_column: the column the labels are of, likewise; None where there is none.

    Raises:
        ValueError: no rows, or another number of labels than of texts.
    """

    texts: list[tuple[str, ...]]
    labels: list[Any] | None
    source: str
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError(f"{self.source} has no rows of text, so there is nothing to read. Check how it was made.")
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(
                f"{self.source} has {len(self.labels):,} labels for {len(self.texts):,} texts; each row needs one. "
                "Pass equally many, or `labels=None`."
            )

    def __len__(self) -> int:
        return len(self.texts)


def load_text(
    source: str | os.PathLike[str], *, text_columns: tuple[str, ...] = (), label_column: str | None = None
) -> TextRows:
    """Load texts and labels from a file, or the built-in docstrings.

    Args:
        source: a file that `read_table` reads, or "stdlib-docs" for the docstrings of Python's own library.
        text_columns: the columns of a row's texts, one or a pair. Empty: guessed from usual names (`text`, `sentence`,
            ...; `premise` with `hypothesis`, ...) where exactly one guess fits.
        label_column: the column of labels. None: `label`, or the only one of `labels`, `target`, `class`; where there
            is none of these the rows have no labels.

    Returns:
        The rows, with the columns that were taken.

    Raises:
        ValueError: what `read_table` raises, a column that is absent or cannot be guessed, or a text that is not a
            string.
    """
    return text_rows(source_table(source), text_columns=text_columns, label_column=label_column)


def source_table(source: str | os.PathLike[str]) -> Table:
    """Read the table of a source as `load_text` takes it: a file, or "stdlib-docs"."""
    if source == STDLIB_DOCS:
        texts, labels = stdlib_docs()
        return Table(columns={"text": texts, "label": labels}, source=STDLIB_DOCS)
    return read_table(source)


def text_rows(table: Table, *, text_columns: tuple[str, ...] = (), label_column: str | None = None) -> TextRows:
    """Take texts and labels from a table, such as one chunk of `iter_rows`.

    Args:
        table: the rows.
        text_columns: as for `load_text`.
        label_column: as for `load_text`.

    Returns:
        The rows, with the columns that were taken; row numbers in errors count from the table's `first_row`.

    Raises:
        ValueError: a column that is absent or cannot be guessed, or a text that is not a string.
    """
    label_name = label_column or _guess_label_column(table, text_columns)
    labels = None if label_name is None else table.column(label_name)
    names = text_columns or guess_text_columns(table, label_name)
    for name in names:
        _check_texts(table, name)
    texts = list(zip(*(table.column(name) for name in names), strict=True))
    return TextRows(texts=texts, labels=labels, source=table.source, text_columns=tuple(names), label_column=label_name)


def read_plain_text(path: str | os.PathLike[str], *, text_columns: tuple[str, ...] = ()) -> str:
    """Read one long text.

    Args:
        path: "stdlib-docs", or a Parquet, JSON-lines, .csv, .tsv or .json file with a text column, whose rows are
            joined by newlines; any other file is read as UTF-8 text, line ends becoming LF.
        text_columns: the one column of a table that holds the text. Empty: guessed as for `load_text`.

    Returns:
        The text, not blank.

    Raises:
        ValueError: no such file, an empty file, bytes that are not UTF-8, or no single text column.
    """
    if path != STDLIB_DOCS and not _is_table(Path(path)):
        return "".join(decoded_lines(Path(path))).replace("\r\n", "\n")
    table = source_table(path)
    names = text_columns or guess_text_columns(table, None)
    if len(names) != 1:
        raise ValueError(
            f"{path} has the pair of text columns {listing(names)}, and one text is needed. Name the one to read with "
            "`--text`."
        )
    _check_texts(table, names[0])
    return "\n".join(table.column(names[0]))


def _is_table(path: Path) -> bool:
    head = file_head(path)
    if head.startswith(b"PAR1") or path.suffix.lower() in _TABLE_SUFFIXES:
        return True
    if not head.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(head.lstrip().splitlines()[0]), dict)
    except ValueError:
        return path.suffix.lower() == ".jsonl"


def _check_texts(table: Table, name: str) -> None:
    values = table.column(name)
    bad = [row for row, value in enumerate(values, table.first_row) if not isinstance(value, str)]
    if bad:
        value = values[bad[0] - table.first_row]
        raise ValueError(
            f"column {name!r} of {table.source} must hold text in every row, but {len(bad):,} of {len(values):,} do "
            f"not: row {bad[0]:,} has {str(value)[:40]!r} of type {type(value).__name__}. Name another text column "
            "with `--text`, or fill these in."
        )


def guess_text_columns(table: Table, label_column: str | None) -> tuple[str, ...]:
    """Find the text columns of a table by their usual names.

    Args:
        table: the rows.
        label_column: a column that holds no text; None where there is none.

    Returns:
        One column, or a pair.

    Raises:
        ValueError: no usual name is there, or more than one guess fits.
    """
    by_fold = {name.lower(): name for name in table.columns if name != label_column}
    pairs = [pair for pair in _PAIR_NAMES if all(name in by_fold for name in pair)]
    in_pairs = {name for pair in pairs for name in pair}
    guesses = pairs + [(name,) for name in _TEXT_NAMES if name in by_fold and name not in in_pairs]
    if len(guesses) == 1:
        return tuple(by_fold[name] for name in guesses[0])
    reason = f"{len(guesses)} guesses fit" if guesses else "no usual name is among them"
    raise ValueError(
        f"which columns of {table.source} hold the text cannot be told ({reason}); its columns are "
        f"{listing(table.columns)}. Name one with `--text`, or a pair by giving `--text` twice."
    )


def _guess_label_column(table: Table, text_columns: tuple[str, ...]) -> str | None:
    by_fold = {name.lower(): name for name in table.columns if name not in text_columns}
    if "label" in by_fold:
        return by_fold["label"]
    guesses = [by_fold[name] for name in _LABEL_NAMES if name in by_fold]
    if len(guesses) > 1:
        raise ValueError(
            f"which column of {table.source} holds the labels cannot be told: {listing(guesses)} all might. Name one "
            "with `--label`."
        )
    return guesses[0] if guesses else None

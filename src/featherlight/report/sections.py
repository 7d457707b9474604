"""What a kind of run adds to its page: titled sections of tables, charts and images, handed over as data.

A recipe makes `Section`s and calls `write_sections`; the page draws them. Nothing here knows what the figures mean, so a
new kind of run needs no change of the report. Numbers that are not finite are allowed everywhere and drawn as gaps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Cell: TypeAlias = str | int | float | None
"""What a cell of a table may hold; None stands for nothing."""

MOST_PIXELS = 16_000_000
"""The pixels that the images of one block may have in all."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `rows` of as many cells as there are `columns`; columns of numbers are set flush right.

    Attributes:
        columns: their headings, one or more.
        rows: of text, numbers or None for an empty cell; truth values read yes and no.
        caption: a sentence below it; empty for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        """Raise a ValueError unless every row has a cell for each column, of a kind that can be shown."""
        columns = _texts("columns", self.columns)
        if not columns:
            raise ValueError("`columns` is empty, so the table would show nothing; name at least one column")
        rows = tuple(tuple(_cell(cell) for cell in row) for row in self.rows)
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"row {number} of `rows` has {len(row)} cells and there are {len(columns)} columns, so no cell has a "
                    "sure meaning; give one cell for each column (None where there is nothing)"
                )
        _settle(self, columns=columns, rows=rows, caption=_text("caption", self.caption))


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Lines over a common pair of axes. A point without a place is a gap.

    Attributes:
        x_label: of the axis, with the unit.
        y_label: of the axis, with the unit.
        lines: maps a label to its xs and ys, as many of the one as of the other.
        caption: a sentence below it; empty for none.
        log_x: whether the axis is logarithmic; what is not positive is then a gap.
        log_y: as `log_x`.
    """

    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    caption: str = ""
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        """Raise a ValueError unless every line has as many ys as xs."""
        if not self.lines:
            raise ValueError("`lines` is empty, so there is nothing to draw; give at least one line")
        lines = {}
        for label, line in self.lines.items():
            if len(line) != 2:
                raise ValueError(f"line {label!r} of `lines` has {len(line)} parts; give a pair of its xs and its ys")
            xs, ys = (_numbers(f"line {label!r}", part) for part in line)
            if len(xs) != len(ys):
                raise ValueError(
                    f"line {label!r} of `lines` has {len(xs)} xs and {len(ys)} ys, so points cannot be paired; "
                    "give one y for each x"
                )
            lines[_text("a label of `lines`", label)] = (xs, ys)
        _settle(
            self,
            x_label=_text("x_label", self.x_label),
            y_label=_text("y_label", self.y_label),
            lines=lines,
            caption=_text("caption", self.caption),
        )


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """A bar for each label, from zero; many bars are drawn as columns without their figures.

    Attributes:
        labels: one or more.
        values: one for each label.
        unit: is set behind each figure; empty for none.
        caption: a sentence below it; empty for none.
    """

    labels: tuple[str, ...]
    values: tuple[float, ...]
    unit: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        """Raise a ValueError unless every label has its value."""
        labels, values = _texts("labels", self.labels), _numbers("values", self.values)
        if len(labels) != len(values) or not labels:
            raise ValueError(
                f"`labels` has {len(labels)} names and `values` {len(values)} numbers; give one value for each label, "
                "and at least one"
            )
        _settle(
            self,
            labels=labels,
            values=values,
            unit=_text("unit", self.unit),
            caption=_text("caption", self.caption),
        )


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Numbers as shades, the positive in one colour and the negative in another; small ones show their figures too.

    Attributes:
        values: rows of numbers, one for each label of `row_labels`, each with one for each of `column_labels`.
        row_labels: from the top down.
        column_labels: from left to right.
        caption: a sentence below it; empty for none.
    """

    values: Sequence[Sequence[float]]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        """Raise a ValueError unless there is one row and one column of numbers for each label."""
        rows, columns = _texts("row_labels", self.row_labels), _texts("column_labels", self.column_labels)
        values = tuple(_numbers("values", row) for row in self.values)
        widths = {len(row) for row in values}
        if not rows or not columns or len(values) != len(rows) or widths != {len(columns)}:
            raise ValueError(
                f"`values` has {len(values)} rows of {_listed(widths)} numbers for {len(rows)} row labels and "
                f"{len(columns)} column labels; give one row and one column for each label, and at least one of each"
            )
        _settle(self, values=values, row_labels=rows, column_labels=columns, caption=_text("caption", self.caption))


@dataclass(frozen=True, kw_only=True)
class ConfusionTable:
    """How many examples of one label were given another.

    Attributes:
        labels: the classes, one or more.
        counts: `counts[i][j]` examples of label i were given label j.
        caption: a sentence above it; empty for none.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        """Raise a ValueError unless there is one row and one column of counts for each label."""
        labels = _texts("labels", self.labels)
        counts = tuple(tuple(_count(count) for count in row) for row in self.counts)
        widths = [len(row) for row in counts]
        if not labels or widths != [len(labels)] * len(labels):
            raise ValueError(
                f"`counts` has rows of lengths {widths[:8]} for {len(labels)} labels, so no cell has a sure meaning; "
                "give one row and one column for each label, and at least one label"
            )
        _settle(self, labels=labels, counts=counts, caption=_text("caption", self.caption))


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images in rows.

    Attributes:
        images: uint8, (N, H, W) for grey or (N, H, W, 3) for colour; `MOST_PIXELS` pixels at most.
        columns: images a row.
        caption: a sentence below them; empty for none.
        labels: empty, or one for each image.
        scale: each pixel is drawn as so many on a side.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    columns: int
    caption: str = ""
    labels: tuple[str, ...] = ()
    scale: int = 1

    def __post_init__(self) -> None:
        """Raise a ValueError unless the images are bytes in one of the two shapes, and every label has its image."""
        images = np.asarray(self.images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"`images` is of {images.dtype}, whose range has no sure meaning; scale it to 0..255 and give np.uint8"
            )
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape:
            raise ValueError(
                f"`images` has the shape {images.shape}; give (N, H, W) for grey or (N, H, W, 3) for colour, none of them 0"
            )
        num, height, width = images.shape[:3]
        if num * height * width > MOST_PIXELS:
            raise ValueError(
                f"`images` has {num * height * width:,} pixels, and a page has room for {MOST_PIXELS:,}; "
                "give fewer or smaller ones"
            )
        labels = _texts("labels", self.labels)
        if labels and len(labels) != num:
            raise ValueError(f"`labels` has {len(labels)} names for {num} images; give one for each, or none")
        for name, value in (("columns", self.columns), ("scale", self.scale)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1; got {value!r}")
        images = images.copy()
        images.setflags(write=False)
        _settle(
            self,
            images=images,
            columns=int(self.columns),
            scale=int(self.scale),
            labels=labels,
            caption=_text("caption", self.caption),
        )


Block: TypeAlias = Table | LineChart | BarChart | Heatmap | ConfusionTable | Images
"""What a section is made of."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a run's page.

    Attributes:
        title: its heading; in a report of several runs, sections of one title stand together.
        text: a few plain sentences; a blank line parts paragraphs.
        blocks: tables, charts and images, in order.
    """

    title: str
    text: str = ""
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        """Raise a ValueError unless there is a title and every block is of a kind that the page can draw."""
        if not _text("title", self.title).strip():
            raise ValueError("`title` is empty, so the section would have no heading; give a few words")
        blocks = tuple(self.blocks)
        for block in blocks:
            if not isinstance(block, Block):
                raise ValueError(
                    f"`blocks` holds a {type(block).__name__}, which the page cannot draw; give "
                    "Table, LineChart, BarChart, Heatmap, ConfusionTable or Images"
                )
        _settle(self, text=_text("text", self.text), blocks=blocks)


def _settle(block: object, **values: object) -> None:
    """Put checked values into a frozen block under construction."""
    for name, value in values.items():
        object.__setattr__(block, name, value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be text; got {value!r}")
    return str(value)


def _texts(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must be a sequence of texts; got {values!r}")
    return tuple(_text(name, value) for value in values)


def _numbers(name: str, values: Iterable[object]) -> tuple[float, ...]:
    """Return numbers as floats; None, as JSON has it, is NaN."""
    return tuple(math.nan if value is None else _number(name, value) for value in values)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"`{name}` must hold numbers; got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"`counts` must hold whole numbers from 0; got {value!r}")
    return int(value)


def _cell(value: object) -> Cell:
    """Return a cell as plain Python; truth values read yes and no."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a cell of `rows` is {value!r}; give text, a number or None")


def _listed(widths: set[int]) -> str:
    return " or ".join(map(str, sorted(widths)[:4])) or "no"

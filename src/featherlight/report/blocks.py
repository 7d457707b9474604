"""The blocks of sections made ready for the page: cells in words, charts as panels, images as data addresses."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np

from featherlight.report.charts import SIDE, Axis, Panel, Tick, Trace, mark, plain_axis, ticks
from featherlight.report.confusions import LARGEST_TABLE, ConfusionView, confusion_view
from featherlight.report.curves import Curve, drawable, thin
from featherlight.report.memory import Bar
from featherlight.report.panels import Figure, Subject, described, legend_of
from featherlight.report.quantities import in_count, in_digits, in_step
from featherlight.report.section_files import png
from featherlight.report.sections import (
    BarChart,
    Block,
    Cell,
    ConfusionTable,
    Heatmap,
    Images,
    LineChart,
    Section,
    Table,
)

IMAGE_BYTES_ON_A_PAGE = 1_000_000
"""Bytes of PNG that the images of a page may take, shared alike among its blocks."""

_MOST_ROWS = 200
_MOST_BARS = 24
_MOST_HEATMAP_CELLS = 16
_HEATMAP_SIDE = 256
_POINTS_IN_A_CHART = 2400
_FEWEST_POINTS = 60
_MOST_TICKS = 8
_TICK_LETTERS = 40
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)
_LARGEST_TABLE_IN_A_COMPARISON = 10


@dataclass(frozen=True, kw_only=True)
class CellView:
    """A cell: its text, its exact `value` where it is a number, and its shade from 0 to 1 with the look of it."""

    text: str
    value: float | None = None
    share: float = 0.0
    look: str = ""


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table: its columns, which of them are numbers, and the rows; `heads` names the rows of a heatmap."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[CellView, ...], ...]
    caption: str
    heads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BarsView:
    """Bars under a caption."""

    bars: tuple[Bar, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """An image: its data address and its label."""

    address: str
    label: str


@dataclass(frozen=True, kw_only=True)
class ImagesView:
    """Images in rows of `columns`, each `width` pixels wide on the page."""

    images: tuple[ImageView, ...]
    columns: int
    width: int
    height: int
    enlarged: bool
    caption: str
    description: str


@dataclass(frozen=True, kw_only=True)
class ConfusionBlock:
    """A confusion table with a caption."""

    view: ConfusionView
    caption: str


BlockView: TypeAlias = TableView | Figure | BarsView | ImagesView | ConfusionBlock


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the page shows of a block: the template's macro for it, and what that is handed."""

    macro: str
    view: BlockView


def draw_blocks(section: Section, *, slot: int, alone: bool, image_bytes: int) -> tuple[Drawn, ...]:
    """Make a section's blocks ready.

    Args:
        section: the section.
        slot: the colour of its run.
        alone: whether the page shows one run; with several, confusion tables are kept smaller.
        image_bytes: what each block of images may take.
    """
    return tuple(_draw(block, slot, alone, image_bytes) for block in section.blocks)


def _draw(block: Block, slot: int, alone: bool, image_bytes: int) -> Drawn:
    match block:
        case Table():
            return Drawn(macro="table", view=_table(block))
        case LineChart():
            return Drawn(macro="figure", view=_line_chart(block, slot))
        case BarChart() if len(block.labels) <= _MOST_BARS:
            return Drawn(macro="bars", view=_bars(block))
        case BarChart():
            return Drawn(macro="figure", view=_columns(block, slot))
        case Heatmap() if max(len(block.row_labels), len(block.column_labels)) <= _MOST_HEATMAP_CELLS:
            return Drawn(macro="heatmap", view=_small_heatmap(block))
        case Heatmap():
            return Drawn(macro="figure", view=_large_heatmap(block))
        case ConfusionTable():
            largest = LARGEST_TABLE if alone else _LARGEST_TABLE_IN_A_COMPARISON
            view = ConfusionBlock(view=confusion_view(block, largest_table=largest), caption=block.caption)
            return Drawn(macro="confusion", view=view)
        case Images():
            return Drawn(macro="images", view=_images(block, image_bytes))


def _table(block: Table) -> TableView:
    numeric = tuple(
        any(isinstance(row[i], int | float) for row in block.rows)
        and not any(isinstance(row[i], str) for row in block.rows)
        for i in range(len(block.columns))
    )
    caption = block.caption
    if len(block.rows) > _MOST_ROWS:
        caption = f"{caption} The first {_MOST_ROWS} of {in_count(len(block.rows))} rows.".strip()
    rows = tuple(tuple(map(_cell, row)) for row in block.rows[:_MOST_ROWS])
    return TableView(columns=block.columns, numeric=numeric, rows=rows, caption=caption)


def _cell(cell: Cell) -> CellView:
    match cell:
        case None:
            return CellView(text="none", look="nothing")
        case str():
            return CellView(text=cell)
        case int():
            return CellView(text=in_count(cell), value=cell)
        case float():
            return CellView(text=in_digits(cell), value=cell)


def _line_chart(block: LineChart, slot: int) -> Figure:
    max_points = max(_FEWEST_POINTS, _POINTS_IN_A_CHART // len(block.lines))
    alone = len(block.lines) == 1
    traces = []
    for number, (label, (xs, ys)) in enumerate(block.lines.items()):
        curve = thin(Curve(xs=_placeable(xs, block.log_x), ys=_placeable(ys, block.log_y)), max_points)
        traces.append(Trace(label=label, curve=curve, slot=slot if alone else number, look="line"))
    x = plain_axis([x for trace in traces for x in trace.curve.xs], log=block.log_x)
    y = plain_axis([y for trace in traces for y in trace.curve.ys], log=block.log_y, margin=0.06)
    subject = Subject(name=block.y_label, show=in_digits, tick=in_step)
    drawn = [trace for trace in traces if any(map(drawable, trace.curve.ys))]
    panel = Panel(
        title=f"{block.x_label}{' (logarithmic)' if block.log_x else ''}",
        description=described(subject, block.x_label, drawn) if drawn else f"{block.y_label}: nothing can be drawn.",
        x_ticks=ticks(x, in_step),
        y_ticks=ticks(y, in_step, upwards=True),
        marks=tuple(mark(trace, x, y) for trace in [*traces, *_lone_points(traces)]),
    )
    title = f"{block.y_label}{' (logarithmic)' if block.log_y else ''}"
    return Figure(title=title, caption=block.caption, legend=legend_of(traces), panels=(panel,))


def _placeable(values: Sequence[float], log: bool) -> list[float]:
    """Return values with those that have no place on a logarithmic axis as gaps."""
    return [value if value > 0 or not log else math.nan for value in values]


def _lone_points(traces: Sequence[Trace]) -> list[Trace]:
    """Return dots for the lines of few points, which could not be told apart otherwise."""
    return [
        Trace(label=trace.label, curve=trace.curve, slot=trace.slot, look="dots")
        for trace in traces
        if len(trace.curve.xs) <= 2 * _MOST_TICKS
    ]


def _bars(block: BarChart) -> BarsView:
    seen = [value for value in block.values if drawable(value)]
    low, high = min([0.0, *seen]), max([0.0, *seen])
    span = high - low or 1.0
    bars = []
    for label, value in zip(block.labels, block.values, strict=True):
        start, end = (min(0.0, value), max(0.0, value)) if drawable(value) else (0.0, 0.0)
        bars.append(
            Bar(
                label=label,
                source="",
                value=value,
                text=f"{in_digits(value)}{block.unit and chr(0xA0) + block.unit}",
                start=round(100 * (start - low) / span, 2),
                share=round(100 * (end - start) / span, 2),
                line=round(-100 * low / span, 2) if low < 0 else None,
                look="training",
            )
        )
    return BarsView(bars=tuple(bars), caption=block.caption)


def _columns(block: BarChart, slot: int) -> Figure:
    """Draw many bars as columns side by side, with a few of their labels."""
    num = len(block.labels)
    shown = Curve(xs=range(num), ys=block.values)
    if num > SIDE:
        shown = Curve(xs=range(SIDE), ys=_pooled(block.values, SIDE))
    x = Axis(low=-0.5, high=len(shown.xs) - 0.5)
    y = plain_axis([0.0, *shown.ys])
    seen = [value for value in block.values if drawable(value)] or [math.nan]
    unit = f" {block.unit}" if block.unit else ""
    description = f"{num} values from {in_digits(min(seen))} to {in_digits(max(seen))}{unit}."
    panel = Panel(
        title=f"{in_count(num)} values, in order",
        description=f"{block.caption} {description}".strip(),
        x_ticks=_label_ticks(block.labels),
        y_ticks=ticks(y, in_step, upwards=True),
        marks=(mark(Trace(label="", curve=shown, slot=slot, look="columns"), x, y),),
    )
    caption = f"{block.caption} {description}".strip()
    if num > SIDE:
        caption += f" Each column is the largest of about {round(num / SIDE)} neighbours."
    return Figure(title=f"In {block.unit}" if block.unit else "", caption=caption, legend=(), panels=(panel,))


def _pooled(values: Sequence[float], num: int) -> list[float]:
    """Return the largest of each of `num` stretches of the values."""
    ends = [round(i * len(values) / num) for i in range(num + 1)]
    stretches = ([v for v in values[a:b] if drawable(v)] for a, b in pairwise(ends))
    return [max(stretch, key=abs) if stretch else math.nan for stretch in stretches]


def _label_ticks(labels: Sequence[str], *, upwards: bool = False) -> tuple[Tick, ...]:
    """Place a few of the labels, each at the middle of its cell, so that their texts keep apart."""
    room = max(1, _MOST_TICKS if upwards else min(_MOST_TICKS, _TICK_LETTERS // (2 + max(map(len, labels)))))
    stride = math.ceil(len(labels) / room)
    return tuple(
        Tick(at=round(100 * (i + 0.5) / len(labels), 2), text=labels[i]) for i in range(0, len(labels), stride)
    )


def _shades(block: Heatmap) -> tuple[np.ndarray, float, float]:
    """Return the values over the largest of their sizes, and their ends; NaN where not drawable."""
    values = np.array(block.values, dtype=np.float64)
    values[~(np.abs(values) <= 1e100)] = np.nan
    seen = values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (math.nan, math.nan)
    largest = max(abs(low), abs(high)) if seen.size else 1.0
    return values / (largest or 1.0), low, high


def _scale_words(low: float, high: float) -> str:
    if math.isnan(low):
        return "No value can be drawn."
    words = "Shades go by size, blue above zero and orange below" if low < 0 else "Shades go by size, from zero"
    return f"{words}; values from {in_digits(low)} to {in_digits(high)}."


def _small_heatmap(block: Heatmap) -> TableView:
    shares, low, high = _shades(block)
    rows = tuple(
        tuple(
            CellView(
                text=in_digits(value) if drawable(value) else "none",
                value=value,
                share=0.0 if math.isnan(share) else round(abs(float(share)), 3),
                look="none" if math.isnan(share) else "wrong" if share < 0 else "right",
            )
            for value, share in zip(row, row_shares, strict=True)
        )
        for row, row_shares in zip(block.values, shares, strict=True)
    )
    return TableView(
        columns=block.column_labels,
        numeric=(True,) * len(block.column_labels),
        rows=rows,
        caption=f"{block.caption} {_scale_words(low, high)}".strip(),
        heads=block.row_labels,
    )


def _large_heatmap(block: Heatmap) -> Figure:
    """Draw a heatmap as a picture of one pixel a cell, whose opacity is the value's size."""
    shares, low, high = _shades(block)
    words = f"{block.caption} {_scale_words(low, high)}".strip()
    if max(shares.shape) > _HEATMAP_SIDE:
        shares = _shrunk(shares, _HEATMAP_SIDE)
        words += f" Of each side, {_HEATMAP_SIDE} evenly spaced at most are shown."
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where((shares < 0)[..., None], np.array(_WRONG), np.array(_RIGHT))
    pixels[..., 3] = np.round(255 * np.nan_to_num(np.abs(shares)))
    shape = f"{in_count(len(block.row_labels))} rows, {in_count(len(block.column_labels))} columns"
    panel = Panel(
        title=shape,
        description=f"{words} {shape}.",
        x_ticks=_label_ticks(block.column_labels),
        y_ticks=_label_ticks(block.row_labels, upwards=True),
        image=_address(pixels),
    )
    return Figure(title="", caption=words, legend=(), panels=(panel,))


def _shrunk(shares: np.ndarray, side: int) -> np.ndarray:
    """Return a matrix of at most `side` on a side, each cell the value of one of those it stands for."""
    rows, columns = (np.linspace(0, length - 1, min(length, side)).round().astype(int) for length in shares.shape)
    return shares[np.ix_(rows, columns)]


def _images(block: Images, image_bytes: int) -> ImagesView:
    encoded = [png(image) for image in block.images]
    total = len(encoded)
    kept = max(1, sum(end <= image_bytes for end in accumulate(map(len, encoded))))
    caption = block.caption
    if kept < total:
        caption = (
            f"{caption} The first {in_count(kept)} of {in_count(total)} are shown, to keep the page small.".strip()
        )
    height, width = block.images.shape[1:3]
    labels = block.labels or ("",) * total
    return ImagesView(
        images=tuple(
            ImageView(address=_data_address(data), label=label)
            for data, label in zip(encoded[:kept], labels[:kept], strict=True)
        ),
        columns=min(block.columns, kept),
        width=width * block.scale,
        height=height * block.scale,
        enlarged=block.scale > 1,
        caption=caption,
        description=f"{in_count(kept)} images of {width} by {height} pixels. {block.caption}".strip(),
    )


def _address(pixels: np.ndarray) -> str:
    return _data_address(png(pixels))


def _data_address(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"

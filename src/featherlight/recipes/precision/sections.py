"""What the report shows of a step: at which powers of two its numbers lie, and what each format would lose of them."""

from collections.abc import Sequence

import torch

from featherlight.functional import FORMATS
from featherlight.precision import count_exponents, lost_shares
from featherlight.precision.step_tensors import KINDS, StepTensors
from featherlight.report import Heatmap, LineChart, Section, Table

_EXPONENTS = range(-40, 17)
_MARKS = dict(zip(KINDS, ("w", "a", "g", "dw"), strict=True))
_EXPLAINED = "Each tensor by itself: weights w, activations a, gradients g and those of weights dw."


def format_sections(step: StepTensors) -> Sequence[Section]:
    """Histograms of exponents by kind and by tensor, and tables of what is lost."""
    return [_exponents(step), _losses(step)]


def _exponents(step: StepTensors) -> Section:
    lines, rows = {}, []
    for kind in KINDS:
        tensors = step.by_kind[kind]
        pooled = count_exponents(torch.cat(list(tensors.values()))) if tensors else None
        if pooled is not None:
            lines[kind] = (list(_EXPONENTS), pooled.shares(_EXPONENTS))
        rows += [count_exponents(tensor).shares(_EXPONENTS) for tensor in tensors.values()]
    marks = (
        "fp16 is normal from 2^-14 to 2^15 and ends at 2^-24; E4M3 at 2^-9, E5M2 at 2^-16; bf16 goes as far as float32."
    )
    chart = LineChart(
        x_label="power of two", y_label="share of entries", lines=lines, caption=f"All layers together. {marks}"
    )
    heatmap = Heatmap(
        values=rows,
        row_labels=_labels(step),
        column_labels=tuple(f"2^{exponent}" for exponent in _EXPONENTS),
        caption=f"{_EXPLAINED} Shares of its entries; those that lie outside are counted at the ends.",
    )
    text = (
        "At which powers of two the numbers of one training batch lie, through the network as it is at the end of the run. "
        "Entries that are zero, such as those behind a ReLU, are counted but not drawn."
    )
    return Section(title="Exponents", text=text, blocks=(chart, heatmap))


def _losses(step: StepTensors) -> Section:
    rows = []
    for kind in KINDS:
        if not step.by_kind[kind]:
            continue
        whole = torch.cat(list(step.by_kind[kind].values()))
        for name, format in FORMATS.items():
            lost = lost_shares(whole, format)
            rows.append((kind, name, lost.zeroed, lost.subnormal, lost.overflowed, lost.error))
    table = Table(
        columns=("of", "format", "become zero", "lose bits", "overflow", "relative error"),
        rows=tuple(rows),
        caption="Shares of the non-zero entries of all layers; the error is a Euclidean norm over that of the numbers. "
        "Blocks are of neighbours in memory.",
    )
    zeroed = [
        [lost_shares(tensor, format).zeroed for format in FORMATS.values()]
        for kind in KINDS
        for tensor in step.by_kind[kind].values()
    ]
    by_tensor = Heatmap(
        values=zeroed,
        row_labels=_labels(step),
        column_labels=tuple(FORMATS),
        caption=f"{_EXPLAINED} The share of its non-zero entries that a format turns into zero.",
    )
    text = (
        "What rounding these numbers to each format would lose, without loss scaling. Formats of blocks and those with a scale "
        "for the tensor fit their range to the numbers; the plain ones do not."
    )
    return Section(title="What formats lose", text=text, blocks=(table, by_tensor))


def _labels(step: StepTensors) -> tuple[str, ...]:
    """Short ones, since a page has room for a few letters: the mark of the kind, and the last two parts of a layer's name."""
    return tuple(f"{_MARKS[kind]} {'.'.join(name.split('.')[-2:])}" for kind in KINDS for name in step.by_kind[kind])

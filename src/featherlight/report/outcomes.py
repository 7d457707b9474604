"""Several runs in a table each: how they ended, and what their settings made of the final metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from featherlight.report.charts import Axis, Panel, Trace, mark, plain_axis, ticks
from featherlight.report.comparing import final_metric, finals, group_line, middle
from featherlight.report.curves import Curve, drawable
from featherlight.report.groups import Group, differing_keys, in_setting, setting
from featherlight.report.panels import Figure
from featherlight.report.quantities import (
    capital,
    in_bytes,
    in_count,
    in_digits,
    in_metric,
    in_metric_step,
    in_range,
    in_step,
    in_time,
    spoken,
)
from featherlight.report.runs import Metric, RunSummary
from featherlight.report.words import head_start, method_name, stop_badge

_MOST_KEYS = 8
_FEWEST_VALUES = 3
_LOG_SPAN = 10.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell of a table of groups: the median with its exact `value`, and the range over the seeds as a note."""

    text: str
    value: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A group's row: its name, colour and how it ended; `line` says so in a sentence where it has no entries."""

    label: str
    slot: int
    badge: str
    tone: str
    note: str
    line: str
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """A table with a row for each group; `numeric` says which columns are set flush right."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[GroupRow, ...]
    note: str = ""


_Read: TypeAlias = Callable[[RunSummary], float | None]
_Show: TypeAlias = Callable[[float], str]


def outcome_table(groups: Sequence[Group]) -> GroupTable:
    """Return how each group ended; columns that no group has anything for are left out."""
    columns = {name: [of(group) for group in groups] for name, of in _OUTCOMES.items()}
    kept = {name: entries for name, entries in columns.items() if any(entries)}
    if "Memory above inference" in kept:
        kept.pop("Peak memory")
    rows = tuple(_row(group, tuple(entries[i] for entries in kept.values())) for i, group in enumerate(groups))
    return GroupTable(columns=tuple(kept), numeric=(True,) * len(kept), rows=rows)


def sweep_table(groups: Sequence[Group]) -> GroupTable | None:
    """Return the settings in which groups differ beside their final metric, best first; None where nothing differs."""
    keys = differing_keys(groups)
    if len(groups) < 2 or not keys:
        return None
    shown = keys[:_MOST_KEYS]
    metric = _common_metric(groups)
    ordered = _best_first(groups, metric) if metric else list(groups)
    name = capital(spoken(metric.name)) if metric else "Metric at the end"
    over_seeds = any(group.several for group in groups)
    rows = []
    for group in ordered:
        settings = [setting(group.lead, key) for key in shown]
        entries = [Entry(text=in_setting(value), value=_plain_number(value)) for value in settings]
        seeds = [Entry(text=in_count(len(group.runs)), value=len(group.runs))] if over_seeds else []
        rows.append(_row(group, (_metric_entry(group, lambda metric: metric.last), *entries, *seeds)))
    note = (
        ""
        if len(keys) == len(shown)
        else f"{len(keys) - len(shown)} further settings differ: {', '.join(keys[_MOST_KEYS:])}."
    )
    order = "Best first." if metric else "The groups have no metric in common, so none is called best."
    numeric = tuple(all(_plain_number(setting(group.lead, key)) is not None for group in groups) for key in shown)
    last = ("Seeds",) if over_seeds else ()
    return GroupTable(
        columns=(name, *shown, *last),
        numeric=(True, *numeric, *(True for _ in last)),
        rows=tuple(rows),
        note=f"{order} {note}".strip(),
    )


def sweep_figure(groups: Sequence[Group]) -> Figure | None:
    """Draw the final metric against the one setting that differs, where that is a number with at least three values."""
    keys, metric = differing_keys(groups), _common_metric(groups)
    if len(keys) != 1 or metric is None:
        return None
    gathered: dict[float, list[float]] = {}
    for group in groups:
        x = _plain_number(setting(group.lead, keys[0]))
        if x is None:
            return None
        gathered.setdefault(x, []).extend(finals(group, metric.name))
    points = sorted((x, ends) for x, ends in gathered.items() if ends)
    if len(points) < _FEWEST_VALUES:
        return None
    panel = _sweep_panel(keys[0], metric, points)
    dots = "Each dot is the last value of a run"
    if any(len(ends) > 1 for _, ends in points):
        dots += "; the line joins the medians over seeds, and the band goes from the lowest to the highest"
    title = f"{capital(spoken(metric.name))} against {keys[0]}"
    return Figure(title=title, caption=f"{dots}.", legend=(), panels=(panel,))


def _sweep_panel(key: str, metric: Metric, points: Sequence[tuple[float, list[float]]]) -> Panel:
    xs = [x for x, _ in points]
    log = min(xs) > 0 and max(xs) / min(xs) > _LOG_SPAN
    x = plain_axis(xs, log=log, margin=0.04)
    y: Axis = plain_axis([end for _, ends in points for end in ends], margin=0.06)
    middles = [middle(ends) for _, ends in points]
    band = Trace(
        label="",
        curve=Curve(xs=xs, ys=[max(ends) for _, ends in points]),
        slot=0,
        look="band",
        floor=[min(ends) for _, ends in points],
    )
    line = Trace(label="", curve=Curve(xs=xs, ys=middles), slot=0, look="line")
    runs = [(x_value, end) for x_value, ends in points for end in ends]
    dots = Trace(label="", curve=Curve(xs=[p for p, _ in runs], ys=[end for _, end in runs]), slot=0, look="dots")
    told = "; ".join(f"{in_digits(p)}: {in_metric(metric.name, end)}" for p, end in zip(xs, middles, strict=True))
    return Panel(
        title=f"{key}{' (logarithmic)' if log else ''}",
        description=f"{capital(spoken(metric.name))} at the end against {key}: {told}.",
        x_ticks=ticks(x, in_step),
        y_ticks=ticks(y, lambda value, step: in_metric_step(metric.name, value, step), upwards=True),
        marks=tuple(mark(trace, x, y) for trace in (band, line, dots)),
    )


def _common_metric(groups: Sequence[Group]) -> Metric | None:
    """Return the final metric that all groups which ended have in common."""
    metrics = [final_metric(group) for group in groups if any(run.outcome for run in group.runs)]
    names = {metric.name if metric else None for metric in metrics}
    return metrics[0] if len(names) == 1 else None


def _best_first(groups: Sequence[Group], metric: Metric) -> list[Group]:
    sign = 1 if metric.lower_is_better else -1

    def place(group: Group) -> tuple[bool, float]:
        ends = finals(group, metric.name)
        return not ends, sign * middle(ends) if ends else 0.0

    return sorted(groups, key=place)


def _row(group: Group, entries: tuple[Entry | None, ...]) -> GroupRow:
    run = group.lead
    badge, tone = stop_badge(run)
    method = method_name(run.method) if run.method else ""
    seeds = f"{len(group.runs)} seeds" if group.several else ""
    named = final_metric(group)
    parts = (method if method != group.label else "", seeds, spoken(named.name) if named else "")
    return GroupRow(
        label=group.label,
        slot=group.slot,
        badge=badge,
        tone=tone,
        note=", ".join(part for part in parts if part),
        line="" if run.outcome else group_line(group),
        entries=entries,
    )


def _metric_entry(group: Group, of: Callable[[Metric], float]) -> Entry | None:
    metric = final_metric(group)
    if metric is None:
        return None
    return _entry(group, lambda s: of(s.metric) if s.metric else None, lambda value: in_metric(metric.name, value))


def _head_start_entry(group: Group) -> Entry | None:
    metric, event = final_metric(group), head_start(group.lead)
    if metric is None or event is None or metric.name not in event.values:
        return None
    value = event.values[metric.name]
    return Entry(text=in_metric(metric.name, value), value=value)


def _entry(group: Group, of: _Read, show: _Show) -> Entry | None:
    """Return the median of a figure over a group's ended runs, with its range where it varies."""
    values = [value for run in group.runs if run.outcome and (value := of(run.outcome)) is not None]
    seen = [value for value in values if drawable(value)]
    if not values:
        return None
    if not seen:
        return Entry(text=show(values[0]), value=values[0])
    note = in_range((show(min(seen)), show(max(seen)))) if len(seen) > 1 else ""
    mid = middle(seen)
    return Entry(text=show(mid), value=mid, note=note if note != show(mid) else "")


def _above(summary: RunSummary) -> float | None:
    return summary.memory.above_inference if summary.memory else None


def _bytes(value: float) -> str:
    return in_bytes(round(value))


def _count(value: float) -> str:
    return in_count(round(value))


def _plain_number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_OUTCOMES: Mapping[str, Callable[[Group], Entry | None]] = {
    "Last": lambda group: _metric_entry(group, lambda metric: metric.last),
    "Best": lambda group: _metric_entry(group, lambda metric: metric.best),
    "Metric at the start": lambda group: _metric_entry(group, lambda metric: metric.start),
    "Head start": _head_start_entry,
    "Loss": lambda group: _entry(group, lambda summary: summary.loss.last if summary.loss else None, in_digits),
    "Peak memory": lambda group: _entry(group, lambda summary: summary.memory.peak if summary.memory else None, _bytes),
    "Memory above inference": lambda group: _entry(group, _above, _bytes),
    "Time": lambda group: _entry(group, lambda run: run.counters.seconds if run.counters else None, in_time),
    "Example-forwards": lambda group: _entry(
        group, lambda run: run.counters.example_forwards or None if run.counters else None, _count
    ),
    "Journal": lambda group: _entry(group, lambda summary: summary.journal_bytes, _bytes),
}

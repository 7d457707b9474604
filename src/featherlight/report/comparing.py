"""What several runs came to beside each other: the headline, and what makes a comparison less than fair."""

import math
from collections.abc import Callable, Sequence
from statistics import median

from featherlight.report.curves import drawable
from featherlight.report.groups import Group
from featherlight.report.quantities import in_metric, in_range, spoken
from featherlight.report.runs import Metric, RunRecord, RunSummary
from featherlight.report.words import above_phrase, headline, listed, stop_badge

_MACHINE = ("device", "processor", "cores", "threads")
_MOST_DATA_NAMED = 3


def final_metric(group: Group) -> Metric | None:
    """Return the metric that the group's ended runs have in common, from the first of them; else None."""
    metrics = [run.outcome.metric for run in group.runs if run.outcome]
    names = {metric.name if metric else None for metric in metrics}
    return metrics[0] if len(names) == 1 else None


def finals(group: Group, name: str) -> list[float]:
    """Return the last values of a metric over a group's ended runs, those that are numbers."""
    metrics = [run.outcome.metric for run in group.runs if run.outcome]
    return [metric.last for metric in metrics if metric and metric.name == name and drawable(metric.last)]


def middle(values: Sequence[float]) -> float:
    """Return the median, NaN of nothing."""
    return median(values) if values else math.nan


def data_of(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the facts that say what data a run was made on."""
    facts = run.summary.facts if run.summary else {}
    return tuple(sorted((name, fact) for name, fact in facts.items() if "data" in name.lower()))


def seeds_headline(group: Group) -> str:
    """Say what came of one configuration under several seeds."""
    count = f"{len(group.runs)} seeds"
    metric = final_metric(group)
    values = finals(group, metric.name) if metric else []
    if metric is None or len(values) < 2:
        done = sum(run.outcome is not None for run in group.runs)
        return f"{count} of {group.label} side by side; {done or 'none'} of them left a summary."
    spread = in_range((in_metric(metric.name, min(values)), in_metric(metric.name, max(values))))
    missing = "" if len(values) == len(group.runs) else f", {len(values)} of them to the end"
    last = in_metric(metric.name, middle(values))
    return f"Over {count}{missing}, {spoken(metric.name)} ended at {last} in the median ({spread})."


def comparison_headline(groups: Sequence[Group]) -> str:
    """Say which of several groups ended best and which took the least memory, as far as they are alike enough."""
    done = [group for group in groups if any(run.outcome for run in group.runs)]
    if len(done) < 2:
        return f"{len(groups)} runs side by side; {len(done) or 'none'} of them left a summary."
    by_data: dict[tuple[tuple[str, str], ...], list[Group]] = {}
    for group in done:
        by_data.setdefault(data_of(group.lead), []).append(group)
    if len(by_data) == 1:
        return _alike(done)
    sentences = ["The runs were made on different data, so none is called best over all."]
    for data, alike in by_data.items():
        best = _best(alike) if len(alike) > 1 and data else None
        if best and len(sentences) <= _MOST_DATA_NAMED:
            sentences.append(f"On {listed([fact for _, fact in data])}, {best[1]}.")
    return " ".join(sentences)


def cautions(groups: Sequence[Group]) -> list[str]:
    """List what makes several runs less than a fair comparison."""
    runs = [run for group in groups for run in group.runs]
    summaries = [run.summary for run in runs if run.summary]
    names = dict.fromkeys(name for summary in summaries for name in summary.facts)
    found = []
    for name in names:
        if "data" in name.lower() or name.lower() == "model":
            found += _caution(name, summaries, lambda summary, name=name: summary.facts.get(name))
    found += _caution("metrics", summaries, lambda summary: summary.metric.name if summary.metric else None)
    machines = {tuple(str(summary.environment.get(key)) for key in _MACHINE) for summary in summaries}
    if len(machines) > 1:
        differing = [key for key, seen in zip(_MACHINE, zip(*machines, strict=True), strict=True) if len(set(seen)) > 1]
        found.append(f"The runs were not made alike ({listed(differing)} differ), so their times do not compare.")
    ended = [run for run in runs if run.outcome is None or run.outcome.stopped != "finished"]
    if ended and len(ended) < len(runs):
        states = sorted({stop_badge(run)[0].lower() for run in ended})
        some = "One run is" if len(ended) == 1 else f"{len(ended)} runs are"
        found.append(f"{some} not finished ({listed(states)}), and may yet have gone further.")
    return found


def group_line(group: Group) -> str:
    """Say in a sentence what came of a group."""
    return seeds_headline(group) if group.several else headline(group.lead)


def _caution(what: str, summaries: Sequence[RunSummary], of: Callable[[RunSummary], str | None]) -> list[str]:
    seen = {of(summary) or "not told" for summary in summaries}
    return [f"The runs differ in their {what} ({listed(sorted(seen))}): compare with care."] if len(seen) > 1 else []


def _alike(groups: Sequence[Group]) -> str:
    """Compare groups that were made on the same data."""
    frugal = _most_frugal(groups)
    best = _best(groups)
    if best is None:
        least = f"{frugal[0]} {frugal[1]}. " if frugal else ""
        return f"{least}The runs have no metric in common, so none is called best."
    winners, sentence = best
    if frugal is None:
        return f"{sentence}."
    return f"{sentence}, and {frugal[1]}." if winners == [frugal[0]] else f"{sentence}; {frugal[0]} {frugal[1]}."


def _best(groups: Sequence[Group]) -> tuple[list[str], str] | None:
    """Return who ended best and a sentence without its stop; None where the groups have no metric in common."""
    metrics = [final_metric(group) for group in groups]
    first = metrics[0]
    if first is None or any(metric is None or metric.name != first.name for metric in metrics):
        return None
    ends = [(group, middle(finals(group, first.name))) for group in groups]
    finite = [(group, end) for group, end in ends if drawable(end)]
    if not finite:
        return None
    best = (min if first.lower_is_better else max)(end for _, end in finite)
    winners = [group.label for group, end in finite if end == best]
    verb = "ended level, both" if len(winners) == 2 else "ended level, all" if len(winners) > 2 else "ended best,"
    over = " in the median over seeds" if any(group.several for group in groups) else ""
    return winners, f"{listed(winners)} {verb} at {in_metric(first.name, best)} {spoken(first.name)}{over}"


def _most_frugal(groups: Sequence[Group]) -> tuple[str, str] | None:
    """Return who took the least memory above running the model, and a phrase; None unless all ran one model."""
    summaries = [(group, group.lead.outcome) for group in groups]
    models = {summary.facts.get("model") for _, summary in summaries if summary}
    known = []
    for group, summary in summaries:
        above = summary.memory.above_inference if summary and summary.memory else None
        if summary and summary.memory and above is not None:
            known.append((above, group.label, summary.memory))
    if len(models) > 1 or len(known) < len(groups) or len({above for above, _, _ in known}) == 1:
        return None
    _, label, memory = min(known, key=lambda item: item[0])
    return label, f"took the least memory, {above_phrase(memory)}"

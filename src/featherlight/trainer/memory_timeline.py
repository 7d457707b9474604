"""The memory of the first steps as the report shows it: predicted against measured."""

from collections.abc import Sequence
from itertools import pairwise

from featherlight.report import LineChart, Section

_POINTS = 300


def memory_timeline(predicted: Sequence[int], measured: Sequence[int]) -> list[Section]:
    """A section with the curve that was predicted and, where there is one, that which was measured; none without a prediction.

    Args:
        predicted: bytes above the weights after each change, over the first steps.
        measured: the same, as the profiler saw it.
    """
    if not predicted:
        return []
    lines = {"predicted": _thinned(predicted)} | ({"measured": _thinned(measured)} if measured else {})
    peaks = f"Peaks: predicted {max(predicted) / 2**20:.1f} MiB"
    if measured and max(measured) > 0:
        difference = (max(predicted) - max(measured)) / max(measured)
        peaks += f", measured {max(measured) / 2**20:.1f} MiB ({difference:+.1%})"
    else:
        peaks += "; not measured: the steps were made in an earlier part of the run, or notes of so many passes take memory too"
    chart = LineChart(
        x_label="share of the first two steps, in changes of memory (%)",
        y_label="MiB above the weights",
        lines=lines,
        caption=f"{peaks}. The prediction is for a batch whose rows are all as long as the longest.",
    )
    return [Section(title="Memory over the first two steps", blocks=(chart,))]


def _thinned(curve: Sequence[int]) -> tuple[list[float], list[float]]:
    """Some hundred points, each the largest of those that it stands for."""
    count = min(_POINTS, len(curve))
    edges = [len(curve) * number // count for number in range(count + 1)]
    return (
        [100 * stop / len(curve) for stop in edges[1:]],
        [max(curve[start:stop]) / 2**20 for start, stop in pairwise(edges)],
    )

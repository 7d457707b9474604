"""Which labels a model takes for which: a shaded table where it can be read, the commonest mistakes where it cannot."""

from dataclasses import dataclass

from featherlight.report.sections import ConfusionTable

LARGEST_TABLE = 30
"""Labels up to which every pair is shown."""

_MOST_MISTAKES = 20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A pair's count, its `share` of the true label's examples, and whether it is right."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A true label, what it was taken for, how often, and the share of the true label's examples."""

    truth: str
    given: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ConfusionView:
    """A confusion table: `rows` of cells, empty where there are too many labels, and the commonest mistakes."""

    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    mistakes: tuple[Mistake, ...]
    num_examples: int
    num_right: int


def confusion_view(confusion: ConfusionTable, *, largest_table: int = LARGEST_TABLE) -> ConfusionView:
    """Lay out a confusion table.

    Args:
        confusion: the counts.
        largest_table: the number of labels up to which every pair is shown.

    Returns:
        Rows of cells shaded by their share of the row, or only the 20 commonest mistakes where there are more labels.
    """
    totals = [sum(row) for row in confusion.counts]
    small = len(confusion.labels) <= largest_table
    rows = tuple(_cells(i, row, totals[i]) for i, row in enumerate(confusion.counts)) if small else ()
    return ConfusionView(
        labels=confusion.labels,
        rows=rows,
        mistakes=_mistakes(confusion, totals),
        num_examples=sum(totals),
        num_right=sum(row[i] for i, row in enumerate(confusion.counts)),
    )


def _cells(i: int, row: tuple[int, ...], total: int) -> tuple[Cell, ...]:
    shares = [count / total if total else 0.0 for count in row]
    return tuple(
        Cell(count=count, share=round(share, 3), right=i == j)
        for j, (count, share) in enumerate(zip(row, shares, strict=True))
    )


def _mistakes(confusion: ConfusionTable, totals: list[int]) -> tuple[Mistake, ...]:
    pairs = [(count, i, j) for i, row in enumerate(confusion.counts) for j, count in enumerate(row) if i != j and count]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    labels = confusion.labels
    return tuple(
        Mistake(truth=labels[i], given=labels[j], count=count, share=count / totals[i])
        for count, i, j in pairs[:_MOST_MISTAKES]
    )

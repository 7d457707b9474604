"""Which training rows the anchors of a variance-reduced method see, and which its steps between."""

from collections.abc import Sequence
from dataclasses import dataclass

from featherlight.data import IndexPermutation


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Turns of one large batch and several small ones over one shuffled stream of rows.

    All of them take the stream's rows in turn, so that each row is seen once an epoch. Where an anchor takes all rows
    there are, the small batches alone go through the stream.

    Args:
        every: steps from one anchor to the next.
        large: rows of an anchor; None is all.
        small: rows of a step between.
        sampler: the stream.
    """

    every: int
    large: int | None
    small: int
    sampler: IndexPermutation

    @property
    def takes_all(self) -> bool:
        """Whether an anchor sees all rows."""
        return self.large is None or self.large >= self.sampler.num_rows

    @property
    def num_rows(self) -> int:
        """Rows of an anchor."""
        return self.sampler.num_rows if self.large is None else min(self.large, self.sampler.num_rows)

    def is_anchor(self, step: int) -> bool:
        """Whether a step, by its number from 0, measures an anchor."""
        return step % self.every == 0

    def rows(self, step: int) -> Sequence[int]:
        """The training rows of a step."""
        period, since = divmod(step, self.every)
        from_stream = 0 if self.takes_all else self.num_rows
        start = period * (from_stream + (self.every - 1) * self.small)
        if since:
            return self.sampler.indices(start + from_stream + (since - 1) * self.small, self.small)
        return self.sampler.indices(0 if self.takes_all else start, self.num_rows)

    def text(self) -> str:
        """For people."""
        rows = f"{'all ' if self.takes_all else ''}{self.num_rows:,} rows"
        return f"{rows}, every {self.every} steps" if self.every > 1 else f"{rows}, every step"

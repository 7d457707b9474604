"""What a run keeps of the plan it was made by."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan in short.

    Attributes:
        text: what was chosen and why, for people.
        timeline: predicted bytes above the weights over the first steps.
    """

    text: str
    timeline: Sequence[int]

"""The closing words of an error that names something unknown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `options`, or an empty string where none is near."""
    by_fold = {option.casefold(): option for option in options}
    near = get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return f" Did you mean {by_fold[near[0]]!r}?" if near else ""


def listing(names: Iterable[str], *, limit: int = 12) -> str:
    """Return the names quoted and joined by commas, at most `limit` of them."""
    quoted = [repr(name) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest:,} more" if rest > 0 else "")

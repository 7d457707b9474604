"""The quantizers by the names that configs use. The table at the end is the one place where these stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherlight.nn.vector_quantizers import Quantizer

_MOST_CODES_OF_A_BOOK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that a quantizer is made of: the options of a `QuantizerConfig` with the defaults of its kind, and the axis.

    Attributes:
        channel_axis: of the features in its input.
        seed: of what it draws by itself.
        values: the options by name.
    """

    channel_axis: int
    seed: int
    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of quantizer.

    Attributes:
        defaults: of the options that it reads; it reads no others.
        build: makes it, a module.
        num_codes: of each of its codebooks.
        num_stages: how many codebooks a position has a code of; None where there is a single one.
        mixed: whether codes have shares.
    """

    defaults: Mapping[str, Any]
    build: Callable[[Options], Quantizer]
    num_codes: Callable[[Options], int]
    num_stages: Callable[[Options], int | None]
    mixed: bool = False

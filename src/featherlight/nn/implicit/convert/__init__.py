"""Feed-forward networks as implicit models with sparse matrices, and back."""

from featherlight.nn.implicit.convert.compose import cascade, parallel, summed
from featherlight.nn.implicit.convert.feed_forward import FeedForward
from featherlight.nn.implicit.convert.graph import to_implicit
from featherlight.nn.implicit.convert.modules import Rule
from featherlight.nn.implicit.convert.signal import Recording, Signal
from featherlight.nn.implicit.convert.strict import to_strictly_triangular
from featherlight.nn.implicit.convert.system import ImplicitSystem, StateBlock

__all__ = [
    "FeedForward",
    "ImplicitSystem",
    "Recording",
    "Rule",
    "Signal",
    "StateBlock",
    "cascade",
    "parallel",
    "summed",
    "to_implicit",
    "to_strictly_triangular",
]

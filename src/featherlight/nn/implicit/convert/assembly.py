"""The recorded states of a network as one system.

Legend of shapes: S numbers of a state, z inputs and states.
"""

import torch
from torch import Tensor

from featherlight.nn.implicit.convert.signal import Signal
from featherlight.nn.implicit.convert.sparse import empty, sparse, stacked, widened
from featherlight.nn.implicit.convert.system import ImplicitSystem, StateBlock


def assembled(output: Signal, inputs: int) -> ImplicitSystem:
    """The states in reversed order of their making, so that A is strictly upper triangular."""
    width, made = output.recording.width, output.recording.made
    states, device = width - inputs, output.bias.device
    sizes = torch.tensor([len(new.bias) for new in made], dtype=torch.int64, device=device)
    ends = sizes.cumsum(0)
    place = torch.arange(states, device=device) + (states - 2 * ends + sizes).repeat_interleave(sizes)
    rows = stacked([[empty((0, width), output.bias)], *([widened(new.matrix, width)] for new in made)])
    a, b = _split(rows, inputs, place)
    c, d = _split(widened(output.matrix, width), inputs, place, rows_are_states=False)
    bias = torch.empty(states, dtype=output.bias.dtype, device=device)
    bias[place] = torch.cat([output.bias[:0], *(new.bias for new in made)])
    blocks = [StateBlock(len(new.bias), new.activation) for new in reversed(made)]
    return ImplicitSystem(a=a, b=b, c=c, d=d, state_bias=bias, output_bias=output.bias, blocks=blocks)


def _split(matrix: Tensor, inputs: int, place: Tensor, *, rows_are_states: bool = True) -> tuple[Tensor, Tensor]:
    """Columns of the states at their places, and columns of the inputs."""
    (row, column), values = matrix.indices(), matrix.values()
    row = place[row] if rows_are_states else row
    direct = column < inputs
    count = matrix.shape[0]
    own = torch.stack((row[~direct], place[column[~direct] - inputs]))
    into = torch.stack((row[direct], column[direct]))
    return sparse(own, values[~direct], (count, len(place))), sparse(into, values[direct], (count, inputs))

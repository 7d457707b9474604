"""What flows through a network while it is converted: an affine function of its inputs and of the states so far.

Legend of shapes: n numbers of a signal, z inputs and states so far.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import Activation
from featherlight.nn.implicit.convert.sparse import product, selection, sparse, stacked, times_vector, total, widened


@dataclass(frozen=True)
class _NewStates:
    """States of one activation: x = phi(matrix z + bias)."""

    matrix: Tensor
    bias: Tensor
    activation: Activation


@dataclass
class Recording:
    """The states made so far; they have the columns after those of the inputs, in the order they are made in.

    Attributes:
        width: inputs and states so far.
        made: the states.
    """

    width: int
    made: list[_NewStates] = field(default_factory=list)


@dataclass(frozen=True)
class Signal:
    """A tensor of one sample inside a network, as matrix z + bias.

    Args:
        matrix: (n, z), sparse COO; z may have grown since.
        bias: (n,).
        shape: of the tensor without its samples' axis; n is its product.
        recording: takes new states.
    """

    matrix: Tensor
    bias: Tensor
    shape: torch.Size
    recording: Recording

    @classmethod
    def of_inputs(cls, shape: torch.Size, *, dtype: torch.dtype, device: torch.device) -> "Signal":
        """The inputs themselves, with a new recording."""
        count = shape.numel()
        identity = selection(torch.arange(count, device=device), count, dtype=dtype)
        return cls(identity, torch.zeros(count, dtype=dtype, device=device), shape, Recording(count))

    def affine(self, matrix: Tensor, bias: Tensor | None = None, *, shape: torch.Size | None = None) -> "Signal":
        """matrix signal + bias.

        Args:
            matrix: (m, n), sparse COO.
            bias: (m,).
            shape: of the result; None is (m,).

        Cost: a product of sparse matrices, unless the signal is states as they are.
        """
        moved = times_vector(matrix, self.bias)
        return Signal(
            product(matrix, self.matrix),
            moved if bias is None else moved + bias,
            torch.Size([matrix.shape[0]]) if shape is None else shape,
            self.recording,
        )

    def activated(self, activation: Activation) -> "Signal":
        """New states, one a number."""
        begin, count = self.recording.width, len(self.bias)
        self.recording.made.append(_NewStates(self.matrix, self.bias, activation))
        self.recording.width += count
        columns = torch.arange(begin, begin + count, device=self.bias.device)
        states = selection(columns, begin + count, dtype=self.bias.dtype)
        return Signal(states, torch.zeros_like(self.bias), self.shape, self.recording)

    def rearranged(self, f: Callable[[Tensor], Tensor]) -> "Signal":
        """What `f` makes of a tensor (1, *shape) by moving, dropping and repeating its numbers."""
        index = torch.arange(len(self.bias), device=self.bias.device).reshape(1, *self.shape)
        moved = f(index)
        if moved.ndim == 0 or moved.shape[0] != 1:
            raise ValueError(
                f"it takes one sample of shape (1, {', '.join(map(str, self.shape))}) to {tuple(moved.shape)}; samples must stay "
                "apart, along the first axis."
            )
        rows = moved.reshape(-1)
        return self.affine(selection(rows, len(self.bias), dtype=self.bias.dtype), shape=moved.shape[1:])

    def plus(self, other: "Signal", scale: float = 1.0) -> "Signal":
        """signal + scale other, of equal shapes."""
        if self.shape != other.shape:
            raise ValueError(f"signals of shapes {tuple(self.shape)} and {tuple(other.shape)} cannot be added.")
        width = max(self.matrix.shape[1], other.matrix.shape[1])
        matrix = total(widened(self.matrix, width), widened(other.matrix, width), scale)
        return Signal(matrix, self.bias + scale * other.bias, self.shape, self.recording)

    def scaled(self, scale: float | Tensor, shift: float | Tensor = 0.0) -> "Signal":
        """scale signal + shift; tensors broadcast to (1, *shape)."""

        def numbers(value: float | Tensor) -> Tensor:
            given = torch.as_tensor(value, dtype=self.bias.dtype, device=self.bias.device)
            return given.expand(1, *self.shape).reshape(-1)

        factors = numbers(scale)
        index = self.matrix.indices()
        matrix = sparse(index, self.matrix.values() * factors[index[0]], (len(factors), self.matrix.shape[1]))
        return Signal(matrix, factors * self.bias + numbers(shift), self.shape, self.recording)


def joined(signals: list[Signal], dim: int) -> Signal:
    """torch.cat of (1, *shape) along `dim`, which is not the samples' axis."""
    width = max(signal.matrix.shape[1] for signal in signals)
    matrix = stacked([[widened(signal.matrix, width)] for signal in signals])
    bias = torch.cat([signal.bias for signal in signals])
    whole = Signal(matrix, bias, bias.shape, signals[0].recording)
    counts = [len(signal.bias) for signal in signals]

    def join(index: Tensor) -> Tensor:
        parts = index.split(counts, 1)
        return torch.cat([part.reshape(1, *signal.shape) for part, signal in zip(parts, signals, strict=True)], dim)

    return whole.rearranged(join)

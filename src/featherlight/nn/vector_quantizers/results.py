"""What every vector quantizer takes and returns.

Legend of shapes: ... are positions (batch, time, rows, columns), F features of a vector, K codes of a codebook,
k codes that are mixed at a position, Q stages or groups.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Codes(NamedTuple):
    """Which codes stand for each position: all that has to be stored to get the values back.

    Attributes:
        indices: int64, (...) for one code a position; axes of k, Q or (Q, k) codes stand last. -1 at masked positions.
        weights: shares of the codes, same shape as `indices`, which sum to 1 over the k that are mixed; None where each
            position has whole codes only.
    """

    indices: Tensor
    weights: Tensor | None = None


class Quantized(NamedTuple):
    """The outcome of a vector quantizer.

    Attributes:
        values: what goes on in the network; shape and dtype of the input. Masked positions are 0.
        codes: how they are stored.
        aux_loss: what training adds to its loss, weighted already; (), float32. 0 in evaluation mode.
    """

    values: Tensor
    codes: Codes
    aux_loss: Tensor


class Quantizer(Protocol):
    """A layer that replaces vectors by what a few codes can say.

    Attributes:
        dim: F, features of a vector.
    """

    dim: int

    @property
    def bits_per_position(self) -> float:
        """Bits that a position's codes take when each is stored at a fixed length."""
        ...

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes that indices have behind those of the positions: () for one code, (k,), (Q,) or (Q, k)."""
        ...

    def __call__(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Quantizes the vectors of `x`.

        Args:
            x: any float dtype, F features at the quantizer's `channel_axis`.
            mask: bool, True at the positions that count, shape of `x` without features; None if all do.

        Raises:
            ValueError: an input or a mask of the wrong shape or dtype, or a value that is not finite.
        """
        ...

    def codes_to_values(self, codes: Codes) -> Tensor:
        """The values that `codes` stand for, in the layout of the inputs."""
        ...

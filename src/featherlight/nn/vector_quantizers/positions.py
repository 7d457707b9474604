"""From any layout of vectors to rows, and from rows back: what each quantizer does first and last.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, B sequences, T their greatest
length.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from featherlight.nn.vector_quantizers.processes import num_processes, sum_over_processes
from featherlight.objective import NonFiniteLossError


class Positions(NamedTuple):
    """Vectors as rows, with what brings results back to the layout of the input. Made by `to_rows`.

    Attributes:
        rows_NF: contiguous in features; float64 for float64 inputs, otherwise float32. Masked rows are 0.
        mask_N: True at the rows that count; None if all do.
        shape: of the positions, without features.
        channel_axis: where features stand in the input, counted from the end.
        dtype: of the input.
    """

    rows_NF: Tensor
    mask_N: Tensor | None
    shape: torch.Size
    channel_axis: int
    dtype: torch.dtype

    def to_values(self, rows_NF: Tensor) -> Tensor:
        """Rows (N, F) in the layout and dtype of the input; 0 at masked positions. F may differ from the input's."""
        rows_NF = self.keep(rows_NF).to(self.dtype)
        return rows_NF.reshape(*self.shape, rows_NF.shape[-1]).movedim(-1, self.channel_axis)

    def to_indices(self, indices: Tensor) -> Tensor:
        """Indices (N) or (N, k) by position, (...) or (..., k); -1 at masked positions."""
        return self.keep(indices, -1).reshape((*self.shape, *indices.shape[1:]))

    def to_weights(self, weights_Nk: Tensor) -> Tensor:
        """Weights (N, k) by position, (..., k); 0 at masked positions."""
        return self.keep(weights_Nk).reshape((*self.shape, *weights_Nk.shape[1:]))

    def keep(self, rows: Tensor, other: float = 0.0) -> Tensor:
        """`rows` (N) or (N, anything), with `other` in masked rows, whatever stood there; their gradient is 0."""
        if self.mask_N is None:
            return rows
        return rows.masked_fill(~self.mask_N.reshape(-1, *(1,) * (rows.ndim - 1)), other)

    def count(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many rows count, over all processes; (), dtype of the rows. For training."""
        if self.mask_N is None:
            count = self.rows_NF.new_full((), self.rows_NF.shape[0])
        else:
            count = self.mask_N.sum().to(self.rows_NF.dtype)
        return sum_over_processes(count)

    def mean(self, losses_N: Tensor) -> Tensor:
        """Mean of one number per row over the rows that count; (), for losses in training. 0 without any such row.

        With several processes it is their share of the mean over all rows, times the number of processes: averaged over
        the processes, as DistributedDataParallel averages gradients, it is that mean even where masks differ.
        """
        if self.mask_N is None:
            return losses_N.sum() / max(losses_N.shape[0], 1)
        return self.keep(losses_N).sum() * (num_processes() / self.count().clamp(min=1))


def to_rows(x: Tensor, *, dim: int, channel_axis: int = -1, mask: Tensor | None = None) -> Positions:
    """Flattens the vectors of `x` to rows, and checks them.

    Args:
        x: any float dtype; `dim` features at `channel_axis`, any number of other axes: (B, T, F), or (N, C, H, W) with
            `channel_axis=1`.
        dim: F, features that the quantizer was made for.
        channel_axis: where they stand.
        mask: bool, shape of `x` without features, True at positions that count; None if all do.

    Raises:
        ValueError: x is not float, has no such axis or another number of features; a mask of another shape or dtype.
        NonFiniteLossError: outside torch.compile and torch.export, a value that is not finite at a position that counts.

    A pass over x looks for values that are not finite; on a CUDA device it waits for them. Under torch.compile, which
    cannot wait, positions with such values are masked: they get no code and teach nothing. Channel-last float32 and
    float64 inputs are viewed, others are copied.
    """
    _check_layout(x, dim, channel_axis)
    last_x = x.movedim(channel_axis, -1)
    shape = last_x.shape[:-1]
    if mask is not None:
        _check_mask(mask, shape, channel_axis)
    if not torch.compiler.is_compiling():
        _check_finite(last_x, mask)
    rows_NF = last_x.reshape(-1, dim)
    if rows_NF.dtype not in (torch.float32, torch.float64):
        rows_NF = rows_NF.float()
    mask_N = None if mask is None else mask.reshape(-1)
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        finite_N = torch.isfinite(rows_NF).all(1)
        mask_N = finite_N if mask_N is None else mask_N & finite_N
    axis = channel_axis if channel_axis < 0 else channel_axis - x.ndim
    positions = Positions(rows_NF, mask_N, shape, axis, x.dtype)
    return positions if mask_N is None else positions._replace(rows_NF=positions.keep(rows_NF))


def lengths_to_mask(lengths_B: Int[Tensor, "B"], max_length: int | None = None) -> Bool[Tensor, "B T"]:
    """A mask that is True at the first `lengths_B[b]` positions of sequence b.

    Args:
        lengths_B: whole numbers from 0 on.
        max_length: T; None takes the longest, which waits for the device.

    Raises:
        ValueError: lengths are not a row of whole numbers, or, outside torch.compile, are negative or over `max_length`.
    """
    if lengths_B.ndim != 1 or lengths_B.is_floating_point() or lengths_B.dtype == torch.bool:
        raise ValueError(
            f"`lengths` must be one whole number for each sequence, shape (B,); got {tuple(lengths_B.shape)}, "
            f"{lengths_B.dtype}."
        )
    if max_length is None:
        max_length = int(lengths_B.max()) if len(lengths_B) else 0
    if not torch.compiler.is_compiling():
        wrong = torch.nonzero((lengths_B < 0) | (lengths_B > max_length))
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"`lengths` must be from 0 to {max_length}, the length of the batch; got {int(lengths_B[row])} for "
                f"sequence {row}. Cut the lengths, or hand in a longer `max_length`."
            )
    return torch.arange(max_length, device=lengths_B.device) < lengths_B[:, None]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which products keep the dtype of their inputs: codes must not be chosen at the precision of bfloat16."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _check_layout(x: Tensor, dim: int, channel_axis: int) -> None:
    if not x.is_floating_point():
        raise ValueError(f"A quantizer takes vectors of a float dtype; got {x.dtype}. Convert them with `.float()`.")
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(
            f"The input has no axis {channel_axis}: its shape is {tuple(x.shape)}. Features are looked for at "
            f"`channel_axis={channel_axis}`; hand in inputs with that axis, or make the quantizer with another."
        )
    if x.shape[channel_axis] != dim:
        others = [axis for axis, size in enumerate(x.shape) if size == dim]
        hint = f" Axis {others[0]} has {dim}: is it `channel_axis={others[0]}`?" if others else ""
        raise ValueError(
            f"The quantizer takes vectors of {dim} features at axis {channel_axis}; got {x.shape[channel_axis]} there in "
            f"an input of shape {tuple(x.shape)}.{hint}"
        )


def _check_mask(mask: Tensor, shape: torch.Size, channel_axis: int) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(
            f"`mask` must be bool, True at positions that count; got {mask.dtype}. Convert it with `.bool()`."
        )
    if mask.shape != shape:
        raise ValueError(
            f"`mask` must have the shape of the input without its features (axis {channel_axis}): {tuple(shape)}; got "
            f"{tuple(mask.shape)}. For lengths of sequences, see `lengths_to_mask`."
        )


def _check_finite(last_x: Tensor, mask: Tensor | None) -> None:
    """One sum finds out; only where it is not finite are values looked at one by one."""
    summed = last_x if mask is None else last_x.masked_fill(~mask[..., None], 0.0)
    total = summed.detach().sum(dtype=torch.float64 if last_x.dtype == torch.float64 else torch.float32)
    if bool(torch.isfinite(total)):
        return
    wrong = torch.nonzero(~torch.isfinite(summed.detach()))
    if len(wrong):
        *position, feature = wrong[0].tolist()
        value = float(last_x.detach()[(*position, feature)])
        bad = int((~torch.isfinite(summed.detach()).all(-1)).sum())
        raise NonFiniteLossError(
            f"The vector at position {tuple(position)} is not finite: feature {feature} is {value}, and {bad} of "
            f"{summed[..., 0].numel()} positions are like it. No code is nearest to such a vector. Look for a step that was "
            "too large, or for a division by zero before the quantizer."
        )

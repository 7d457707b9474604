"""The trained parameters as the zeroth-order engine sees them, and the directions they are moved along.

Legend of shapes: K directions, R rows, C columns.
A parameter with two or more dimensions is a matrix (R, C), its first dimension by the rest, and its direction is rank
one, `left right^T`; any other is a vector of R elements with a sign for each, and `right` is absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.functional import SIGNS_PER_BLOCK, Segment, SignBits, SignStream, signs_at
from featherlight.optim.zeroth_order.guards import check_positive


@dataclass(kw_only=True, eq=False)
class Target:
    """One trained parameter. Tied weights are one parameter, so they are one target and share a direction.

    Attributes:
        name: dotted path of its first owner.
        parameter: the tensor itself; nothing but an update writes to it.
        index: its number in the generator's counter.
        group: its parameter group.
        scale: how much further it is moved than others, in evaluations and in updates.
        is_table: whether it belongs to an embedding, of which a batch touches few rows.
        shared: whether all examples of a batch share its direction even where others carry one each.
        right_period: steps for which a matrix keeps its right factors, counted from step 0; 1 draws them anew each step.
        beta: what is left of its momentum from one step to the next; 0 is none.
        trail: momentum's left factors, (K, R), or (1, R) of a vector; None until a step with momentum is applied. Only
            updates write to it.
        rows: R of a matrix, or the number of elements of a vector.
        columns: C of a matrix, or 0 of a vector.
    """

    name: str
    parameter: nn.Parameter = field(repr=False)
    index: int
    group: int
    scale: float = 1.0
    is_table: bool = False
    shared: bool = False
    right_period: int = 1
    beta: float = 0.0
    trail: Tensor | None = field(default=None, init=False, repr=False)
    rows: int = field(init=False)
    columns: int = field(init=False)

    def __post_init__(self) -> None:
        is_matrix = self.parameter.ndim >= 2
        self.rows = self.parameter.shape[0] if is_matrix else self.parameter.numel()
        self.columns = self.parameter.numel() // max(1, self.rows) if is_matrix else 0

    @property
    def left_segment(self) -> Segment:
        """The signs of the left factor, or of a vector."""
        return Segment(parameter=self.index, start=0, size=self.rows)

    @property
    def right_segment(self) -> Segment:
        """The signs of the right factor; starts at the next whole block behind the left one."""
        start = self.left_segment.num_blocks * SIGNS_PER_BLOCK
        return Segment(parameter=self.index, start=start, size=self.columns)


class Factors(NamedTuple):
    """Signs of K directions of one target: `left` (K, R) and `right` (K, C), or None for a vector."""

    left: Float[Tensor, "K R"]
    right: Float[Tensor, "K C"] | None


class Directions:
    """The directions of one step, for all targets, as packed bits.

    The left factor of an embedding table is drawn when it is asked for: for the touched rows in a forward pass, whole
    in an update.

    Args:
        targets: the trained parameters.
        stream: seed and step.
        count: directions a step.
        num_steps: draws for so many steps from the stream's on; direction `k` of the `s`-th is number `s * count + k`.

    Memory: about one bit per row and column, times K.
    """

    def __init__(self, targets: Sequence[Target], stream: SignStream, count: int, *, num_steps: int = 1) -> None:
        self.count = count
        self._stream = stream
        self.device = targets[0].parameter.device
        self._numbers = torch.arange(num_steps * count, device=self.device)
        self._where: dict[tuple[int, str], tuple[SignBits, int]] = {}
        self.num_words = 0
        self._given: dict[tuple[int, str], Tensor] = {}
        segments = {1: {(t.index, "left"): t.left_segment for t in targets if not t.is_table}}
        for target in targets:
            if target.columns:
                segments.setdefault(target.right_period, {})[target.index, "right"] = target.right_segment
        for period, some in segments.items():
            self._draw(some, period)

    def factors(
        self,
        target: Target,
        dtype: torch.dtype,
        *,
        of: Int[Tensor, "k"] | slice = slice(None),
        first_row: int = 0,
        num_rows: int | None = None,
    ) -> Factors:
        """Both factors of a target.

        Args:
            target: one of the targets.
            dtype: of the signs.
            of: which directions, (k,), in any order.
            first_row: of the left factor.
            num_rows: of the left factor; None gives all that follow `first_row`.
        """
        count = target.rows - first_row if num_rows is None else num_rows
        right = self.right(target, dtype, of=of) if target.columns else None
        if (target.index, "left") in self._given:
            left = self._given[target.index, "left"][of, first_row : first_row + count]
            return Factors(left.to(dtype), right)
        if (target.index, "left") not in self._where:
            self._draw({(target.index, "left"): target.left_segment})
        bits, which = self._where[target.index, "left"]
        return Factors(bits.signs(which, first_row, count, dtype, rows=of), right)

    def right(
        self, target: Target, dtype: torch.dtype, *, of: Int[Tensor, "k"] | slice = slice(None)
    ) -> Float[Tensor, "k C"]:
        """The right factor alone."""
        if (target.index, "right") in self._given:
            return self._given[target.index, "right"][of].to(dtype)
        bits, which = self._where[target.index, "right"]
        return bits.signs(which, 0, target.columns, dtype, rows=of)

    def left_at(
        self, target: Target, rows: Int[Tensor, "*n"], of: Tensor | int, dtype: torch.dtype
    ) -> Float[Tensor, "*n"]:
        """The left signs of single rows, of the directions `of`, which broadcast against `rows`."""
        signs, num_words = signs_at(rows, stream=self._stream, parameter=target.index, directions=of, dtype=dtype)
        self.num_words += num_words
        return signs

    def dense(self, target: Target, direction: int, dtype: torch.dtype) -> Tensor:
        """One direction as a tensor of the parameter's shape."""
        left, right = self.factors(target, dtype, of=slice(direction, direction + 1))
        if right is None:
            return left.reshape(target.parameter.shape)
        return (left.T @ right).reshape(target.parameter.shape)

    def give(self, target: Target, side: Literal["left", "right"], factor: Float[Tensor, "K N"]) -> None:
        """Takes a factor of a target from outside, in the place of the drawn one."""
        self._given[target.index, side] = factor

    def _draw(self, segments: dict[tuple[int, str], Segment], period: int = 1) -> None:
        if not segments:
            return
        numbers, steps_on = self._numbers % self.count, self._numbers // self.count
        steps_on = steps_on - (self._stream.step + steps_on) % period
        bits = SignBits(self._stream, list(segments.values()), numbers, steps_on=steps_on)
        self.num_words += bits.num_words
        self._where |= {key: (bits, which) for which, key in enumerate(segments)}


def targets_of(model: nn.Module, param_groups: list[dict[str, Any]]) -> list[Target]:
    """The parameters of the groups as targets, numbered in the model's own order.

    Raises:
        ValueError: a parameter is not the model's, is not real floating point, or lies on another device.
    """
    names = {id(parameter): (index, name) for index, (name, parameter) in enumerate(model.named_parameters())}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    targets = []
    for group, entry in enumerate(param_groups):
        scale = entry.get("scale", 1.0)
        check_positive("scale", scale)
        for parameter in entry["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} in `params` does not belong to the model, so it would "
                    "never be perturbed. Pass parameters of the module that the optimizer was given."
                )
            index, name = names[id(parameter)]
            if not parameter.dtype.is_floating_point or parameter.element_size() < 2:
                raise ValueError(
                    f"`{name}` has dtype {parameter.dtype}, which cannot be trained. Freeze it (requires_grad=False), "
                    "or load the model as floats and hold it in 8 bits by `quantize_base`."
                )
            targets.append(
                Target(
                    name=name,
                    parameter=parameter,
                    index=index,
                    group=group,
                    scale=scale,
                    is_table=id(parameter) in tables,
                )
            )
    devices = {target.parameter.device for target in targets}
    if len(devices) > 1:
        raise ValueError(f"the trained parameters lie on several devices ({devices}); put the model on one of them.")
    return sorted(targets, key=lambda target: target.index)

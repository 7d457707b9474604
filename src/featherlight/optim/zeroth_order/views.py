"""How the parameters of one call look at the perturbed point: the same for all examples, or one view for each.

Legend of shapes: b examples in the pass, R rows of an example in a call (tokens, say), N inputs, M outputs.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.targets import Directions, Target

_ELEMENTS_AT_ONCE = 1 << 18


class View(Protocol):
    """What a perturbed function asks. Tensors that are not trained parameters pass through unchanged."""

    def sigma(self, target: Target) -> float:
        """Scale of the perturbation of a target, with its sign."""
        ...

    def target(self, tensor: Tensor | None) -> Target | None:
        """The target that `tensor` is, if it is one."""
        ...

    def common(self, tensor: Tensor | None) -> Tensor | None:
        """The part of a parameter that is the same for all examples, in the parameter's shape."""
        ...

    def centre(self, weight: Tensor) -> Tensor:
        """A weight at the point that is perturbed around."""
        ...

    def factor(self, weight: Tensor) -> Tensor:
        """What a product is computed with before `add_rank_one`: the centre, or the stored weight nearby."""
        ...

    def own(self, tensor: Tensor | None) -> Tensor | None:
        """What each example adds to the common part, (b, *shape), or None."""
        ...

    def place(self, own: Tensor, activation: Tensor) -> Tensor:
        """Reshapes (b, *shape) so that it broadcasts against the activation."""
        ...

    def factors(self, target: Target, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Left and right signs, (b, rows) and (b, columns), with b = 1 where the examples share them."""
        ...

    def add_rank_one(self, y: Tensor, x: Tensor, weight: Tensor, *, contract_left: bool = False) -> Tensor:
        """`y + sigma (x right) left^T`, or with the roles of the factors exchanged."""
        ...

    def add_rows(self, y: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        """`y + sigma left[ids] right^T` for an embedding."""
        ...

    def substitute(self, value: Any) -> Any:
        """`value` with every trained parameter in it, however nested, replaced by a perturbed copy."""
        ...


class SharedView:
    """All examples are moved along one direction, from the weights or from a point at some offset of them."""

    def __init__(
        self,
        targets: Mapping[int, Target],
        directions: Directions,
        sigma: float,
        offset: Offset | None = None,
        *,
        number: int = 0,
    ) -> None:
        self.directions = directions
        self._number = number
        self._sigma = sigma
        self._targets = targets
        self._offset = None if offset is None else offset.at(sigma)

    def number(self, target: Target) -> int:
        """Of the direction that a target is moved along."""
        return 0 if target.shared else self._number

    def sigma(self, target: Target) -> float:
        return self._sigma * target.scale

    def target(self, tensor: Tensor | None) -> Target | None:
        return self._targets.get(id(tensor))

    def common(self, tensor: Tensor | None) -> Tensor | None:
        target = self.target(tensor)
        if target is None or tensor is None:
            return tensor
        direction = self.directions.dense(target, self.number(target), target.parameter.dtype)
        return torch.add(self.centre(tensor).detach(), direction, alpha=self.sigma(target))

    def centre(self, weight: Tensor) -> Tensor:
        target = self.target(weight)
        return weight if target is None or self._offset is None else self._offset.added_to(target)

    def factor(self, weight: Tensor) -> Tensor:
        target = self.target(weight)
        beside = target is None or self._offset is None or self._offset.is_cheaper_beside(target)
        return weight if beside else self.centre(weight)

    def add_offset(self, y: Tensor, x: Tensor, weight: Tensor, *, contract_left: bool = False) -> Tensor:
        """Adds to a product with `factor(weight)` what it lacks to one with the centre, in place."""
        target = self.target(weight)
        if target is None or self._offset is None or not self._offset.is_cheaper_beside(target):
            return y
        return self._offset.add_product(y, x, target, contract_left=contract_left)

    def add_offset_rows(self, y: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        """Adds to looked-up rows of a table what they lack to the centre's, in place."""
        target = self.target(table)
        return y if target is None or self._offset is None else self._offset.add_rows(y, ids, target)

    def own(self, tensor: Tensor | None) -> None:
        return None

    def place(self, own: Tensor, activation: Tensor) -> Tensor:
        return own

    def factors(self, target: Target, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        number = self.number(target)
        left, right = self.directions.factors(target, dtype, of=slice(number, number + 1))
        assert right is not None, "only matrices have factors"
        return left, right

    def add_rank_one(self, y: Tensor, x: Tensor, weight: Tensor, *, contract_left: bool = False) -> Tensor:
        target = self.target(weight)
        if target is None:
            return y
        out, into = self.factors(target, x.dtype)
        if contract_left:
            out, into = into, out
        y = self.add_offset(y, x, weight, contract_left=contract_left)
        flat_y = y.reshape(-1, y.shape[-1])
        product = x.reshape(-1, x.shape[-1]) @ into[0]
        return flat_y.addr_(product.to(y.dtype), out[0].to(y.dtype), alpha=self.sigma(target)).view(y.shape)

    def add_rows(self, y: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        target = self.target(table)
        if target is None:
            return y
        y = self.add_offset_rows(y, ids, table)
        number = self.number(target)
        left = self.directions.left_at(target, ids, number, y.dtype)
        right = self.directions.right(target, y.dtype, of=slice(number, number + 1))
        return y.view(-1, y.shape[-1]).addr_(left.flatten(), right[0], alpha=self.sigma(target)).view(y.shape)

    def substitute(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.substitute(one) for one in value)
        if isinstance(value, dict):
            return {name: self.substitute(one) for name, one in value.items()}
        return self.common(value) if isinstance(value, Tensor) else value


class PerExampleView:
    """Every example is moved along a direction of its own.

    Args:
        shared: the view of targets that share a direction all the same.
        axis: of the activation, along which the b examples stand, each with one or more consecutive entries.
        numbers: the direction of each example, (b,).
    """

    def __init__(self, shared: SharedView, axis: int, numbers: Int[Tensor, "b"]) -> None:
        self._shared = shared
        self._axis = axis
        self._numbers = numbers

    def sigma(self, target: Target) -> float:
        return self._shared.sigma(target)

    def target(self, tensor: Tensor | None) -> Target | None:
        return self._shared.target(tensor)

    def common(self, tensor: Tensor | None) -> Tensor | None:
        target = self.target(tensor)
        if target is None or tensor is None:
            return tensor
        return self._shared.common(tensor) if target.shared else self._shared.centre(tensor)

    def centre(self, weight: Tensor) -> Tensor:
        return self._shared.centre(weight)

    def factor(self, weight: Tensor) -> Tensor:
        return self._shared.factor(weight)

    def own(self, tensor: Tensor | None) -> Tensor | None:
        target = self.target(tensor)
        if target is None or target.shared:
            return None
        left, right = self._shared.directions.factors(target, target.parameter.dtype, of=self._numbers)
        dense = left if right is None else left[:, :, None] * right[:, None, :]
        return dense.reshape(-1, *target.parameter.shape).mul_(self.sigma(target))

    def place(self, own: Tensor, activation: Tensor) -> Tensor:
        entries = activation.shape[self._axis]
        shape = [1] * (activation.ndim - own.ndim + 1) + list(own.shape[1:])
        shape[self._axis] = entries
        return own.repeat_interleave(entries // len(own), dim=0).reshape(shape)

    def factors(self, target: Target, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        of = torch.zeros_like(self._numbers) if target.shared else self._numbers
        left, right = self._shared.directions.factors(target, dtype, of=of)
        assert right is not None, "only matrices have factors"
        return left, right

    def add_rank_one(self, y: Tensor, x: Tensor, weight: Tensor, *, contract_left: bool = False) -> Tensor:
        target = self.target(weight)
        if target is None:
            return y
        out, into = self.factors(target, x.dtype)
        if contract_left:
            out, into = into, out
        y = self._shared.add_offset(y, x, weight, contract_left=contract_left)
        by_example = x.movedim(self._axis, 0).reshape(len(into), -1, x.shape[-1])
        return self._add_outer(y, _row_dots(by_example, into), out, self.sigma(target))

    def add_rows(self, y: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        target = self.target(table)
        if target is None:
            return y
        of = torch.zeros_like(self._numbers) if target.shared else self._numbers
        y = self._shared.add_offset_rows(y, ids, table)
        by_example = ids.movedim(self._axis, 0).reshape(len(of), -1)
        left = self._shared.directions.left_at(target, by_example, of[:, None], y.dtype)
        right = self._shared.directions.right(target, y.dtype, of=of)
        return self._add_outer(y, left[:, :, None], right, self.sigma(target))

    def substitute(self, value: Any) -> Any:
        target = self.target(value)
        assert target is None or target.shared, (
            f"{target} has a direction for each example, and one copy cannot hold them"
        )
        return self._shared.substitute(value)

    def _add_outer(self, y: Tensor, rows: Float[Tensor, "b R 1"], out: Float[Tensor, "b M"], sigma: float) -> Tensor:
        """`y` plus `sigma` times the outer products, in place where the examples stand first."""
        moved = y.movedim(self._axis, 0)
        by_example = moved.reshape(len(out), -1, y.shape[-1])
        by_example.addcmul_(rows.to(y.dtype), out[:, None, :].to(y.dtype), value=sigma)
        return by_example.view(moved.shape).movedim(0, self._axis)


def _row_dots(x: Float[Tensor, "b R N"], vectors: Float[Tensor, "b N"]) -> Float[Tensor, "b R 1"]:
    """`x[i] @ vectors[i]` for each example; in slices, since a batched matrix-vector product is several times slower."""
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, x[0].numel()))
    parts = zip(x.split(at_once), vectors[:, None, :].split(at_once), strict=True)
    return torch.cat([(some * vector).sum(-1, keepdim=True) for some, vector in parts])

"""Constraints and penalties as parts of a rule: on the points or on the steps, with numbers that are saved with it."""

from typing import Any

import torch
from torch import Tensor, nn

from featherlight.optim.learned.learned_values import log_of_positive
from featherlight.optim.learned.metrics import class_mismatch
from featherlight.optim.learned.protocols import Tensors
from featherlight.solvers.convex import AffineEquality, Box, Constraint, L1Ball, L1Prox, L2Ball, LinfBall, Simplex

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (AffineEquality, Box, L1Ball, L2Ball, LinfBall, Simplex)}
_FIELDS = {kind: tuple(kind.__dataclass_fields__) for kind in KINDS.values()}


class _Set(nn.Module):
    """A constraint whose numbers are buffers, or whose radius is learned."""

    def __init__(self, constraint: Constraint, learned: bool) -> None:
        super().__init__()
        self.kind: Any = type(constraint)
        self.log_radius = None
        if learned and isinstance(constraint, L1Ball | L2Ball | LinfBall):
            self.log_radius = log_of_positive(constraint.radius, "radius")
            return
        for name in _FIELDS[self.kind]:
            number = getattr(constraint, name)
            tensor = number if isinstance(number, Tensor) else torch.tensor(float(number), dtype=torch.float64)
            self.register_buffer(name, tensor.detach().clone())

    def constraint(self) -> Constraint:
        if self.log_radius is not None:
            return self.kind(self.log_radius.exp())
        return self.kind(**{name: getattr(self, name) for name in _FIELDS[self.kind]})

    def description(self) -> dict[str, Any]:
        if self.log_radius is not None:
            return {"kind": self.kind.__name__, "shapes": {"radius": list(self.log_radius.shape)}}
        shapes = {name: list(getattr(self, name).shape) for name in _FIELDS[self.kind]}
        return {"kind": self.kind.__name__, "shapes": shapes}


class _Sets(nn.Module):
    """One constraint for all tensors, or one for each (None: none)."""

    def __init__(self, sets: tuple[Constraint | None, ...], *, rows: bool, learned: bool) -> None:
        super().__init__()
        if not sets:
            raise ValueError("give one constraint for all tensors, or one for each (None: none).")
        self.count, self.rows = len(sets), rows
        self.sets = nn.ModuleDict({str(n): _Set(one, learned) for n, one in enumerate(sets) if one is not None})

    def of(self, number: int) -> Constraint | None:
        """That of one tensor."""
        name = str(number if self.count > 1 else 0)
        found = dict(self.sets.items()).get(name)
        return found.constraint() if isinstance(found, _Set) else None

    def check(self, points: Tensors) -> None:
        """Raises ValueError for another number of tensors."""
        if self.count not in (1, len(points)):
            raise class_mismatch(type(self).__name__, f"{self.count} tensors", points)

    def description(self) -> dict[str, Any]:
        """Kinds and shapes; the values are tensors of the rule."""
        found = dict(self.sets.items())
        sets = [found.get(str(n)) for n in range(self.count)]
        return {"sets": [one.description() if isinstance(one, _Set) else None for one in sets], "rows": self.rows}


class PointIn(_Sets):
    """The next point lies in a closed convex set: `x + d in X`.

    Args:
        sets: of `featherlight.solvers.convex`: one for all tensors, or one for each, None being none. Its coordinates are the
            entries of a tensor, in order.
        rows: whether each vector along a tensor's last axis has the set for itself; with step sizes (no matrices) only.

    A learning rate of more than 1 would leave the set, and is refused. A first point outside is moved to the
    nearest one inside, which under a safeguard is all that the first step does.
    """

    def __init__(self, *sets: Constraint | None, rows: bool = False) -> None:
        super().__init__(sets, rows=rows, learned=False)

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> "PointIn":
        """One with numbers of 1."""
        return cls(*map(_set_like, options["sets"]), rows=options["rows"])


class StepIn(_Sets):
    """The step lies in a closed convex set: `d in X`, a trust region. Radii of balls are learned (their logarithms).

    Args:
        sets: as PointIn has them.
        rows: likewise.
        jointly: whether one set is for the steps of all tensors in a row; with step sizes (no matrices) only.
    """

    def __init__(self, *sets: Constraint | None, rows: bool = False, jointly: bool = False) -> None:
        super().__init__(sets, rows=rows, learned=True)
        if jointly and (len(sets) != 1 or rows):
            raise ValueError("`jointly` takes a single set, for all tensors together, and no `rows`.")
        self.jointly = jointly

    def description(self) -> dict[str, Any]:
        """Kinds and shapes; the values are tensors of the rule."""
        return super().description() | {"jointly": self.jointly}

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> "StepIn":
        """One with numbers of 1."""
        return cls(*map(_set_like, options["sets"]), rows=options["rows"], jointly=options["jointly"])


class L1Penalty(nn.Module):
    """`strength * sum |x + d|` is added to the program and, for the safeguard, to the objective.

    Args:
        strength: at least 0; part of the problem, and not learned.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        L1Prox(strength)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float64))

    def prox(self) -> L1Prox:
        """For the kernel."""
        return L1Prox(self.get_buffer("strength"))

    def value(self, points: Tensors) -> Tensor:
        """At these points, ()."""
        strength = self.get_buffer("strength")
        return torch.stack([p.abs().sum().to(strength) for p in points]).sum() * strength

    def description(self) -> dict[str, Any]:
        """The strength is a tensor of the rule."""
        return {"strength": 0.0}


def _set_like(description: dict[str, Any] | None) -> Constraint | None:
    if description is None:
        return None
    shapes = description["shapes"]
    return KINDS[description["kind"]](
        **{name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}
    )

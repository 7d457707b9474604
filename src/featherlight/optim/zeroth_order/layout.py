"""Where each call of a model keeps its examples, found by running one and then two of them.

Examples can carry directions of their own only where a call holds them along an axis. The axis is measured, not
guessed from sizes that may agree by chance: between a pass of one example and a pass of two it is the axis that
doubles. A parameter with a call that has no such axis (a table of relative positions, say) shares one direction.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import Tensor
from torch.overrides import TorchFunctionMode

from featherlight.objective import PerExampleObjective
from featherlight.optim.zeroth_order.perturbed_functions import PERTURBED, Perturbed
from featherlight.optim.zeroth_order.targets import Target

_TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_METADATA_METHODS = frozenset(
    {"size", "dim", "stride", "numel", "is_floating_point", "is_complex", "data_ptr", "element_size", "get_device"}
)


def is_metadata(func: Callable[..., Any]) -> bool:
    """Whether `func` asks a tensor for something else than its values."""
    name = func.__name__
    if name == "__get__":
        owner: Any = func
        return owner.__self__.__name__ not in _TENSOR_PROPERTIES
    return name in _METADATA_METHODS


def find_targets(targets: Mapping[int, Target], values: Iterable[Any]) -> list[Target]:
    """The trained parameters among `values`, in nested lists, tuples and dicts too."""
    found = []
    for value in values:
        target = targets.get(id(value))
        if target is not None:
            found.append(target)
        elif isinstance(value, (list, tuple)):
            found += find_targets(targets, value)
        elif isinstance(value, dict):
            found += find_targets(targets, value.values())
    return found


class Call(NamedTuple):
    """A torch function that was handed trained parameters.

    Attributes:
        func: the function.
        targets: the parameters.
        shape: of its activation; empty where it has none.
        rule: how it is perturbed; None where it has to run on perturbed copies.
    """

    func: Callable[..., Any]
    targets: tuple[Target, ...]
    shape: tuple[int, ...]
    rule: Perturbed | None

    @classmethod
    def find(cls, targets: Mapping[int, Target], func: Callable, args: tuple, kwargs: dict[str, Any]) -> Self | None:
        """The call, or None if no trained parameter takes part in it."""
        found = tuple(find_targets(targets, (*args, *kwargs.values()) if kwargs else args))
        if not found:
            return None
        rule = PERTURBED.get(func)
        position = None if rule is None else rule.activation
        first = () if position is None else (*args[position : position + 1], *_named_activation(kwargs))[:1]
        if rule is not None and (any(id(v) in targets for v in first) or not rule.fits(*args, **kwargs)):
            rule = None
        others = (v for v in (*first, *args, *kwargs.values()) if isinstance(v, Tensor) and id(v) not in targets)
        activation = next(others, None)
        return cls(func, found, () if activation is None else tuple(activation.shape), rule)

    @property
    def key(self) -> tuple[str, int, int]:
        """Function, first parameter and the activation's number of dimensions: what a layout is kept by."""
        return self.func.__name__, self.targets[0].index, len(self.shape)

    def axis_of_examples(self, doubled: Self) -> int | None:
        """The one axis that is twice as long in `doubled`, the same call with twice the examples, if it can be used."""
        changed = [axis for axis, (a, b) in enumerate(zip(self.shape, doubled.shape, strict=True)) if a != b]
        if self.rule is None or len(changed) != 1:
            return None
        axis = changed[0]
        if self.rule.activation is None:
            last = len(self.shape) - max(target.parameter.ndim for target in self.targets)
        else:
            last = 1 if self.rule.first_axis_only else len(self.shape) - self.rule.reserved
        return axis if axis < last and doubled.shape[axis] == 2 * self.shape[axis] else None


def _named_activation(kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(kwargs[name] for name in ("input", "mat1") if name in kwargs)[-1:]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The axis of the examples in the activation of each call; None where there is none."""

    axes: Mapping[tuple[str, int, int], int | None]

    def axis_of(self, call: Call) -> int | None:
        """Raises ValueError for a call that was not there when the layout was measured."""
        axis = self.axes.get(call.key)
        if axis is None and not all(target.shared for target in call.targets):
            names = ", ".join(target.name for target in call.targets)
            raise ValueError(
                f"`{call.func.__name__}` uses {names} in a way it did not in the first step, so directions for single "
                "examples cannot be placed. Use RankOneSigns(count=1), where all examples share a direction."
            )
        return axis


def measure_layout(targets: Mapping[int, Target], objective: PerExampleObjective) -> Layout:
    """Runs one and two examples and compares the shapes; marks the targets that must share their direction.

    Args:
        targets: the trained parameters by `id`; `shared` is set on those without an axis of examples.
        objective: of at least two examples.

    Cost: forward passes of three examples.
    """
    recorded: list[list[Call]] = []
    for count in (1, 2):
        with _Recorder(targets) as recorder:
            _run(objective, count)
        recorded.append(recorder.calls)
    one, two = recorded
    if [call.key for call in one] != [call.key for call in two]:
        raise ValueError(
            "the model runs other operations for two examples than for one, so directions for single examples cannot "
            "be placed. Use RankOneSigns(count=1), where all examples share a direction."
        )
    axes: dict[tuple[str, int, int], int | None] = {}
    for call, doubled in zip(one, two, strict=True):
        axis = call.axis_of_examples(doubled)
        if axes.setdefault(call.key, axis) != axis:
            axes[call.key] = axis = None
        if axis is None:
            for target in call.targets:
                target.shared = True
    return Layout(axes=axes)


def _run(objective: PerExampleObjective, count: int) -> None:
    """Runs the first examples; an error that two of them do not raise says that the model cannot run one alone."""
    try:
        objective.narrow(count).values()
    except ValueError as error:
        if count > 1:
            raise
        objective.narrow(2).values()
        raise ValueError(
            f"the model refuses a batch of 1 ({error}), as its examples depend on each other, so they cannot carry "
            "directions of their own. Use RankOneSigns(count=1), or take out what mixes examples."
        ) from error


class _Recorder(TorchFunctionMode):
    """Notes every call that is handed a trained parameter, and the shape of its activation."""

    def __init__(self, targets: Mapping[int, Target]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._targets = targets

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.find(self._targets, func, args, kwargs)
        if call is not None and not is_metadata(func):
            self.calls.append(call)
        return func(*args, **kwargs)

"""Evaluates a model at `theta + offset + sigma * direction` without writing, copying or replacing its weights.

Within the context every torch function that is handed a trained parameter is answered by its perturbed counterpart:
known layers by a low-rank term beside the product (`perturbed_functions.py`), all others by a perturbed copy of that
one parameter for the length of the call. User modules are never touched, so there is nothing to restore.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from featherlight.optim.zeroth_order.layout import Call, Layout, is_metadata
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.targets import Directions, Target
from featherlight.optim.zeroth_order.views import PerExampleView, SharedView


class PerturbedForward(TorchFunctionMode):
    """The context within which a model is evaluated at the perturbed point.

    Args:
        targets: the trained parameters by `id`.
        directions: what was drawn for this step.
        sigma: scale of the perturbation, with its sign.
        layout: which axis of each call holds the examples; None where all examples share the direction.
        direction_of: asked at every call for the directions of the examples in the pass being run, (b,).
        number: the direction that examples share where they do not carry their own.
        offset: low-rank change of the weights from which the directions start; None starts from the weights.
    """

    def __init__(
        self,
        targets: Mapping[int, Target],
        directions: Directions,
        sigma: float,
        *,
        layout: Layout | None = None,
        direction_of: Callable[[], Tensor] | None = None,
        number: int = 0,
        offset: Offset | None = None,
    ) -> None:
        super().__init__()
        self.touched: set[int] = set()
        self._targets = targets
        self._layout = layout
        self._direction_of = direction_of
        self._shared = SharedView(targets, directions, sigma, offset, number=number)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.find(self._targets, func, args, kwargs)
        if call is None or is_metadata(func):
            return func(*args, **kwargs)
        self.touched.update(target.index for target in call.targets)
        axis = None if self._layout is None else self._layout.axis_of(call)
        if call.rule is None:
            return func(*self._shared.substitute(args), **self._shared.substitute(kwargs))
        view = self._shared if axis is None else self._per_example(axis)
        return call.rule.function(view, func, *args, **kwargs)

    def _per_example(self, axis: int) -> PerExampleView:
        assert self._direction_of is not None
        return PerExampleView(self._shared, axis, self._direction_of())

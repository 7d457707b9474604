"""Torch functions at the perturbed point: each computes what the function would with `theta + sigma * direction`.

One function here for each kind of layer, with the torch function's own signature behind the view and the function;
`PERTURBED` at the end is the table. A function that is not in it works as well, with a perturbed copy of the parameter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featherlight.optim.zeroth_order.views import View


class Perturbed(NamedTuple):
    """How a torch function is perturbed.

    Attributes:
        function: takes the view, the torch function, and the torch function's own arguments.
        activation: which argument is the activation; None: the one that is no parameter.
        reserved: how many of its last axes cannot hold the examples.
        first_axis_only: whether only the first axis can.
        fits: tells from the arguments whether `function` can answer this call; if not, it runs on perturbed copies.
    """

    function: Callable[..., Tensor]
    activation: int | None = 0
    reserved: int = 1
    first_axis_only: bool = False
    fits: Callable[..., bool] = lambda *args, **kwargs: True


def _linear(view: View, func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = view.add_rank_one(func(input, view.factor(weight), view.common(bias)), input, weight)
    return _add_own(view, y, bias)


def _addmm(view: View, func: Callable, input: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    y = view.add_rank_one(func(view.common(input), mat1, view.factor(mat2)), mat1, mat2, contract_left=True)
    return _add_own(view, y, input)


def _matmul(view: View, func: Callable, input: Tensor, other: Tensor) -> Tensor:
    return view.add_rank_one(func(input, view.factor(other)), input, other, contract_left=True)


def _embedding(
    view: View,
    func: Callable,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    if max_norm is not None:
        raise ValueError(
            f"an embedding with `max_norm` ({max_norm}) rewrites its own weights in the forward pass, which would break "
            "the exactness of forward-only training. Set `max_norm=None` or freeze the embedding."
        )
    return view.add_rows(func(input, weight, padding_idx, max_norm, *rest, **options), input, weight)


def _conv(
    view: View,
    func: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    target = view.target(weight)
    y = func(input, view.centre(weight), view.common(bias), stride, padding, dilation, groups)
    if target is not None:
        left, right = view.factors(target, input.dtype)
        b, kernel, spatial = len(left), weight.shape[1:], y.shape[2:]
        filters = right.view(b, 1, *kernel).expand(b, groups, *kernel).reshape(b * groups, *kernel)
        images = input.unflatten(0, (b, -1)).transpose(0, 1)
        extra = func(images.flatten(1, 2), filters, None, stride, padding, dilation, b * groups)
        extra = extra.reshape(-1, b, groups, 1, *spatial).transpose(0, 1)
        by_example = y.view(b, -1, groups, y.shape[1] // groups, *spatial)
        by_example.addcmul_(extra, left.view(b, 1, groups, -1, *[1] * len(spatial)), value=view.sigma(target))
    own = view.own(bias)
    return y if own is None else y.add_(view.place(own.view(*own.shape, *[1] * (y.ndim - 2)), y))


def _is_batched(input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> bool:
    return input.ndim == weight.ndim


def _layer_norm(
    view: View,
    func: Callable,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    options = {} if eps is None else {"eps": eps}
    if view.own(weight) is None and view.own(bias) is None:
        return func(input, normalized_shape, view.common(weight), view.common(bias), **options)
    return _affine(view, func(input, normalized_shape, None, None, **options), weight, bias)


def _rms_norm(
    view: View,
    func: Callable,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    if view.own(weight) is None:
        return func(input, normalized_shape, view.common(weight), eps)
    return _affine(view, func(input, normalized_shape, None, eps), weight, None)


def _group_norm(
    view: View,
    func: Callable,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if view.own(weight) is None and view.own(bias) is None:
        return func(input, num_groups, view.common(weight), view.common(bias), eps)
    return _affine(view, func(input, num_groups, None, None, eps), weight, bias, channels=True)


def _batch_norm(
    view: View,
    func: Callable,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    if view.own(weight) is None and view.own(bias) is None:
        return func(input, running_mean, running_var, view.common(weight), view.common(bias), *options, **named)
    normed = func(input, running_mean, running_var, None, None, *options, **named)
    return _affine(view, normed, weight, bias, channels=True)


def _elementwise(view: View, func: Callable, input: Any, other: Any, **options: Any) -> Tensor:
    if view.own(input) is None and view.own(other) is None:
        return func(view.substitute(input), view.substitute(other), **options)
    return func(_per_example(view, input, other), _per_example(view, other, input), **options)


def _affine(
    view: View, normed: Tensor, weight: Tensor | None, bias: Tensor | None, *, channels: bool = False
) -> Tensor:
    """`normed * weight + bias` with the parameters of each example; `channels`: they stand at dimension 1."""
    trailing = normed.ndim - 2 if channels else 0
    scale, shift = (p if p is None else _per_example(view, p, normed, trailing) for p in (weight, bias))
    if scale is None:
        return normed if shift is None else normed.add_(shift)
    return normed.mul_(scale) if shift is None else torch.addcmul(shift, normed, scale)


def _per_example(view: View, tensor: Any, activation: Any, trailing: int = 0) -> Any:
    """A parameter at the perturbed point, shaped to broadcast against the activation; anything else as it is."""
    if view.target(tensor) is None:
        return tensor.view(*tensor.shape, *[1] * trailing) if trailing else tensor
    common, own = view.common(tensor), view.own(tensor)
    assert common is not None
    common = common.view((*common.shape, *[1] * trailing))
    return common if own is None else common + view.place(own.view(*own.shape, *[1] * trailing), activation)


def _add_own(view: View, y: Tensor, bias: Tensor | None) -> Tensor:
    own = view.own(bias)
    return y if own is None else y.add_(view.place(own.to(y.dtype), y))


PERTURBED: dict[Callable, Perturbed] = {
    F.linear: Perturbed(_linear, fits=lambda input, weight, bias=None: weight.ndim == 2),
    torch.addmm: Perturbed(_addmm, activation=1, fits=lambda *args, **options: not {"alpha", "beta"} & options.keys()),
    F.embedding: Perturbed(_embedding, reserved=0),
    F.layer_norm: Perturbed(_layer_norm),
    F.rms_norm: Perturbed(_rms_norm),
    F.group_norm: Perturbed(_group_norm, first_axis_only=True),
    F.batch_norm: Perturbed(_batch_norm, first_axis_only=True),
}
PERTURBED |= {conv: Perturbed(_conv, first_axis_only=True, fits=_is_batched) for conv in (F.conv1d, F.conv2d, F.conv3d)}
PERTURBED |= {
    matmul: Perturbed(_matmul, fits=lambda input, other: other.ndim == 2)
    for matmul in (torch.matmul, Tensor.matmul, Tensor.__matmul__)
}
PERTURBED |= {
    getattr(owner, name): Perturbed(_elementwise, activation=None)
    for name in ("add", "sub", "mul", "div", "true_divide")
    for owner in (torch, Tensor)
}
PERTURBED |= {
    getattr(Tensor, f"__{prefix}{name}__"): Perturbed(_elementwise, activation=None)
    for name in ("add", "sub", "mul", "truediv")
    for prefix in ("", "r")
}

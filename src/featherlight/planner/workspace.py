"""What kernels allocate inside one operation, beyond their outputs; no dispatcher sees it, and the profiler counts it.

On a CPU these are the reordered copies of oneDNN: channels in blocks of 16 (8 without AVX-512, which was not run). All of
it was compared with the profiler on a processor with AVX-512; where a kernel is not known, its workspace counts as none.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from featherlight.meter import allocation_peak

_ATEN = torch.ops.aten
_STRIDED = 37016
"""Bytes of the tables of a transposed convolution with a stride, as they were seen."""

_LSTM = 2
"""What oneDNN calls the kind of a recurrent layer."""


class Inside(NamedTuple):
    """What happens within an operation.

    Attributes:
        spike: bytes that are there at once beyond inputs and outputs, for a moment.
        hidden: bytes of outputs by their place, where fake tensors have other sizes than real ones.
    """

    spike: int = 0
    hidden: Mapping[int, int] = {}


_NOTHING = Inside()


def inside(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Inside:
    """The workspace of an operation.

    Args:
        operation: overload of an ATen operation.
        args: its arguments, tensors fake or real.
        kwargs: those that were named.
        out: what it returned.
    """
    known = _KERNELS.get(operation)
    return _NOTHING if known is None else known(args, kwargs, out)


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Inside:
    x, w, b, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    if not _by_onednn(x, w, b, stride, padding, dilation, transposed, output_padding, groups):
        return Inside(_columns(x, w, out))
    if _channels_last(x):
        return _NOTHING
    if transposed and max(stride) > 1:
        return Inside(_bytes(x) + _bytes(w) + _STRIDED if out.shape[1] == 1 else 2 * _bytes(out))
    source, target, weight = _blocked(x, few_as_they_lie=not transposed), _blocked(out), _weight(w, groups, transposed)
    beside = target if transposed and b is not None else 0
    return Inside(max(beside + source + weight, _bytes(out)) + target - _bytes(out))


def _convolution_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: tuple[Tensor | None, ...]) -> Inside:
    grad, x, w, _, stride, padding, dilation, transposed, output_padding, groups, mask = args[:11]
    made = [0 if one is None else _bytes(one) for one in out]
    if not _by_onednn(x, w, None, stride, padding, dilation, transposed, output_padding, groups):
        return Inside(_columns(x, w, grad))
    if _channels_last(x):
        return _NOTHING
    output = _blocked(grad, few_as_they_lie=transposed)
    of_input = of_weight = 0
    if mask[0]:
        source = _blocked(x)
        of_input = max(output + (_bytes(w) if transposed else _weight(w, groups, False, both=True)), made[0]) + source
    if mask[1]:
        source, kept = (
            _blocked(x, few_as_they_lie=not transposed),
            _bytes(w) if transposed else _weight(w, groups, False),
        )
        output = 0 if transposed and grad.shape[1] == 1 else _blocked(grad)
        of_weight = made[0] + max(output + source, made[1]) + kept
    return Inside(max(of_input, of_weight) - sum(made))


def _by_onednn(x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> bool:
    """Whether torch hands the convolution to oneDNN; it decides by shapes, types and the number of threads."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    stride, padding, dilation, transposed, output_padding, groups = rest
    if transposed:
        return x.dtype == torch.float32 and w.shape[2:].numel() > 1
    ghosts = [None if one is None else torch.empty(1, dtype=one.dtype).expand(one.shape) for one in (x, w, b)]
    backend = torch._C._select_conv_backend(
        *ghosts, stride, padding, dilation, transposed, output_padding, groups, None
    )
    return "Mkldnn" in str(backend)


def _columns(x: Tensor, w: Tensor, out: Tensor) -> int:
    """The unfolded input of torch's own kernel, of one batch."""
    if x.device.type != "cpu" or all(size == 1 for size in w.shape[2:]):
        return 0
    return x.shape[0] * out.shape[2:].numel() * w.shape[1:].numel() * x.element_size()


def _channels_last(x: Tensor) -> bool:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def _blocked(x: Tensor, *, few_as_they_lie: bool = False) -> int:
    """Bytes of an image with its channels in whole blocks; 0 where few channels are read as they lie."""
    if few_as_they_lie and x.shape[1] < _block():
        return 0
    return _bytes(x) // x.shape[1] * _whole(x.shape[1])


def _weight(w: Tensor, groups: int, transposed: bool, *, both: bool = False) -> int:
    """Bytes of filters in blocks; where there are few input channels they are in blocks of outputs alone, unless `both`."""
    outputs, inputs = (w.shape[1], w.shape[0] // groups) if transposed else (w.shape[0] // groups, w.shape[1])
    if outputs == inputs == 1:
        return _bytes(w) // groups * _whole(groups)
    columns = _whole(inputs) if both or transposed or inputs >= _block() else inputs
    return _bytes(w) // (outputs * inputs) * _whole(outputs) * columns


def _whole(channels: int) -> int:
    block = _block()
    return -(-channels // block) * block


@functools.cache
def _block() -> int:
    return 16 if "512" in torch.backends.cpu.get_cpu_capability() else 8


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Inside:
    return Inside(sum(_bytes(one) for one in args[:2] if isinstance(one, Tensor) and not one.is_contiguous()))


def _product(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Inside:
    """oneDNN's buffers of a product in 16 bits, for each thread: strips of what lies across, and a tile of sums."""
    left = args[-2]
    if out.dtype not in (torch.bfloat16, torch.float16) or out.device.type != "cpu":
        return _NOTHING
    rows, columns, inner = min(left.shape[-2], 64), min(out.shape[-1], 64), min(-(-left.shape[-1] // 32) * 32, 1024)
    strips = 1 if left.is_contiguous() else 2
    return Inside(torch.get_num_threads() * (strips * 2 * 64 * inner + 4 * rows * columns + 1024))


class _Layer(NamedTuple):
    """One recurrent layer as oneDNN sees it; hashable."""

    rows: int
    width: int
    hidden: int
    biases: bool
    dtype: torch.dtype


_FEW, _MORE = 8, 16
_PROBED: dict[tuple[_Layer, int, bool], tuple[int, int, int]] = {}
"""What `_run_layer` said of layers, numbers of steps, and whether a backward pass follows."""


def probe_recurrent(x: Tensor, w1: Tensor, *, biases: bool, train: bool) -> None:
    """Runs an LSTM layer of such sizes on few steps, outside of all modes, so that its workspace is known.

    Args:
        x: (T, B, F), fake.
        w1: (4 H, F), fake.
        biases: whether it has any.
        train: whether a backward pass follows.
    """
    layer = _Layer(x.shape[1], x.shape[2], w1.shape[0] // 4, biases, x.dtype)
    for steps in [x.shape[0]] if x.shape[0] <= _MORE else [_FEW, _MORE]:
        if (layer, steps, train) not in _PROBED:
            with _disable_current_modes():
                _PROBED[layer, steps, train] = _run_layer(layer, steps, train)


def _recurrent(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: tuple[Tensor, ...]) -> Inside:
    x, w1 = args[0], args[1]
    layer = _Layer(x.shape[1], x.shape[2], w1.shape[0] // 4, bool(args[12]), x.dtype)
    space, spike, _ = _probed(layer, x.shape[0], bool(args[15]))
    return Inside(spike, {3: space})


def _recurrent_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: tuple[Tensor, ...]) -> Inside:
    x, w1 = args[0], args[1]
    found = (_Layer(x.shape[1], x.shape[2], w1.shape[0] // 4, biases, x.dtype) for biases in (True, False))
    return Inside(max(_probed(layer, x.shape[0], True)[2] for layer in found))


def _probed(layer: _Layer, steps: int, train: bool) -> tuple[int, ...]:
    """What was probed; of more than 16 steps what is known of 8 and 16, drawn out, since it grows evenly."""
    nothing = (0, 0, 0)
    if steps <= _MORE:
        return _PROBED.get((layer, steps, train), nothing)
    few, more = (_PROBED.get((layer, count, train), nothing) for count in (_FEW, _MORE))
    return tuple(one + (steps - _FEW) * (two - one) // (_MORE - _FEW) for one, two in zip(few, more, strict=True))


def _run_layer(layer: _Layer, steps: int, train: bool) -> tuple[int, int, int]:
    """Workspace kept, workspace of the pass and of its backward pass, in bytes, of a layer run on some steps.

    oneDNN has no way to ask for them.
    """
    x = torch.zeros(steps, layer.rows, layer.width, dtype=layer.dtype)
    shapes = [
        (4 * layer.hidden, layer.width),
        (4 * layer.hidden, layer.hidden),
        (4 * layer.hidden,),
        (4 * layer.hidden,),
    ]
    weights = [torch.zeros(shape, dtype=layer.dtype, requires_grad=train) for shape in shapes]
    state = torch.zeros(layer.rows, layer.hidden, dtype=layer.dtype)
    with torch.set_grad_enabled(train):
        pass_over = functools.partial(
            _ATEN.mkldnn_rnn_layer.default, x, *weights, state, state, False, [], _LSTM, layer.hidden, 1, layer.biases, False,
            False, train,
        )  # fmt: skip
        forward, out = _measured(pass_over)
        kept = _bytes(out[3]) if out[3] is not None else 0
        spike = forward - kept - sum(_bytes(one) for one in out[:3])
        if not train:
            return kept, spike, 0
        ones = torch.ones_like(out[0])
        backward, grads = _measured(lambda: torch.autograd.grad(out[0], weights, ones))
    return kept, spike, backward - sum(_bytes(one) for one in grads)


def _measured(work: Callable[[], Any]) -> tuple[int, Any]:
    with allocation_peak() as peak:
        out = work()
    return peak.bytes, out


_KERNELS: dict[Any, Callable[[tuple[Any, ...], Mapping[str, Any], Any], Inside]] = {
    _ATEN.convolution.default: _convolution,
    _ATEN.convolution_backward.default: _convolution_backward,
    _ATEN.mm.default: _product,
    _ATEN.addmm.default: _product,
    _ATEN.bmm.default: _product,
    _ATEN.baddbmm.default: _product,
    _ATEN._softmax.default: _softmax,
    _ATEN._log_softmax.default: _softmax,
    _ATEN._softmax_backward_data.default: _softmax,
    _ATEN._log_softmax_backward_data.default: _softmax,
    _ATEN.mkldnn_rnn_layer.default: _recurrent,
    _ATEN.mkldnn_rnn_layer_backward.default: _recurrent_backward,
}

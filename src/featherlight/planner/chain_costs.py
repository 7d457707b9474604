"""What the stages of a model take, measured: steps of the model with one stage at a time in memory.

The stages are run on their own, each with the inputs that the model hands it. So a model can be measured whose plain step would
not fit into memory.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from featherlight.planner.chain import Chain, StageCost
from featherlight.planner.memory_marks import MemoryMarks, memory_marks
from featherlight.transforms.chain_checks import (
    References,
    find_links,
    in_place_named,
    references,
    require_in_order,
    require_usable,
    versions,
)
from featherlight.transforms.recorded_call import RecordedCall, random_state_kept

Loss = Callable[[], Tensor]
"""Runs the model on a batch and returns the loss, (): what a step goes backward from."""

Clock = Callable[[], float]
"""Seconds since some time."""

_MARGIN = 4096  # bytes of single numbers that a step makes here and there


def measure_chain(
    model: nn.Module, stages: Sequence[str], loss: Loss, *, repeats: int = 3, clock: Clock = time.perf_counter
) -> Chain:
    """Measures the costs of a chain within a model: bytes by the profiler or the allocator, times as the fastest of some runs.

    Args:
        model: in the mode in which it is trained. Its weights, buffers and gradients are left as they are.
        stages: names of the modules of the chain, in the order in which the model calls them.
        loss: one forward pass of the model to its loss, ().
        repeats: of the timings.
        clock: that times are read from; `time.process_time` on one thread of a machine that does other things too.

    Returns:
        The stages, between a first one, that stands for all that the model does before them, and a last one, for what comes after
        them and the loss. These two cannot be run again.

    Raises:
        ValueError: the model does not call the stages, or calls them in another order, or the loss has no gradient.

    Cost: `repeats` + 2 steps, with three forward passes each. Memory: what the model takes before and after the chain, and its
    largest stage.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1; got {repeats}.")
    device = _device(model)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"memory is measured on a CPU or with CUDA; the model is on {device}. Plan it on one of these."
        )
    with _left_as_it_is(model):
        _Measuring(model, stages, None, clock).run(loss)
        with memory_marks(device) as marks:
            sized = _Measuring(model, stages, marks, clock)
            sized.run(loss)
        timed = [_Measuring(model, stages, None, clock) for _ in range(repeats)]
        for one in timed:
            one.run(loss)
    seconds = [_fastest([one.seconds[stage] for one in timed]) for stage in range(-1, len(stages) + 1)]
    return _chain(stages, sized, marks, seconds)


class _Measuring:
    """One step of the model in which every stage is measured where the model calls it.

    Stages count from 0; -1 is what lies before the chain, and their number is what lies after it.

    Attributes:
        seconds: of forward and backward passes, by stage.
        sizes: bytes of outputs and of their gradients, by stage.
        gradients: of weights, by stage: their identity and bytes.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], marks: MemoryMarks | None, clock: Clock) -> None:
        self._model = model
        self._now = partial(_read, clock, _device(model))
        self._names = names
        self._modules = [model.get_submodule(name) for name in names]
        self._marks = marks
        self._stage = 0
        self._began = 0.0
        self._entered: list[Tensor] = []
        self._outputs: References = []
        self.seconds: dict[int, tuple[float, float]] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.gradients: dict[int, dict[int, int]] = {}

    def run(self, loss: Loss) -> None:
        """Makes the step."""
        last = len(self._modules)
        with _replaced(self._modules, self._called):
            self._mark(-1, "start")
            self._began = self._now()
            value = loss()
        after = self._now() - self._began
        self._require_complete(value)
        self._mark(last, "taped")
        self.seconds[last] = after, _seconds(value.backward, self._now)
        del value
        self._mark(last, "backward")
        self._note_gradients(last)
        entered = [tensor for tensor in self._entered if tensor.grad_fn is not None]
        self._entered.clear()
        self.sizes[-1] = 0, sum(tensor.nbytes for tensor in entered)
        self._mark(-1, "before backward")
        self.seconds[-1] = self.seconds[-1][0], _backward(entered, self._now)
        self._mark(-1, "backward")
        self._note_gradients(-1)

    def _mark(self, stage: int, what: str) -> None:
        if self._marks is not None:
            self._marks.mark((stage, what))

    def _called(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        stage = self._stage
        require_in_order(self._names, self._modules, stage, module)
        find_links(self._names, stage, self._outputs, tree_leaves((args, kwargs)))
        self._mark(stage, "called")
        if stage == 0:
            self.seconds[-1] = self._now() - self._began, 0.0
            self._entered = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = self._measured(stage, forward, *tree_map(_as_leaf, (args, kwargs)))
        self._stage += 1
        self._mark(stage, "returns")
        self._began = self._now()
        return outputs

    def _measured(self, stage: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs it without tape, for what the model goes on with, and again with tape and backward."""
        leaves = tree_leaves((args, kwargs))
        links = {place: place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        before = versions(leaves)
        began = self._now()
        call = RecordedCall(self._names[stage], self._modules[stage], forward, args, kwargs, links)
        self._mark(stage, "recorded")
        with saved_tensors_hooks(lambda _: None, _refuse_inner_backward), in_place_named(self._names[stage]):
            outputs = forward(*args, **kwargs)
        call.finish()
        ahead = self._now() - began
        self._mark(stage, "run")
        require_usable(self._names[stage], leaves, before, tree_leaves(outputs))
        outputs = tree_map(_as_leaf, outputs)
        self._outputs = references(tree_leaves(outputs))
        self._mark(stage, "before tape")
        taped = call.again([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        self._mark(stage, "taped")
        differentiable = [leaf for leaf in taped if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
        self.sizes[stage] = _storage_bytes(taped), sum(leaf.nbytes for leaf in differentiable)
        taped.clear()
        self.seconds[stage] = ahead, _backward(differentiable, self._now)
        self._mark(stage, "backward")
        self._note_gradients(stage)
        return outputs

    def _note_gradients(self, stage: int) -> None:
        """Of which weights gradients have come up, which are then taken away."""
        owner = self._modules[stage] if 0 <= stage < len(self._modules) else self._model
        found = [parameter for parameter in owner.parameters() if parameter.grad is not None]
        self.gradients[stage] = {id(one): one.grad.nbytes for one in found if one.grad is not None}
        for parameter in found:
            parameter.grad = None

    def _require_complete(self, value: Tensor) -> None:
        if self._stage < len(self._modules):
            raise ValueError(
                f"the model called {self._stage} of {len(self._modules)} stages; `{self._names[self._stage]}` was not "
                "reached. Name the modules in the order in which the model calls them."
            )
        if value.ndim or not value.requires_grad:
            raise ValueError(
                f"the loss must be one number with a gradient; got the shape {tuple(value.shape)}"
                f"{'' if value.requires_grad else ' without a gradient'}. Take its mean, and see that something is trained."
            )


def _chain(
    names: Sequence[str], sized: _Measuring, marks: MemoryMarks, seconds: Sequence[tuple[float, float]]
) -> Chain:
    count, stays = len(names), _gradients_that_stay(len(names), sized)
    outputs = [sized.sizes[stage][0] for stage in range(count)]
    base, enter, leave = (marks.bytes_at(key) for key in ((-1, "start"), (0, "called"), (count - 1, "returns")))
    leave -= outputs[-2] if count > 1 else 0  # of which the model lets go when the last stage has returned
    first = StageCost(
        name="before the chain",
        forward_seconds=seconds[0][0],
        backward_seconds=seconds[0][1],
        output_bytes=0,
        tape_bytes=max(0, enter - base),
        forward_bytes=0,
        taped_forward_bytes=marks.peak((-1, "start"), (0, "called")) - base,
        backward_bytes=marks.peak((-1, "before backward"), (-1, "backward")) - base,
        gradient_bytes=sized.sizes[-1][1],
        weight_gradient_bytes=stays[-1],
        recomputable=False,
    )
    last = StageCost(
        name="after the chain",
        forward_seconds=seconds[-1][0],
        backward_seconds=seconds[-1][1],
        output_bytes=0,
        tape_bytes=max(0, marks.bytes_at((count, "taped")) - leave),
        forward_bytes=0,
        taped_forward_bytes=marks.peak((count - 1, "returns"), (count, "taped")) - leave,
        backward_bytes=marks.peak((count, "taped"), (count, "backward")) - leave,
        gradient_bytes=0,
        weight_gradient_bytes=stays[count],
        recomputable=False,
    )
    inner = [_stage_cost(names[i], i, sized, marks, seconds[i + 1], stays[i]) for i in range(count)]
    between = [marks.bytes_at((i, "called")) - enter - outputs[i - 1] for i in range(1, count)]
    stay = [marks.bytes_at((i, "run")) - marks.bytes_at((i, "called")) - outputs[i] for i in range(count)]
    held = max(0, *between, 0) + sum(max(0, one) for one in stay) + _MARGIN
    return Chain(stages=(first, *inner, last), held_bytes=held)


def _gradients_that_stay(count: int, sized: _Measuring) -> dict[int, int]:
    """Bytes of gradients of weights by the stage in whose backward pass they first come up."""
    seen: set[int] = set()
    stays: dict[int, int] = {}
    for stage in (count, *reversed(range(count)), -1):
        stays[stage] = sum(size for weight, size in sized.gradients[stage].items() if weight not in seen)
        seen |= sized.gradients[stage].keys()
    return stays


def _stage_cost(
    name: str, stage: int, sized: _Measuring, marks: MemoryMarks, seconds: tuple[float, float], stays: int
) -> StageCost:
    called, recorded = marks.bytes_at((stage, "called")), marks.bytes_at((stage, "recorded"))
    before, taped = marks.bytes_at((stage, "before tape")), marks.bytes_at((stage, "taped"))
    output, gradient = sized.sizes[stage]
    return StageCost(
        name=name,
        forward_seconds=seconds[0],
        backward_seconds=seconds[1],
        output_bytes=output,
        tape_bytes=max(0, taped - before - output),
        forward_bytes=max(0, marks.peak((stage, "called"), (stage, "run")) - called + recorded - called),
        taped_forward_bytes=max(0, marks.peak((stage, "before tape"), (stage, "taped")) - before),
        backward_bytes=max(0, marks.peak((stage, "taped"), (stage, "backward")) - before),
        gradient_bytes=gradient,
        weight_gradient_bytes=stays,
    )


class _GradientsOfOnes(torch.autograd.Function):
    """One number whose gradients are ones, made when they are asked for and held by nobody, as in a real backward pass."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.made = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(torch.ones(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.made)


def _backward(tensors: list[Tensor], now: Clock) -> float:
    """Goes backward from tensors that nobody else holds; returns the seconds."""
    if not tensors:
        return 0.0
    surrogate = _GradientsOfOnes.apply(*tensors)
    tensors.clear()
    assert isinstance(surrogate, Tensor)
    return _seconds(surrogate.backward, now)


def _seconds(call: Callable[[], object], now: Clock) -> float:
    began = now()
    call()
    return now() - began


def _read(clock: Clock, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _device(model: nn.Module) -> torch.device:
    return next(iter((*model.parameters(), *model.buffers())), torch.zeros(())).device


def _fastest(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Whatever else the machine does only adds."""
    return min(run[0] for run in runs), min(run[1] for run in runs)


def _storage_bytes(leaves: Sequence[Any]) -> int:
    storages = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def _as_leaf(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _refuse_inner_backward(_: None) -> Tensor:
    raise ValueError(
        "a stage goes backward within its own forward pass, so that it cannot be part of a chain; leave it out."
    )


@contextmanager
def _replaced(modules: Sequence[nn.Module], called: Callable[..., Any]) -> Iterator[None]:
    """Inside the block calls of the modules go to `called`, with the module and its own `forward` in front."""
    unique = list(dict.fromkeys(modules))
    own = [vars(module).get("forward") for module in unique]
    for module in unique:
        module.forward = update_wrapper(partial(called, module, module.forward), module.forward)
    try:
        yield
    finally:
        for module, before in zip(unique, own, strict=True):
            del module.forward
            if before is not None:
                module.forward = before


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Inside the block gradients are empty, and what changes of buffers and random states is taken back after it."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    owners = [(owner, dict(owner._buffers)) for owner in model.modules()]
    model.zero_grad(set_to_none=True)
    try:
        with random_state_kept(model, list(model.parameters())[:1]), torch.enable_grad():
            yield
    finally:
        for owner, held in owners:
            owner._buffers.update(held)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient

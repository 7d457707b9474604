"""The peak memory of training steps, by category, without running the model.

Any module, batch and optimizer: forward, backward and optimizer step are done on fake tensors (`trace.py`), by torch's own
autograd and the optimizer's own code. What is seen there is what the profiler counts on a CPU.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from featherlight.functional.signs import forget_tables
from featherlight.meter import allocation_peak
from featherlight.objective import Batch, Objective
from featherlight.optim import MeZO, ZerothOrderSGD
from featherlight.planner.fake_model import fake_batch, fake_copy, fake_mode_of, new_fake_mode, taken_for_real
from featherlight.planner.trace import Block, SameBranches, Trace, UntraceableError

CATEGORIES: tuple[str, ...] = ("weights", "gradients", "optimizer", "activations", "temporaries", "workspace", "inputs")
"""What memory goes to: trained and frozen weights and buffers; gradients; optimizer state; what forward passes keep for
backward ones; whatever else operations return; what kernels use inside; the batch."""

_RANDOM_STATE = 5056
"""Bytes of the state of a generator on a CPU, which an objective sets aside."""

_TABLES = 2**16
"""Bytes of tables of constants that a first step may leave behind."""

_ALIKE = (MeZO, ZerothOrderSGD)
"""Optimizers that do in each step what they did in the first. Their kin do not: momenta, and anchors every so many steps."""

STEPS = 2
"""Steps that are followed: the first makes the optimizer's state, the second has it from its start."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One point of a timeline.

    Attributes:
        phase: "forward", "backward" or "optimizer".
        num_bytes: what is there beyond what was there before the first step.
    """

    phase: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What steps take.

    Attributes:
        peak: largest number of bytes that is there at once, weights, buffers and batch included.
        above_start: of that, what was not there before the first step: what `meter.allocation_peak` measures around the steps.
        categories: what the peak consists of; the bytes of each of CATEGORIES.
        timeline: of all steps, one point for each tensor that came or went.
        flops: multiplications and additions of one step, in matrix products and convolutions.
        measured: whether the steps were run rather than followed, and why; None for a prediction.
    """

    peak: int
    above_start: int
    categories: Mapping[str, int]
    timeline: Sequence[Moment]
    flops: int
    measured: str | None = None


def predict_step(
    model: nn.Module,
    batch: Batch,
    objective: Callable[[nn.Module, Batch], Objective],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    training: bool = True,
    steps: int = STEPS,
) -> StepMemory:
    """Predicts the peak memory of the first steps of a training run; nothing is computed and nothing of its size allocated.

    Args:
        model: real or on the meta device, which is left as it is; or of fake tensors, which is trained on.
        batch: real tensors, whose contents are followed where they are small, or fake ones; B rows each.
        objective: makes the objective of a step from a model and a batch, as `lambda m, b: BatchObjective(m, b, loss)`.
        optimizer: makes the optimizer from the model.
        training: whether the model is in training mode.
        steps: how many.

    Returns:
        The prediction. On a CPU the profiler's count of the same steps is within 2% of it for all nets of
        `benchmarks/planner_memory.py` but ResNet-8 (2.7%); kernels of other devices may use workspace that is not known here.

    Raises:
        UntraceableError: the model's forward pass depends on the contents of tensors, or uses a kernel without a fake form;
            `measure_step` runs a step instead.

    Cost: tens of microseconds an operation, whatever its size. Of `MeZO` and `ZerothOrderSGD`, whose steps are all alike, one
    is followed.
    """
    mode = fake_mode_of(model) or new_fake_mode()
    with _told():
        ready = (model if fake_mode_of(model) is not None else fake_copy(model, mode)).train(training)
        inputs = fake_batch(batch, mode)
        trace = Trace(mode)
        for kind, tensors in (("weights", [*ready.parameters(), *ready.buffers()]), ("inputs", list(inputs.values()))):
            for tensor in tensors:
                trace.watch(tensor, kind)
        real = {**dict(model.named_buffers()), **batch}
        for name, tensor in {**dict(ready.named_buffers()), **inputs}.items():
            if not isinstance(real[name], FakeTensor) and not real[name].is_meta:
                trace.known.set(tensor, real[name])
        with _following(trace, ready):
            chosen = optimizer(ready)
            begin = len(trace.events)
            for step in range(steps):
                first, flops, held = len(trace.events), trace.flops, _held(trace)
                trace.phase = "forward"
                chosen.step(objective(ready, inputs))  # pyright: ignore[reportArgumentType, reportCallIssue]
                _claim_state(trace)
                made = _held(trace) - held
                if (
                    type(chosen) in _ALIKE
                    and sum(block.num_bytes for block in made) <= _TABLES
                    and _no_gradients(ready)
                ):
                    to_come = steps - step - 1
                    trace.events += [event for event in trace.events[first:] if event.block not in made] * to_come
                    trace.flops += (trace.flops - flops) * to_come
                    break
    return _summary(trace, begin, steps)


def measure_step(
    model: nn.Module,
    batch: Batch,
    objective: Callable[[nn.Module, Batch], Objective],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    reason: str,
    training: bool = True,
    steps: int = STEPS,
) -> StepMemory:
    """Runs steps on a copy of the model and measures them, for models that cannot be followed; arguments as `predict_step`.

    What the peak consists of beyond weights, gradients, optimizer state and batch counts as activations.

    Raises:
        UntraceableError: the model has no weights in memory, so that it cannot be run either.
    """
    if fake_mode_of(model) is not None or any(one.is_meta for one in (*model.parameters(), *model.buffers())):
        raise UntraceableError(f"{reason}; and it has no weights in memory, so that no step can be measured instead")
    ready = copy.deepcopy(model).train(training)
    chosen = optimizer(ready)
    device = next(iter(batch.values())).device
    with allocation_peak(device) as peak:
        for _ in range(steps):
            chosen.step(objective(ready, batch))  # pyright: ignore[reportArgumentType, reportCallIssue]
    there = dict.fromkeys(CATEGORIES, 0)
    there["weights"] = _bytes((*ready.parameters(), *ready.buffers()))
    there["inputs"] = _bytes(batch.values())
    there["gradients"] = _bytes(p.grad for p in ready.parameters() if p.grad is not None)
    there["optimizer"] = _bytes(one for one in tree_leaves(list(chosen.state.values())) if isinstance(one, Tensor))
    there["activations"] = max(0, peak.bytes - there["gradients"] - there["optimizer"])
    return StepMemory(
        peak=there["weights"] + there["inputs"] + peak.bytes,
        above_start=peak.bytes,
        categories=there,
        timeline=[Moment(phase="measured", num_bytes=one) for one in peak.curve],
        flops=0,
        measured=reason,
    )


def predict_or_measure(
    model: nn.Module,
    batch: Batch,
    objective: Callable[[nn.Module, Batch], Objective],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    training: bool = True,
    steps: int = STEPS,
) -> StepMemory:
    """As `predict_step`; a model that cannot be followed is run for a step instead, which `measured` then says."""
    try:
        return predict_step(model, batch, objective, optimizer, training=training, steps=steps)
    except UntraceableError as error:
        return measure_step(model, batch, objective, optimizer, reason=str(error), training=training, steps=steps)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@contextmanager
def _told() -> Iterator[None]:
    """Turns whatever says that contents are missing into one sentence."""
    try:
        yield
    except UntraceableError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UntraceableError(f"the step cannot be followed without its data: {reason}") from error


@contextmanager
def _following(trace: Trace, model: nn.Module) -> Iterator[None]:
    """Inside the block, what is done with fake tensors is noted by phases."""

    def begin(module: nn.Module, args: Any) -> None:
        trace.phase, trace.strict = "forward", True

    def end(module: nn.Module, args: Any, out: Any) -> None:
        trace.strict = False

    def accumulated(parameter: Tensor) -> None:
        assert parameter.grad is not None
        trace.watch(parameter.grad, "gradients")

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    handles += [p.register_post_accumulate_grad_hook(accumulated) for p in model.parameters() if p.requires_grad]
    forget_tables()
    try:
        with taken_for_real(), trace.fake, trace, SameBranches(trace.known):
            yield
    finally:
        forget_tables()
        for handle in handles:
            handle.remove()


def _claim_state(trace: Trace) -> None:
    """Whatever an optimizer holds after its step is its state, whether in `state` or elsewhere."""
    for block in trace.live():
        if block.kind == "temporaries":
            block.kind = "optimizer"


def _held(trace: Trace) -> set[Block]:
    """What is alive between two steps."""
    return set(trace.live())


def _no_gradients(model: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in model.parameters())


def _summary(trace: Trace, begin: int, steps: int) -> StepMemory:
    """Adds the events up."""
    there = dict.fromkeys(CATEGORIES, 0)
    for event in trace.events[:begin]:
        there[event.block.kind] += event.change * event.block.num_bytes
    start = now = peak = sum(there.values())
    at_peak, timeline = dict(there), []
    for event in trace.events[begin:]:
        size, kind = event.block.num_bytes, event.block.kind
        there[kind] += size if event.change == 0 else event.change * size
        now += size if event.change == 0 else event.change * size
        random = 0 if event.phase == "optimizer" else _RANDOM_STATE
        if now + random > peak:
            peak, at_peak = now + random, there | {"workspace": there["workspace"] + random}
        timeline.append(Moment(phase=event.phase, num_bytes=now + random - start))
        if event.change == 0:
            there[kind] -= size
            now -= size
            timeline.append(Moment(phase=event.phase, num_bytes=now - start))
    return StepMemory(
        peak=peak,
        above_start=peak - start,
        categories=at_peak,
        timeline=timeline,
        flops=trace.flops // steps,
    )

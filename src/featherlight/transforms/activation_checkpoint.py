"""Runs a chain of stages by a schedule: what is not kept in the forward pass is computed again in the backward pass.

The graph of autograd is that of the plain run, node by node; only what its nodes have saved is dropped and made again. So sums
of gradients, hooks of parameters, shared weights and outputs that are used elsewhere are as without it.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import update_wrapper
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Step, steps
from featherlight.transforms.chain_checks import (
    References,
    find_links,
    references,
    require_in_order,
    require_usable,
    versions,
)
from featherlight.transforms.recorded_call import RecordedCall


class ActivationCheckpoint:
    """Trains in less memory: a transform that has the stages of a model follow a schedule.

    Loss, gradients, buffers (statistics of BatchNorm, observers), dropout masks and random states are those of the plain run
    to the bit. Passes without gradients are left alone. Names of parameters, types of modules and saves stay as they are.

    Args:
        stages: names of the modules of the chain, in the order in which the model calls them; one that is called twice stands
            there twice. Each must be handed what the one before returned, beside whatever else it takes.
        schedule: for these stages, such as `featherlight.planner.plan_for` finds.

    Raises:
        ValueError: the schedule is not one for so many stages.

    A forward pass raises ValueError where a stage changes its input in place, is called out of order, is not handed the output
    of the one before, returns nothing that has a gradient, or is handed an object that it may change.

    Second derivatives go through (`create_graph`), with the memory of a plain run; `retain_graph` alone is refused.

    Cost: about 2 microseconds for each tensor that a stage saves, and copies of the small buffers of a stage that runs
    twice. A module may not keep state that changes in a forward pass outside of its buffers.
    """

    def __init__(self, stages: Sequence[str], schedule: Sequence[Op]) -> None:
        self.stages = tuple(stages)
        self.schedule = tuple(schedule)
        self._steps = steps(self.schedule, len(self.stages))
        sweep = [op.stage for op in self.schedule[: len(self.stages)]]
        if sweep != list(range(len(self.stages))):
            raise ValueError(
                f"the schedule begins with stages {sweep}; it has to begin with one forward sweep over all "
                f"{len(self.stages)}, as the model calls them."
            )

    def prepare(self, model: nn.Module) -> None:
        """Puts the schedule in front of the `forward` of each stage.

        Raises:
            ValueError: the model has no such module, or one that runs by a schedule already.
        """
        modules = [_stage(model, name) for name in self.stages]
        for name, module in zip(self.stages, modules, strict=True):
            if isinstance(vars(module).get("forward"), Scheduled):
                raise ValueError(
                    f"stage `{name}` runs by a schedule already. Convert the model first, or name it once."
                )
        chain = _Chain(self.stages, modules, self._steps)
        for module in dict.fromkeys(modules):
            module.forward = Scheduled(chain, module)

    def update(self, model: nn.Module, progress: float) -> None:
        """Nothing moves."""

    def convert(self, model: nn.Module) -> None:
        """Gives every stage its own `forward` back."""
        for module in dict.fromkeys(_stage(model, name) for name in self.stages):
            scheduled = vars(module).get("forward")
            if isinstance(scheduled, Scheduled):
                scheduled.remove()


class Scheduled:
    """Stands in for the `forward` of a stage.

    Args:
        chain: that it is part of.
        module: the stage.
    """

    def __init__(self, chain: "_Chain", module: nn.Module) -> None:
        self._chain = chain
        self._module = module
        self._own = vars(module).get("forward")
        self._forward: Callable[..., Any] = module.forward
        update_wrapper(self, module.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the stage as the schedule has it; without gradients, as it is."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return self._chain.run(self._module, self._forward, args, kwargs)

    def remove(self) -> None:
        """Puts back what was there before."""
        del self._module.forward
        if self._own is not None:
            self._module.forward = self._own


class _Slot(NamedTuple):
    """Stands in the graph for a tensor that is made again."""

    stage: int
    number: int


class _Chain:
    """The stages, and the pass through them that is under way."""

    def __init__(self, names: Sequence[str], modules: Sequence[nn.Module], planned: Sequence[Step]) -> None:
        self.names = names
        self.modules = list(modules)
        self.sweep = planned[: len(modules)]
        self.rest = planned[len(modules) :]
        self._pass: _Pass | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Chain":
        copied = memo[id(self)] = _Chain(self.names, self.modules, (*self.sweep, *self.rest))
        copied.modules = [deepcopy(module, memo) for module in self.modules]
        return copied

    def run(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the next stage of the forward sweep."""
        current = self._pass
        if current is None or (self.modules[current.stage] is not module and module is self.modules[0]):
            current = self._pass = _Pass(self)
        try:
            require_in_order(self.names, self.modules, current.stage, module)
            outputs = current.forward(forward, args, kwargs)
        except BaseException:
            self._pass = None
            raise
        if current.stage == len(self.modules):
            self._pass = None
        return outputs


class _Pass:
    """One forward pass through the chain and its backward pass. It lives as long as its graph."""

    def __init__(self, chain: _Chain) -> None:
        self.stage = 0
        self._chain = chain
        self._calls: list[RecordedCall | None] = []
        self._outputs: References = []
        self._counts: list[int] = []
        self._kept: dict[int, list[Tensor]] = {}
        self._tapes: dict[int, list[tuple[Tensor, int] | None]] = {}
        self._next = 0
        self._last_begun = len(chain.modules)

    def forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The next stage of the sweep."""
        stage, name = self.stage, self._chain.names[self.stage]
        leaves = tree_leaves((args, kwargs))
        links = find_links(self._chain.names, stage, self._outputs, leaves)
        step, before = self._chain.sweep[stage], versions(leaves)
        self._counts.append(0)
        if step.action is Action.TAPE:
            self._calls.append(None)
            outputs = forward(*args, **kwargs)
        else:
            if step.action is Action.KEEP:
                self._kept[stage] = [leaves[place].detach() for place in links]
            call = RecordedCall(name, self._chain.modules[stage], forward, args, kwargs, links)
            with saved_tensors_hooks(self._pack, self._unpack):
                outputs = forward(*args, **kwargs)
            call.finish()
            self._calls.append(call)
        returned = tree_leaves(outputs)
        require_usable(name, leaves, before, returned)
        for leaf in returned:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda _, stage=stage: self._begin(stage))
        self._outputs = references(returned)
        self.stage += 1
        return outputs

    def _pack(self, _: Tensor) -> _Slot:
        number = self._counts[-1]
        self._counts[-1] += 1
        return _Slot(len(self._counts) - 1, number)

    def _unpack(self, slot: _Slot) -> Tensor:
        if self.stage <= slot.stage:
            raise ValueError(
                f"stage `{self._chain.names[slot.stage]}` goes backward within its own forward pass, so that it needs its "
                "tape there. Have the schedule tape it in the forward sweep, or leave it out of the chain."
            )
        self._begin(slot.stage)
        tape = self._tapes.get(slot.stage, [])
        held = tape[slot.number] if slot.number < len(tape) else None
        if held is None:
            raise ValueError(
                f"the backward pass asks a second time for what stage `{self._chain.names[slot.stage]}` had saved, which "
                "is gone. With activation checkpointing a graph goes backward once; leave out `retain_graph`, or run it "
                "forward again."
            )
        if not torch.is_grad_enabled():  # else the graph of the gradient goes backward through the same nodes
            tape[slot.number] = None
        tensor, version = held
        if tensor._version != version:
            raise ValueError(
                f"stage `{self._chain.names[slot.stage]}` changes in place a tensor of shape {tuple(tensor.shape)} that "
                "its backward pass needs. Use a form that returns a new tensor."
            )
        return tensor

    def _begin(self, stage: int) -> None:
        """Runs the schedule up to the backward pass of a stage, which is about to begin."""
        if stage >= self._last_begun:
            return
        flow: list[Any] = []
        rest = self._chain.rest
        while (step := rest[self._next]) and (step.action is not Action.BACK or step.stage != stage):
            self._next += 1
            if step.action is Action.BACK:
                if not torch.is_grad_enabled():
                    self._tapes.pop(step.stage, None)
                self._calls[step.stage] = None
            else:
                flow = self._forward_again(step, flow)
        self._last_begun = stage

    def _forward_again(self, step: Step, flow: list[Any]) -> list[Any]:
        """One forward op of the backward pass; `flow` is emptied, so that nothing holds the input longer than needed."""
        call = self._calls[step.stage]
        assert call is not None, "what a schedule runs again was not taped in the sweep"
        if step.from_kept:
            inputs = self._kept.pop(step.stage) if step.last_use else self._kept[step.stage]
        else:
            inputs = [flow[place].detach() for place in call.links.values()]
            flow.clear()
        if step.action is Action.KEEP and not step.last_use:
            self._kept[step.stage] = inputs
        if step.action is not Action.TAPE:
            with saved_tensors_hooks(lambda _: None, _not_here):
                return _detached(call.again(inputs))
        tape: list[tuple[Tensor, int] | None] = []

        def store(tensor: Tensor) -> Tensor:
            held = tensor.detach()
            tape.append((held, held._version))
            return held

        with saved_tensors_hooks(store, lambda tensor: tensor):
            outputs = _detached(call.again(inputs))
        if len(tape) != self._counts[step.stage]:
            raise ValueError(
                f"stage `{self._chain.names[step.stage]}` saved {self._counts[step.stage]} tensors when it was called and "
                f"{len(tape)} when it was run again, so that it has done something else. What it does may depend on its "
                "inputs, weights, buffers and torch's random generators only."
            )
        self._tapes[step.stage] = tape
        return outputs


def _detached(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _not_here(_: None) -> Tensor:
    raise ValueError("a stage goes backward within its own forward pass; leave it out of the chain, or have it taped.")


def _stage(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the model has no module `{name}` to be a stage: {error}.") from error

"""One call of a module, in such a way that it can be made again with the same result to the bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

COPIED_BUFFER_BYTES = 64 * 1024
"""A buffer up to this size is copied before a call that is made again, since it may hold statistics; others must not change."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size, range)


class RecordedCall:
    """What a module was called with, and the state around it: random generators, small buffers, autocast.

    Nothing of it refers to a graph. Tensors of the call that come from the stage before are left out (`links`), and are
    handed in when it is made again.

    Args:
        name: of the module, for messages.
        module: whose state counts.
        forward: what is called.
        args: positional arguments of the call.
        kwargs: named arguments.
        links: places among the flattened arguments of tensors that are handed in anew, and their places among the
            flattened outputs of the call before.

    Attributes:
        links: as given.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        links: dict[int, int],
    ) -> None:
        flat, self._tree = tree_flatten((args, kwargs))
        leaves: list[Any] = list(flat)
        _refuse_objects(name, leaves)
        self.links = links
        self._name = name
        self._module = module
        self._forward = forward
        self._gradients = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        self._leaves: list[Any] = [None if place in links else _detached(leaf) for place, leaf in enumerate(leaves)]
        self._versions = [leaf._version if isinstance(leaf, Tensor) else 0 for leaf in self._leaves]
        self._weights = [(parameter, parameter._version) for parameter in module.parameters()]
        self._autocast = _autocast_state(leaves)
        self._generators = _generators(module, leaves)
        self._states: list[Tensor] | None = [read() for read, _ in self._generators]
        self._buffers = _copies(module)
        self._large = [
            (name, buffer, buffer._version)
            for name, buffer in module.named_buffers()
            if buffer.nbytes > COPIED_BUFFER_BYTES
        ]

    def finish(self) -> None:
        """After the call: lets go of random states that it did not move.

        Raises:
            ValueError: it has changed a large buffer.
        """
        assert self._states is not None
        if all(torch.equal(read(), state) for (read, _), state in zip(self._generators, self._states, strict=True)):
            self._states = None
        self._require_unchanged()

    def again(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Makes the call once more, with gradients on.

        Args:
            inputs: the linked tensors, in the order of `links`.

        Returns:
            The flattened outputs. Generators and buffers are then as they were before this.

        Raises:
            ValueError: weights or arguments have been changed in place since the first call.
        """
        self._require_unchanged()
        leaves: list[Any] = list(self._leaves)
        for place, tensor in zip(self.links, inputs, strict=True):
            leaves[place] = tensor
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[place] = leaf.detach().requires_grad_(self._gradients[place])
        args, kwargs = tree_unflatten(leaves, self._tree)
        del leaves
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for device, enabled, dtype, cached in self._autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached))
            stack.enter_context(self._random_state())
            stack.enter_context(self._own_buffers())
            return tree_flatten(self._forward(*args, **kwargs))[0]

    @contextmanager
    def _random_state(self) -> Iterator[None]:
        if self._states is None:
            yield
            return
        now = [read() for read, _ in self._generators]
        _write(self._generators, self._states)
        try:
            yield
        finally:
            _write(self._generators, now)

    @contextmanager
    def _own_buffers(self) -> Iterator[None]:
        """Inside the block the module works on copies of its buffers as they were before the first call."""
        before = [(owner, name, owner._buffers[name]) for owner, name, _ in self._buffers]
        for owner, name, copy in self._buffers:
            owner._buffers[name] = copy.clone()
        try:
            yield
        finally:
            for owner, name, buffer in before:
                owner._buffers[name] = buffer

    def _require_unchanged(self) -> None:
        changed = [f"buffer `{name}`" for name, buffer, version in self._large if buffer._version != version]
        changed += ["a weight" for weight, version in self._weights if weight._version != version]
        for leaf, version in zip(self._leaves, self._versions, strict=True):
            if isinstance(leaf, Tensor) and leaf._version != version:
                changed.append(f"an argument of shape {tuple(leaf.shape)}")
        if changed:
            raise ValueError(
                f"stage `{self._name}` is to be run a second time for its backward pass, but {changed[0]} was changed in "
                "place since it was called, so that the gradient would be another. Change weights after the backward pass "
                f"only, and keep state that a forward pass changes in buffers of at most {COPIED_BUFFER_BYTES} bytes."
            )


@contextmanager
def random_state_kept(module: nn.Module, leaves: Sequence[Any]) -> Iterator[None]:
    """Puts back after the block the states of all random generators that a module may draw from.

    Args:
        module: with generators of its own, or none.
        leaves: tensors on the devices whose default generators count, beside that of the CPU.
    """
    found = _generators(module, leaves)
    states = [read() for read, _ in found]
    try:
        yield
    finally:
        _write(found, states)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _refuse_objects(name: str, leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        frozen = is_dataclass(leaf) and type(leaf).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
        if not (isinstance(leaf, (Tensor, *_PLAIN)) or callable(leaf) or frozen):
            raise ValueError(
                f"stage `{name}` is handed a {type(leaf).__name__}, an object that it may change, so that it cannot be run "
                "a second time with the same result. If it is a cache of keys and values, call the model with `use_cache=False`."
            )


def _copies(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Copies of the small buffers, with who holds them."""
    return [
        (owner, name, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.nbytes <= COPIED_BUFFER_BYTES
    ]


def _devices(leaves: Sequence[Any]) -> list[torch.device]:
    found = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
    return [device for device in found if device.type not in ("cpu", "meta")]


def _autocast_state(leaves: Sequence[Any]) -> list[tuple[str, bool, torch.dtype, bool]]:
    kinds = {"cpu", *(device.type for device in _devices(leaves))}
    cached = torch.is_autocast_cache_enabled()
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), cached) for kind in sorted(kinds)]


_Access = tuple[Callable[[], Tensor], Callable[[Tensor], object]]


def _generators(module: nn.Module, leaves: Sequence[Any]) -> list[_Access]:
    """How to read and write the state of each random generator that a module may draw from."""
    found: list[_Access] = [(torch.get_rng_state, torch.set_rng_state)]
    for device in _devices(leaves):
        default = torch.get_device_module(device)
        found.append((_reads(default, device), _writes(default, device)))
    own = {
        id(value): value for one in module.modules() for value in vars(one).values() if type(value) is torch.Generator
    }
    found.extend((generator.get_state, generator.set_state) for generator in own.values())
    return found


def _reads(default: Any, device: torch.device) -> Callable[[], Tensor]:
    return lambda: default.get_rng_state(device)


def _writes(default: Any, device: torch.device) -> Callable[[Tensor], object]:
    return lambda state: default.set_rng_state(state, device)


def _write(generators: Sequence[_Access], states: Sequence[Tensor]) -> None:
    for (_, write), state in zip(generators, states, strict=True):
        write(state)

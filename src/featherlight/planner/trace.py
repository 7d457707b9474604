"""What a piece of work allocates and frees, seen without doing it: the storages of fake tensors are watched.

What is computed on fake tensors has shapes, strides and lifetimes and no contents; autograd is the real one, so that what it
keeps and when it lets go is not modelled but seen.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from featherlight.planner.known_values import KnownValues
from featherlight.planner.workspace import inside, probe_recurrent

_READ = torch.ops.aten._local_scalar_dense.default
_FINITE = {torch.isfinite: True, torch.Tensor.isfinite: True, torch.isnan: False, torch.isinf: False}
"""What is asked of contents in checks, and what is answered."""

_COMPARE = (torch.ops.aten.allclose.default, torch.ops.aten.equal.default)
_DEVICE = torch.ops.prim.device.default


class UntraceableError(ValueError):
    """The work depends on contents that fake tensors do not have, or on a kernel that has no fake form."""


@dataclass(slots=True, eq=False)
class Block:
    """One storage, or the workspace of an operation.

    Attributes:
        num_bytes: its size.
        kind: a key of `memory.CATEGORIES`.
    """

    num_bytes: int
    kind: str = "temporaries"


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a block: it came (`change` 1), went (-1), or came and went within one operation (0).

    Attributes:
        block: which.
        change: as above.
        phase: "forward", "backward" or "optimizer".
    """

    block: Block
    change: int
    phase: str


class Trace(TorchDispatchMode):
    """A dispatch mode above a FakeTensorMode that notes every storage that comes and goes.

    Args:
        fake: the mode that makes the tensors.

    Attributes:
        events: in order.
        phase: what the events belong to, but for those of a backward pass; what follows one is the optimizer's.
        strict: refuses to read a number of unknown contents; else it is answered by one, or True.
        flops: multiplications and additions of matrix products and convolutions so far.
        known: numbers that are known although their tensors are fake.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.events: list[Event] = []
        self.phase = "forward"
        self.strict = False
        self.flops = 0
        self.known = KnownValues()
        self._blocks: dict[int, tuple[weakref.ref[Any], Block]] = {}

    def watch(self, tensor: Tensor, kind: str | None = None, *, num_bytes: int | None = None) -> Block:
        """The block of a tensor's storage; one that is new has come.

        Args:
            tensor: fake.
            kind: set if given.
            num_bytes: of the real storage, where it is not that of the fake one.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._blocks:
            block = Block(storage.nbytes() if num_bytes is None else num_bytes)
            self._blocks[key] = (weakref.ref(storage, lambda _: self._gone(key)), block)
            self._note(block, 1)
        block = self._blocks[key][1]
        if kind is not None:
            block.kind = kind
        return block

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is _READ:
            return self._read(args[0])
        if func in _COMPARE:
            return self._compare(func, args, kwargs)
        try:
            out = func(*args, **kwargs)
        except DynamicOutputShapeException:
            out = self._compute(func, args, kwargs)
        self.known.follow(func, args, kwargs, out)
        found = inside(func, args, kwargs, out)
        for place, leaf in enumerate(tree_leaves(out)):
            if isinstance(leaf, Tensor):
                self.watch(leaf, num_bytes=found.hidden.get(place))
        if found.spike > 0:
            self._note(Block(found.spike, "workspace"), 0)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
        return out

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation whose shape depends on contents, where those are known."""
        contents = self.known.compute(func, args, kwargs)
        if contents is None:
            raise UntraceableError(f"the shape of what {func} returns depends on the contents of tensors")
        return tree_map(self._with_contents, contents)

    def _with_contents(self, contents: Any) -> Any:
        if not isinstance(contents, Tensor):
            return contents
        fake = self.fake.from_tensor(contents)
        self.known.set(fake, contents)
        return fake

    def _read(self, tensor: Tensor) -> Any:
        known = self.known.item(tensor)
        if known is not None:
            return known
        if self.strict:
            raise UntraceableError("its forward pass reads a number that depends on the contents of tensors")
        return {torch.bool: True}.get(tensor.dtype, 1.0 if tensor.dtype.is_floating_point else 1)

    def _compare(self, func: Any, args: Any, kwargs: Any) -> bool:
        known = self.known.compute(func, args, kwargs)
        if known is None and self.strict:
            raise UntraceableError("its forward pass compares tensors of unknown contents")
        return True if known is None else known

    def _gone(self, key: int) -> None:
        self._note(self._blocks.pop(key)[1], -1)

    def live(self) -> list[Block]:
        """The blocks that are there."""
        return [block for _, block in self._blocks.values()]

    def _note(self, block: Block, change: int) -> None:
        backward = torch._C._current_graph_task_id() != -1
        if backward and self.phase == "forward":
            self.phase = "optimizer"
            for kept in self.live():
                kept.kind = "activations" if kept.kind == "temporaries" else kept.kind
        self.events.append(Event(block, change, "backward" if backward else self.phase))


class SameBranches(TorchFunctionMode):
    """Sends calls that torch decides by the kind of a tensor the way they go for real ones, whose contents are finite.

    Args:
        known: is told what is finite.
    """

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self._known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.lstm, torch._VF.lstm) and _goes_to_onednn(args):
            return _lstm(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _FINITE and isinstance(out, FakeTensor):
            self._known.assume(out, _FINITE[func])
        return out


def _goes_to_onednn(args: tuple[Any, ...]) -> bool:
    x, hx = args[:2]
    if isinstance(hx, Tensor) or x.device.type != "cpu" or not torch._C._get_mkldnn_enabled():
        return False
    same_size = hx[0].shape[2] == hx[1].shape[2]
    return same_size and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0


def _lstm(
    x: Tensor,
    hx: Any,
    weights: Any,
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    both: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm` as ATen's mkldnn_rnn does it: one layer and direction after the other."""
    x = x.transpose(0, 1) if batch_first else x
    keeps = train and torch.is_grad_enabled()
    held = x = x.contiguous()  # ATen holds the first layer's input to the end
    ways, each = 1 + both, 4 if biases else 2
    states: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer in range(layers):
        x, outputs = x.contiguous(), []
        for way in range(ways):
            at = layer * ways + way
            w1, w2, *bias = weights[at * each : (at + 1) * each]
            b1, b2 = bias if biases else (x.new_zeros(w1.shape[0]), x.new_zeros(w2.shape[0]))
            probe_recurrent(x, w1, biases=biases, train=keeps)
            start = [state[at].contiguous() for state in hx]
            y, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(
                x, w1, w2, b1, b2, *start, way == 1, [], 2, start[0].shape[-1], layers, biases, both, batch_first, keeps
            )
            outputs.append(y)
            states[0].append(h)
            states[1].append(c)
        x = torch.cat(outputs, -1) if both else outputs[0]
        if dropout and train and layer < layers - 1:
            x = nn.functional.dropout(x, dropout)
    final = tuple(torch.stack(state) for state in states)
    del held
    return x.transpose(0, 1) if batch_first else x, final[0], final[1]

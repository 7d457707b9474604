"""Runs the frozen first blocks of a model once for each example and only the rest at every step.

Legend of shapes: B examples, T tokens, D features.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

_WINDOW = 256


class _ReachedError(Exception):
    """Ends a forward pass at the first trained block."""


class FrozenPrefix:
    """The blocks of a model before its first trained one.

    Args:
        model: runs its `blocks` in order and hands hidden states (B, T, D) from one to the next.
        blocks: its list of blocks.
        first_trained: number of the first trained block, at least 1.
    """

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, first_trained: int) -> None:
        self.model = model
        self.blocks = blocks
        self.first_trained = first_trained

    @torch.no_grad()
    def hidden(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B T D"]:
        """What the first trained block is handed, with dropout off."""
        found: list[Tensor] = []

        def catch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _ReachedError

        handle = self.blocks[self.first_trained].register_forward_pre_hook(catch, with_kwargs=True)
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            self.model(**inputs)
        except _ReachedError:
            return found[0]
        finally:
            handle.remove()
            for module in training:
                module.training = True
        raise ValueError(f"{type(self.model).__name__} ran without reaching block {self.first_trained}.")

    @contextmanager
    def injected(self, hidden: Float[Tensor, "B T D"]) -> Iterator[None]:
        """Inside the block, the frozen blocks are passed over and the last of them returns `hidden`."""
        for number in range(self.first_trained):
            is_last = number == self.first_trained - 1
            self.blocks[number].forward = _returns(hidden) if is_last else _passes_on
        try:
            yield
        finally:
            for number in range(self.first_trained):
                del self.blocks[number].forward


class PrefixCache:
    """Hidden states at the first trained block for each example of a set, computed when first asked for.

    Examples are computed in groups of similar lengths among neighbours in `order`, a whole group at once. So the padding
    and the shapes under which an example is computed, and with them the last bits, do not depend on which examples are
    asked for first, and a run that is taken up again sees what the one before it saw.

    Args:
        prefix: computes them.
        lengths: tokens of each example, (N,).
        inputs: gives the model's inputs for some examples, padded, with `attention_mask` (B, T).
        like: hidden states of any example, for D and the dtype.
        file: where they are kept if they would take more than `memory_limit`; deleted with the cache's folder.
        order: in which examples will mostly be asked for, (N,), so that few are computed before their time; None is as
            they stand.
        memory_limit: bytes.
        group_tokens: most tokens of a group, padding counted in, unless one example has more.

    Attributes:
        num_bytes: of the hidden states of all examples, in memory or in `file`: tokens x D x size of a number.

    Raises:
        ValueError: the disk has no room for `file`.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        lengths: Int[Tensor, "N"],
        inputs: Callable[[Sequence[int]], Mapping[str, Tensor]],
        *,
        like: Float[Tensor, "B T D"],
        file: Path,
        order: Int[Tensor, "N"] | None = None,
        memory_limit: int = 1 << 28,
        group_tokens: int = 1024,
    ) -> None:
        self.prefix = prefix
        self._inputs = inputs
        self._starts = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        self._groups = _groups(lengths, torch.arange(len(lengths)) if order is None else order, group_tokens)
        self._group_of = torch.empty(len(lengths), dtype=torch.int64)
        for number, group in enumerate(self._groups):
            self._group_of[group] = number
        self._filled = torch.zeros(len(self._groups), dtype=torch.bool)
        shape = (int(self._starts[-1]), like.shape[-1])
        self.num_bytes = shape[0] * shape[1] * like.element_size()
        if self.num_bytes <= memory_limit:
            self._rows = torch.empty(shape, dtype=like.dtype)
        else:
            self._rows = torch.from_numpy(_mapped(file, self.num_bytes)).view(like.dtype).view(shape)

    def rows(self, indices: Sequence[int], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Hidden states of examples, padded like their batch; padding is zero.

        Args:
            indices: of the examples.
            mask: the `attention_mask` of their batch.
        """
        which = torch.as_tensor(indices)
        for group in self._group_of[which].unique().tolist():
            if not self._filled[group]:
                self._fill(group)
        result = torch.zeros(*mask.shape, self._rows.shape[1], dtype=self._rows.dtype)
        result[mask.bool().cpu()] = self._rows[self._positions(which)]
        return result.to(mask.device)

    def _fill(self, group: int) -> None:
        which = self._groups[group]
        inputs = self._inputs(which.tolist())
        hidden = self.prefix.hidden(inputs)
        self._rows[self._positions(which)] = hidden[inputs["attention_mask"].bool()].to(self._rows)
        self._filled[group] = True

    def _positions(self, which: Int[Tensor, "B"]) -> Int[Tensor, "P"]:
        """The rows of examples, one example behind the other."""
        counts = self._starts[which + 1] - self._starts[which]
        ends = counts.cumsum(0)
        shift = (self._starts[which] - ends + counts).repeat_interleave(counts)
        return shift + torch.arange(int(counts.sum()))


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of modules of one class in a model: its blocks, with their name.

    Raises:
        ValueError: there is no such list.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks to take the last ones of. Give `--trainable` a regular "
            "expression of parameter names instead."
        )
    return max(lists, key=lambda entry: len(entry[1]))


def modules_before(model: nn.Module, block: nn.Module, inputs: Mapping[str, Tensor]) -> set[nn.Module]:
    """The modules that run before `block` does in a forward pass of `inputs`."""
    ran: set[nn.Module] = set()
    reached = False

    def note(module: nn.Module, args: tuple) -> None:
        nonlocal reached
        reached = reached or module is block
        if not reached:
            ran.add(module)

    leaves = [m for m in model.modules() if m is block or next(m.children(), None) is None]
    handles = [module.register_forward_pre_hook(note) for module in leaves]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _groups(lengths: Int[Tensor, "N"], order: Int[Tensor, "N"], most_tokens: int) -> list[Int[Tensor, "G"]]:
    """Examples that are asked for at about the same time and are about as long, at most `most_tokens` cells together."""
    groups = []
    for window in order.split(_WINDOW):
        by_length = window[lengths[window].argsort(stable=True)]
        end = len(by_length)
        while end:
            count = min(end, max(1, most_tokens // max(1, int(lengths[by_length[end - 1]]))))
            groups.append(by_length[end - count : end])
            end -= count
    return groups


def _mapped(file: Path, num_bytes: int) -> NDArray[np.uint8]:
    """A new file of that many bytes as memory.

    Its room on the disk is taken at once: a write into a mapped file for which there is no room kills the process.
    """
    try:
        with file.open("wb") as opened:
            if sys.platform in ("darwin", "win32"):
                if shutil.disk_usage(file.parent).free < num_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                opened.truncate(num_bytes)
            else:
                os.posix_fallocate(opened.fileno(), 0, num_bytes)
    except OSError as error:
        file.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"the outputs of the frozen blocks take {num_bytes / 2**30:,.2f} GiB, for which there is no room in "
            f"{file.parent} ({error.strerror}; {shutil.disk_usage(file.parent).free / 2**30:,.2f} GiB are free). Free "
            "some, give `--out` on another disk, or train all blocks (`--trainable default`), which keeps nothing."
        ) from None
    return np.memmap(file, np.uint8, "r+", shape=(num_bytes,))


def _passes_on(*args: Any, **kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _returns(hidden: Tensor) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: hidden

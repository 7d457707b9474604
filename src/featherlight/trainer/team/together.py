"""Forward-only steps of several processes over torch.distributed: one small collective a step, and the same bits on all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from featherlight.objective import NonFiniteLossError
from featherlight.optim.zeroth_order import Part, Settled, Slot, StepRecord, ZerothOrderSGD, mean_loss
from featherlight.trainer.team.agreement import Pace, digest_of, require_agreement
from featherlight.trainer.team.message import HEAD_BYTES, Measured


class Group(Protocol):
    """What is asked of the processes."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """What each process handed in, by rank."""
        ...

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The same for tensors of one shape."""
        ...


class GroupGather:
    """A `Gather` over a process group of torch: an all-gather of a few bytes for each process and direction.

    Args:
        group: the processes; all of them take part in every step.
        optimizer: whose steps they measure together.
        pace: clock of this process.
        epoch: of their membership.
        draws: examples' batches that earlier steps took; each process of a step takes one.
        digest_every: steps between comparisons of the weights; each takes a hash of them.
        device: through which the bytes go, so NCCL carries those of a CUDA device and gloo those of a CPU.
    """

    def __init__(
        self,
        group: Group,
        optimizer: ZerothOrderSGD,
        *,
        pace: Pace,
        epoch: int,
        draws: int,
        digest_every: int,
        device: torch.device,
    ) -> None:
        self.pace = pace
        self._group = group
        self._optimizer = optimizer
        self._epoch = epoch
        self._draws = draws
        self._digest_every = digest_every
        self._device = device
        self._bytes: int | None = None

    @property
    def slot(self) -> Slot:
        """That of this process's rank."""
        return Slot(number=self._group.rank, count=self._group.size)

    def draw(self, step: int) -> int:
        """The number of the batch that this process takes in the coming step."""
        return self._draws + self._group.rank

    def settle(self, part: Part, record_of: Callable[[Sequence[Part | None]], StepRecord]) -> Settled:
        """The step of all parts; raises NonFiniteLossError and ValueError on all processes alike."""
        steps = self._optimizer.steps_done
        due = steps > 0 and steps % self._digest_every == 0
        everyone = self._exchange(Measured(part=part, digest=digest_of(self._optimizer) if due else None))
        if any(one.failed for one in everyone):
            self._raise(None)
        if due:
            self._compare([one.digest or b"" for one in everyone], steps)
        self.pace.hear(signalled=any(one.signalled for one in everyone), seconds=everyone[0].seconds)
        parts = [one.part for one in everyone]
        record = replace(record_of(parts), world=self._group.size, epoch=self._epoch)
        self._draws += self._group.size
        return Settled(record, mean_loss(parts))

    def fail(self, error: NonFiniteLossError) -> None:
        """Raises the error on all processes."""
        self._exchange(Measured(failed=True))
        self._raise(error)

    def finish(self, kind: str) -> None:
        """Compares the weights behind the last step; raises ValueError on all processes where they differ."""
        self._compare(self._group.gather(digest_of(self._optimizer)), self._optimizer.steps_done)

    def close(self) -> None:
        """The group itself is closed by who opened it."""

    def _compare(self, digests: Sequence[bytes], steps: int) -> None:
        require_agreement(dict(enumerate(digests)), steps, self._digest_every)

    def _exchange(self, own: Measured) -> list[Measured]:
        data = replace(own, seconds=self.pace.seconds, signalled=self.pace.signalled).encode()
        if self._bytes is None:
            self._bytes = self._first_length(None if own.failed else len(data))
        if own.failed:
            data = data.ljust(self._bytes, b"\0")
        self._require_lengths([len(data), self._bytes])
        sent = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(self._device)
        return [Measured.decode(one.cpu().numpy().tobytes()) for one in self._group.gather_tensors(sent)]

    def _first_length(self, own: int | None) -> int:
        lengths = [one for one in self._group.gather(own) if one is not None]
        self._require_lengths(lengths)
        return max(lengths, default=HEAD_BYTES)

    def _require_lengths(self, lengths: Sequence[int]) -> None:
        if len(set(lengths)) > 1:
            counts = ", ".join(str((length - HEAD_BYTES) // 2) for length in lengths)
            raise ValueError(
                f"the processes measured different numbers of directions ({counts}). All batches must be of one size, and all "
                "processes of one config."
            )

    def _raise(self, error: NonFiniteLossError | None) -> NoReturn:
        raise next(one for one in self._group.gather(error) if one is not None)

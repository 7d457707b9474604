"""Several processes that train one model, as `torchrun` starts them: who they are, how they agree, what they share.

With gradients, each holds the whole model ("ddp") or a part of it ("fsdp") and computes its part of every batch. The
gradient is that of the whole batch. Forward-only, each holds the whole model and measures a batch of its own (`team/`).
Batch statistics of BatchNorm are those of a process's own rows; the running ones of process 0 are kept.
"""

import gc
import os
import socket
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer

from featherlight.functional import QuantizedTensor
from featherlight.meter import Meter
from featherlight.objective import NonFiniteLossError, Objective, ShareableObjective, Team
from featherlight.optim import AGZO, MeZO, RecordedOptimizer, ZerothOrderSGD
from featherlight.trainer.digests import weights_digest
from featherlight.trainer.experiment import Experiment
from featherlight.trainer.parallel import PARALLEL, Parallel
from featherlight.trainer.run_directory import RunDirectory
from featherlight.trainer.team import GroupGather, Meeting, Pace

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(hours=1)  # process 0 draws the report and writes the model while the others wait
_NOTHING = torch.zeros(1)  # what a barrier sums; lives on, so that no thread of the group frees it at exit
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run. `World()` is a single one, and costs nothing.

    Args:
        rank: the number of this process, from 0; process 0 writes all files and talks to people.
        size: how many there are.
        local_rank: the number of this process on its machine; it trains on the CUDA device of that number.
        parallel: how a model is shared by them.
        meeting: where a team meets that this process is part of, though it runs for itself; None for no team.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    parallel: Parallel = PARALLEL["ddp"]
    meeting: Meeting | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def broadcast(self, value: Value) -> Value:
        """What process 0 handed in, on all."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """What each process handed in, on all, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """What each process handed in, of one shape, on all, by rank; on the tensor's device."""
        everyone = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(everyone, tensor)
        return everyone

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of one tensor of each process, on all."""
        total = tensor.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def agree(self, signalled: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process was signalled, and the seconds of process 0; one small message a step."""
        both = torch.tensor([float(signalled), seconds if self.is_first else 0.0], dtype=torch.float64)
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return bool(both[0]), float(both[1])

    def all_finite(self, error: NonFiniteLossError | None) -> None:
        """Raises NonFiniteLossError on all processes if one of them has it."""
        failed = self.sum(torch.tensor([float(error is not None)]))
        if failed.item():
            raise next(one for one in self.gather(error) if one is not None)

    def all_refused(self, error: OSError | None) -> None:
        """Raises on all processes what the system refused to process 0, if it did."""
        if (told := self.broadcast(error)) is not None:
            raise told

    def scratch(self, directory: RunDirectory) -> Path:
        """A folder of this process for temporary files, removed when the run stops."""
        if self.is_first:
            return directory.scratch
        own = directory.scratch / f"process-{self.rank}"
        own.mkdir(exist_ok=True)
        return own

    def metrics(self, directory: RunDirectory) -> Path:
        """The run's metrics for process 0; for another, a file of its own that nobody reads."""
        return directory.metrics if self.is_first else self.scratch(directory) / directory.metrics.name

    @contextmanager
    def share(self, model: nn.Module, *, forward_only: bool = False) -> Iterator[Team | None]:
        """Within the block, processes share the steps of a model; after it, each has the whole trained model.

        Args:
            model: of this process.
            forward_only: whether they measure apart (`enlist`), so that no objective is shared.

        Yields:
            What objectives are shared by; None if there is nothing to share.
        """
        if self.size == 1:
            yield None
            return
        tensors = (*model.parameters(), *model.buffers())
        self.spread(one for one in tensors if not isinstance(one, QuantizedTensor))
        if forward_only:
            yield None
            return
        with self.parallel(model, self) as team:
            yield team
        self.spread(model.buffers())

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Gives all processes the values that process 0 has in some tensors."""
        with torch.no_grad():
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, src=0)
                tensor.copy_(dense)

    def check(self, experiment: Experiment) -> None:
        """Looks whether the processes can share a run before it leaves a trace.

        Raises:
            ValueError: the method cannot be shared, or not so; weights are quantized, two processes are on one device, or they
                start from other weights.
        """
        if self.meeting is not None:
            _check_team(experiment)
        if self.size == 1:
            return
        if experiment.replay is not None:
            self._check_forward_only(experiment)
        elif any(isinstance(parameter, QuantizedTensor) for parameter in experiment.model.parameters()):
            raise ValueError(
                f"{self.size} processes cannot share a model whose weights are held in 8 or 4 bits, since they are sent around "
                "as floats. Train in one process, without torchrun, or leave `base` float."
            )
        self._check_device(experiment.device)
        self._check_weights(experiment.model)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raises ValueError if several processes cannot share the steps of an optimizer."""
        if self.size > 1 and isinstance(optimizer, (AGZO, MeZO, RecordedOptimizer)):
            if isinstance(optimizer, ZerothOrderSGD):
                return
            if dist.is_initialized():
                dist.barrier()  # none is told before all are here, since the first to leave clears the directory
            raise ValueError(
                f"the forward-only method {type(optimizer).__name__} runs in one process, as what it keeps from step to step is "
                "not made of whole numbers that processes could share. Train it without torchrun, or use `--method zo` or fzoo, "
                "or one with gradients, such as adamw."
            )

    def enlist(
        self, optimizer: Optimizer, *, seconds: float, epoch: int, draws: int, digest_every: int
    ) -> GroupGather | None:
        """Lets the processes measure the steps of a forward-only optimizer together; None if there is a single one.

        Args:
            optimizer: of this process, at the same step as those of the others.
            seconds: on the clock.
            epoch: of the membership.
            draws: batches that earlier steps took.
            digest_every: steps between comparisons of the weights.
        """
        if self.size == 1 or not isinstance(optimizer, ZerothOrderSGD):
            return None
        device = optimizer.targets[0].parameter.device
        optimizer.gather = GroupGather(
            self,
            optimizer,
            pace=Pace(seconds),
            epoch=epoch,
            draws=draws,
            digest_every=digest_every,
            device=device,
        )
        return optimizer.gather

    def _check_forward_only(self, experiment: Experiment) -> None:
        if self.parallel is PARALLEL["fsdp"]:
            raise ValueError(
                f"`--parallel fsdp` spreads a model whose gradients are summed, and {experiment.method} has none: each "
                "process holds the whole model, and they send each other a few bytes a step. Drop `--parallel`."
            )
        self.check_optimizer(experiment.stages[0].optimizer(None, Meter()))

    @contextmanager
    def open(self, path: Path, asked: str | None) -> Iterator[RunDirectory]:
        """`RunDirectory.open`, which process 0 alone does; the others see what it found, and wait at the end for it.

        The directory must be on a file system that all processes see.
        """
        if self.is_first:
            with RunDirectory.open(path, asked) as directory:
                self.broadcast(directory.resumed)
                yield directory
                self.barrier()
        else:
            directory = RunDirectory(path=path, resumed=self.broadcast(False))
            yield directory
            self.barrier()

    def barrier(self) -> None:
        """Returns when all processes are there."""
        if self.size > 1:
            dist.all_reduce(_NOTHING)

    def _check_device(self, device: torch.device) -> None:
        if device.type == "mps":
            raise ValueError(
                f"{self.size} processes cannot share the one MPS device, which has no way to sum gradients over them. Give "
                "`--device cpu`, or run without torchrun."
            )
        if device.type == "cpu":
            return
        places = self.gather(f"{device} of {socket.gethostname()}")
        twice = sorted({place for place in places if places.count(place) > 1})
        if twice:
            raise ValueError(
                f"several of the {self.size} processes are on {', '.join(twice)}. Start as many as a machine has CUDA devices "
                "with `--device cuda` (without a number, each takes its own), or give `--device cpu`."
            )

    def _check_weights(self, model: nn.Module) -> None:
        digests = self.gather(weights_digest(dict([*model.named_parameters(), *model.named_buffers()])))
        other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise ValueError(
                f"the processes start from different weights (process {other[0]} has {digests[other[0]][:12]}..., process 0 "
                f"{digests[0][:12]}...), so they would not train one model. Make the weights from the config's `seed` alone."
            )


def _check_team(experiment: Experiment) -> None:
    replay = experiment.replay
    if replay is None or not isinstance(experiment.stages[0].optimizer(None, Meter()), ZerothOrderSGD):
        raise ValueError(
            f"`--team` shares whole numbers, of which the steps of {experiment.method or 'this run'} are not made. Use `--method "
            "zo` or fzoo, or drop `--team`."
        )


def shared(objective: Objective, team: Team | None) -> Objective:
    """The objective as processes compute it together.

    Raises:
        ValueError: the objective cannot be shared.
    """
    if team is None:
        return objective
    if not isinstance(objective, ShareableObjective):
        raise ValueError(
            f"the objective {type(objective).__name__} cannot be shared by {team.size} processes: it has no `share(team)`. "
            "Train in one process, without torchrun, or build it on BatchObjective."
        )
    return objective.share(team)


@contextmanager
def joined(parallel: str | None = None) -> Iterator[World]:
    """Joins the processes that `torchrun` started, and leaves them at the end, also after an error.

    Sums of CUDA tensors go through NCCL, all else through gloo. Where one process fails, only the first that does so
    raises its error; the others end by SystemExit, so that people read one sentence.

    Args:
        parallel: "ddp" or "fsdp"; None is "ddp" where there are several processes.

    Raises:
        ValueError: there is no such way, or it was asked for outside of `torchrun`; or a process was lost.
    """
    started = all(name in os.environ for name in _ENVIRONMENT)
    _check_way(parallel, started=started)
    if not started or os.environ["WORLD_SIZE"] == "1":
        yield World()
        return
    with _process_group() as (store, rank, size):
        how = PARALLEL[parallel or "ddp"]
        world = World(rank=rank, size=size, local_rank=int(os.environ["LOCAL_RANK"]), parallel=how)
        try:
            yield world
            world.barrier()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            if not _is_first_to_fail(store):
                raise SystemExit(1) from None
            if _is_lost(error):
                raise ValueError(
                    f"another process of this run was lost ({shorten(str(error), 160)}). What was complete is still on disk, "
                    "and the same command goes on from the last save."
                ) from None
            raise


def _check_way(parallel: str | None, *, started: bool) -> None:
    if parallel is not None and parallel not in PARALLEL:
        raise ValueError(f"there is no `--parallel {parallel}`. Name one of {', '.join(PARALLEL)}.")
    if parallel is not None and not started:
        raise ValueError(
            f"`--parallel {parallel}` needs several processes, and this is a single one. Start it by `torchrun "
            "--nproc-per-node N --no-python featherlight run ...`, or drop it."
        )


@contextmanager
def _process_group() -> Iterator[tuple[Store, int, int]]:
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    found, rank, size = next(iter(rendezvous("env://")))
    store = PrefixStore(_attempt(), found)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    try:
        yield store, rank, size
    finally:
        dist.destroy_process_group()
        gc.collect()  # the group's threads end with the last reference to it; at the interpreter's exit they could abort it


def _attempt() -> str:
    """What sets the keys of this start apart from those of earlier ones, which torchrun's agent on one machine keeps."""
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}" if alone else "attempt"


def _is_first_to_fail(store: Store) -> bool:
    try:
        return store.add("featherlight/failed", 1) == 1
    except RuntimeError:
        return True


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )

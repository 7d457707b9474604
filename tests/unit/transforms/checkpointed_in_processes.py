"""Steps of a network in DistributedDataParallel, plain and with activation checkpointing; each process checks that they agree.

python -m tests.unit.transforms.checkpointed_in_processes FOLDER RANK PROCESSES
"""

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import segments


def gradients(model: nn.Module, rank: int) -> list[torch.Tensor]:
    """After two steps on rows of this process, dropout included."""
    parallel = DistributedDataParallel(model, bucket_cap_mb=1)
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(rank)
    for _ in range(2):
        parallel(torch.randn(4, 16, generator=generator)).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def require_same_steps(folder: str, rank: int, processes: int) -> None:
    """The part of one process; `folder` is where they meet."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    torch.manual_seed(0)
    layers = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2)
    plain = nn.Sequential(*(copy.deepcopy(nn.Sequential(*layers)) for _ in range(6)))
    plain[4][0].weight = plain[1][0].weight  # pyright: ignore[reportIndexIssue]
    mine = copy.deepcopy(plain)
    ActivationCheckpoint([str(place) for place in range(6)], segments(6, 3)).prepare(mine)
    ours, theirs = gradients(mine, rank), gradients(plain, rank)
    assert len(ours) == len(theirs) == len(list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    require_same_steps(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

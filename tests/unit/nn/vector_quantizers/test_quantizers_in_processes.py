"""Two processes learn what one learns from the whole batch."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Cosine,
    EmaUpdate,
    GradientUpdate,
    KMeans,
    ReplaceDead,
    VectorQuantizer,
)


def _quantizers() -> dict[str, VectorQuantizer]:
    replace = ReplaceDead(threshold=2.0)
    return {
        "start": VectorQuantizer(Codebook(16, 6, init=KMeans(batches=4)), channel_axis=1),
        "replace": VectorQuantizer(Codebook(40, 6, init=None), learn=EmaUpdate(replace=replace), channel_axis=1),
        "heads": VectorQuantizer(Codebook(8, 3, num_books=2), heads=2, assign=Cosine(), channel_axis=1),
        "shared": VectorQuantizer(
            Codebook(8, 3, learnable=True), heads=2, learn=GradientUpdate(replace=replace), channel_axis=1
        ),
    }


def _trained(rank: int, processes: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """States after training on this process's part of each batch, and gradients as DistributedDataParallel averages them."""
    states, gradients = {}, {}
    torch.manual_seed(0)
    for name, layer in _quantizers().items():
        encoder = nn.Conv2d(2, 6, 1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            x = torch.randn(8, 2, 5, 5, generator=generator)
            mask = torch.rand(8, 5, 5, generator=generator) > 0.3
            part = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
            encoder.zero_grad()
            layer(encoder(x[part]), mask=mask[part]).aux_loss.backward()
        states[name] = layer.state_dict()
        gradients[name] = encoder.weight.grad
        if processes > 1:
            dist.all_reduce(gradients[name])
            gradients[name] /= processes
    return states, gradients


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_trained(rank, 2), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    spawn(_process, (str(tmp_path),), nprocs=2)
    one = _trained(0, 1)
    both: list[Any] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
    torch.testing.assert_close(both[0][0], one[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[0][1], one[1], rtol=1e-4, atol=1e-6)

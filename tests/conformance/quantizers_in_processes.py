"""Training steps of every quantizer on a share of the batch; run once in each of several processes, or in one.

python -m tests.conformance.quantizers_in_processes FOLDER RANK PROCESSES
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from featherlight.nn.vector_quantizers import Codebook, EmaUpdate, GradientUpdate, ReplaceDead, VectorQuantizer
from tests.conformance.quantizer_table import DIM, TABLE, Row, make, some_mask, vectors, without_kernels

STEPS = 4
BATCH = (4, 6)
_REPLACE = ReplaceDead(threshold=2.0)
ROWS = {name: row for name, row in TABLE.items() if row.statistics} | {
    "more codes than rows": Row(
        kind=VectorQuantizer,
        make=lambda **o: VectorQuantizer(Codebook(40, DIM, init=None), learn=EmaUpdate(replace=_REPLACE), **o),
    ),
    "heads that share codes which are replaced": Row(
        kind=VectorQuantizer,
        make=lambda **o: VectorQuantizer(
            Codebook(8, DIM // 2, learnable=True), heads=2, learn=GradientUpdate(replace=_REPLACE), **o
        ),
    ),
}


def train(row: Row, rank: int, processes: int) -> dict[str, Any]:
    """Some steps in float64 with plain gradient descent on the mean of the processes; what became of the quantizer.

    The loss is the mean over the batch of the values weighed, plus the auxiliary loss, as a trainer has it.
    """
    layer = make(row).double()
    share = slice(rank * BATCH[0] // processes, (rank + 1) * BATCH[0] // processes)
    indices = []
    for step in range(STEPS):
        x = vectors(*BATCH, DIM, seed=step).double()[share]
        mask = some_mask(*BATCH, seed=step)[share]
        with without_kernels():
            result = layer(x, mask=mask)
        weights = vectors(*BATCH, DIM, seed=9).double()[share]
        loss = (result.values * weights).sum() / (BATCH[0] / processes) + result.aux_loss
        layer.zero_grad()
        if loss.requires_grad:
            with without_kernels():
                loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if processes > 1:
                    dist.all_reduce(grad)
                parameter -= 0.1 * grad / processes
        indices.append(result.codes.indices)
    return {"state": layer.state_dict(), "indices": indices}


def main(folder: str, rank: str, processes: str) -> None:
    """Leaves what became of each quantizer in FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=int(processes))
    torch.save({name: train(row, int(rank), int(processes)) for name, row in ROWS.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

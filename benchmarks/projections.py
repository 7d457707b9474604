"""The projection of rows onto L1 balls beside a loop over the rows: time of a call, one thread, both sides in turn.

    python -m benchmarks.projections

The loop projects each row by the sort of Duchi et al. 2008, in torch as well, so that what differs is the batch alone.
"""

import torch
from torch import Tensor

from benchmarks.common import Row, in_turn, ratio, spread, target, write_results
from featherlight.solvers import project_linf_rows

SIZES = (100, 500, 1000)
ROUNDS = 15


def project_row(row: Tensor) -> Tensor:
    """The nearest vector whose absolute values sum to 1 at most."""
    sizes = row.abs()
    if sizes.sum() <= 1:
        return row
    ordered = sizes.sort(descending=True).values
    surplus = ordered.cumsum(0) - 1
    counts = torch.arange(1, len(row) + 1)
    last = int((ordered * counts > surplus).sum()) - 1
    return row.sign() * (sizes - surplus[last] / (last + 1)).clamp_min(0)


def measure(size: int) -> Row:
    """Both sides on a matrix of which all rows are too long."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project_linf_rows(a), torch.stack([project_row(row) for row in a]))
    sides = {
        "batched": lambda: project_linf_rows(a),
        "loop": lambda: torch.stack([project_row(row) for row in a]),
    }
    taken = {name: [1e3 * one for one in seconds] for name, seconds in in_turn(sides, rounds=ROUNDS).items()}
    row: Row = {"size": size, "ratio": ratio(taken["loop"], taken["batched"])}
    return row | {f"{name}_ms": spread(each) for name, each in taken.items()}


def main() -> None:
    """Measures all sizes and writes the table."""
    torch.set_num_threads(1)
    rows = [measure(size) for size in SIZES]
    for row in rows:
        print(f"{row['size']:5}  batched {row['batched_ms']['median']:.2f} ms  loop {row['loop_ms']['median']:.2f} ms")
    asked = [row for row in rows if row["size"] >= 500]
    goals = [
        target(f"rows of {r['size']}: faster than a loop", r["ratio"]["median"], ">=", 4.0, "times") for r in asked
    ]
    write_results("projections", rows, goals)


if __name__ == "__main__":
    main()

"""What pruning does to speed on this machine: zeros in dense matrices, sparse matrices, two in four, channels removed.

    python -m benchmarks.pruning_speed --short     fewer rounds, a minute
    python -m benchmarks.pruning_speed             minutes

A matrix with zeros in it takes as long as one without. Sparse matrices (CSR) are multiplied by torch's own kernel, which has to
beat dense products that use every lane of the processor. Two in four are multiplied by the units that GPUs have for it, where
there is such a GPU; elsewhere they stay dense matrices with zeros. Channels that are removed leave smaller dense matrices, which
are faster anywhere. All sides of a row are run in turn, in one thread, without gradients, and timed by the clock of the process;
`speedup` is the time of the dense side over that of the other, round by round.
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, Row, in_turn, ratio, spread, write_results
from featherlight.nn.models import Projection, ResNet
from featherlight.transforms import Global, NOfM, prune_channels, prune_weights, use_sparse_kernels

SPARSITIES = (0.5, 0.9, 0.95, 0.98, 0.99)
MATRICES = {"784 -> 300": (784, 300), "1024 -> 1024": (1024, 1024)}
BATCHES = (1, 128)
CHANNELS = (0.25, 0.5, 0.75)


def compressed(weight: Tensor) -> Tensor:
    """The sparse matrix of a weight."""
    return weight.detach().to_sparse_csr()


def linear_rows(rounds: int) -> list[Row]:
    """One layer: dense, the same with zeros, as a sparse matrix, and two in four."""
    rows = []
    for name, (inputs, outputs) in MATRICES.items():
        for batch in BATCHES:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, inputs, generator=generator)
            layer = nn.Linear(inputs, outputs, bias=False)
            with torch.no_grad():
                layer.weight.normal_(generator=generator)
            sides: dict[str, Callable[[], object]] = {"dense": lambda x=x, w=layer.weight: nn.functional.linear(x, w)}
            halved = copy.deepcopy(layer)
            prune_weights(halved, NOfM(2, 4))
            sides["2:4, dense with zeros"] = lambda x=x, w=halved.weight: nn.functional.linear(x, w)
            for sparsity in SPARSITIES:
                pruned = copy.deepcopy(layer)
                prune_weights(pruned, Global(sparsity))
                sparse, columns = compressed(pruned.weight), x.t().contiguous()
                assert torch.allclose((sparse @ columns).t(), pruned(x), atol=1e-3)
                sides[f"{sparsity:.0%} zeros, dense"] = lambda x=x, w=pruned.weight: nn.functional.linear(x, w)
                sides[f"{sparsity:.0%} zeros, sparse"] = lambda s=sparse, c=columns: s @ c
            rows += measured(sides, rounds, {"what": "linear", "size": name, "batch": batch})
    return rows


def channel_rows(rounds: int) -> list[Row]:
    """A residual network with channels removed, and with as large a share of its weights set to zero."""
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = ResNet(10, widths=(16, 32, 64), blocks=(1, 1, 1), shortcut=Projection()).eval()
    sides: dict[str, Callable[[], object]] = {"dense": lambda: model(images)}
    parameters = {"dense": sum(one.numel() for one in model.parameters())}
    for share in CHANNELS:
        narrow, zeros = copy.deepcopy(model), copy.deepcopy(model)
        found = prune_channels(narrow, images[:1], share, keep=("head",))
        prune_weights(zeros, Global(1 - found.parameters[1] / found.parameters[0]))
        sides[f"{share:.0%} of channels removed"] = lambda narrow=narrow: narrow(images)
        sides[f"as many zeros, dense ({share:.0%})"] = lambda zeros=zeros: zeros(images)
        parameters[f"{share:.0%} of channels removed"] = found.parameters[1]
    rows = measured(sides, rounds, {"what": "resnet8", "size": "32x32", "batch": 16})
    return [{**row, "parameters": parameters.get(row["side"])} for row in rows]


def gpu_rows(rounds: int) -> list[Row]:
    """Two in four on a GPU that has units for it; a row that says so where there is none."""
    model = nn.Linear(4096, 4096, bias=False)
    prune_weights(model, NOfM(2, 4))
    try:
        model = model.half().to("cuda" if torch.cuda.is_available() else "cpu")
        plain = copy.deepcopy(model)
        use_sparse_kernels(model)
    except ValueError as error:
        return [{"what": "2:4 on a GPU", "not measured": str(error)}]
    x = torch.randn(1024, 4096, device="cuda", dtype=torch.float16)

    def waiting(layer: nn.Module) -> Callable[[], object]:
        return lambda: (layer(x), torch.cuda.synchronize())

    return measured({"dense": waiting(plain), "2:4": waiting(model)}, rounds, {"what": "2:4 on a GPU", "batch": 1024})


def measured(sides: dict[str, Callable[[], object]], rounds: int, about: Row) -> list[Row]:
    """A row for each side, with its time and how many times faster than the dense one it is."""
    with torch.inference_mode():
        seconds = in_turn(sides, rounds=rounds, warmup=3, clock=time.process_time)
    rows = []
    for side, times in seconds.items():
        rows.append({**about, "side": side, "seconds": spread(times), "speedup": ratio(seconds["dense"], times)})
        print(
            f"{about['what']:8} {about.get('size', ''):13} batch {about['batch']:4} {side:28} "
            f"{1e6 * rows[-1]['seconds']['median']:9.0f} us  {rows[-1]['speedup']['median']:6.2f}x"
        )
    return rows


def draw(rows: list[Row]) -> None:
    """Speed against the share of zeros, for sparse matrices and for channels removed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, batch), color in zip(((n, b) for n in MATRICES for b in BATCHES), _colors(), strict=False):
        of = {row["side"]: row for row in rows if (row.get("size"), row.get("batch")) == (name, batch)}
        ys = [of[f"{one:.0%} zeros, sparse"]["speedup"]["median"] for one in SPARSITIES]
        left.plot([f"{one:.0%}" for one in SPARSITIES], ys, "o-", color=color, label=f"{name}, batch {batch}")
    left.axhline(1, color="#888888", linewidth=0.8)
    left.set_yscale("log")
    left.set_title("sparse matrices")
    left.set_xlabel("zeros")
    left.set_ylabel("times faster than dense")
    left.legend(fontsize=7)
    of = [row for row in rows if row["what"] == "resnet8" and row["side"] != "dense"]
    right.barh([row["side"] for row in of], [row["speedup"]["median"] for row in of], color="#0072b2")
    right.axvline(1, color="#888888", linewidth=0.8)
    right.set_title("ResNet-8, 32x32, batch 16")
    right.set_xlabel("times faster than dense")
    figure.savefig(RESULTS / "pruning_speed.svg")


def _colors() -> tuple[str, ...]:
    return ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")


def main() -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    arguments: Any = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 11 if arguments.short else 60
    rows = [*linear_rows(rounds), *channel_rows(rounds), *gpu_rows(rounds)]
    write_results("pruning_speed", rows, [])
    draw(rows)


if __name__ == "__main__":
    main()

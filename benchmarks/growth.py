"""The cost of growing: time and memory of a training step against width, depth and batch, on one picture.

    python -m benchmarks.growth --short    three sizes of each
    python -m benchmarks.growth            five

A small GPT and a stack of convolutions, AdamW, one thread. Each size is doubled with the others at their middle. Seconds are of
the process, the median of steps after the first two; memory is the profiler's peak of tensors above what is there before them,
and the planner's prediction of it, which runs nothing. Slopes are of a line through the logarithms: 1 is in proportion.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.common import RESULTS, Row, spread, target, write_results
from featherlight.meter import allocation_peak
from featherlight.nn.models import BlockShape, Gpt
from featherlight.objective import BatchObjective
from featherlight.planner.memory import predict_step

Batch = dict[str, Tensor]
TOKENS, LENGTH = 256, 64
AXES = ("width", "depth", "batch")


def gpt(width: int, depth: int, batch: int) -> tuple[nn.Module, Batch]:
    """Heads of 16 features, sequences of 64 tokens."""
    shape = BlockShape(width=width, num_heads=width // 16, dropout=0.0)
    x = torch.randint(TOKENS, (batch, LENGTH + 1))
    return Gpt(TOKENS, context=LENGTH, shape=shape, num_blocks=depth), {
        "x": x[:, :-1].contiguous(),
        "y": x[:, 1:].contiguous(),
    }


def convolutions(width: int, depth: int, batch: int) -> tuple[nn.Module, Batch]:
    """Layers of 3x3 with norms on images of 32x32."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth):
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return net, {"x": torch.rand(batch, 3, 32, 32), "y": torch.randint(10, (batch,))}


NETS: Mapping[str, tuple[Callable[[int, int, int], tuple[nn.Module, Batch]], Mapping[str, Sequence[int]]]] = {
    "GPT": (gpt, {"width": (32, 64, 128, 256, 512), "depth": (1, 2, 4, 8, 16), "batch": (4, 8, 16, 32, 64)}),
    "convolutions": (
        convolutions,
        {"width": (8, 16, 32, 64, 128), "depth": (2, 4, 8, 16, 32), "batch": (4, 8, 16, 32, 64)},
    ),
}


def losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of each example."""
    found = model(batch["x"])
    each = nn.functional.cross_entropy(found.flatten(0, -2), batch["y"].flatten(), reduction="none")
    return each.reshape(len(batch["x"]), -1).mean(1)


def measure(net: str, sizes: Mapping[str, int]) -> Row:
    """Seconds and bytes of a step."""
    torch.manual_seed(0)
    model, batch = NETS[net][0](sizes["width"], sizes["depth"], sizes["batch"])
    predicted = predict_step(model, batch, lambda m, b: BatchObjective(m, b, losses), _adamw)
    optimizer = _adamw(model)
    with allocation_peak() as peak:
        for _ in range(2):
            optimizer.step(BatchObjective(model, batch, losses))  # pyright: ignore[reportArgumentType, reportCallIssue]
    seconds = []
    while len(seconds) < 3 or (sum(seconds) < 1.0 and len(seconds) < 30):
        began = time.process_time()
        optimizer.step(BatchObjective(model, batch, losses))  # pyright: ignore[reportArgumentType, reportCallIssue]
        seconds.append(time.process_time() - began)
    weights = sum(p.numel() for p in model.parameters())
    return {"net": net, **sizes, "parameters": weights, "seconds": spread(seconds)} | {
        "bytes": peak.bytes,
        "predicted_bytes": predicted.above_start,
    }


def _adamw(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-4, fused=True)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Of the line through the logarithms of the upper three sizes, where overheads count least."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), 1)[0])


def of_axis(rows: Sequence[Row], net: str, axis: str) -> list[Row]:
    """The rows in which the other sizes are at their middle."""
    middle = {name: values[len(values) // 2] for name, values in NETS[net][1].items() if name != axis}
    found = [row for row in rows if row["net"] == net and all(row[name] == size for name, size in middle.items())]
    return sorted(found, key=lambda row: row[axis])


def picture(rows: Sequence[Row], path: Path) -> None:
    """A row of panels for time and one for memory, a column for each size, a colour for each net."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(AXES), figsize=(10, 6), sharey="row", squeeze=False)
    for column, axis in enumerate(AXES):
        for number, net in enumerate(NETS):
            found = of_axis(rows, net, axis)
            sizes = [row[axis] for row in found]
            seconds, taken = [row["seconds"]["median"] for row in found], [row["bytes"] / 1e6 for row in found]
            axes[0, column].loglog(
                sizes, seconds, "o-", color=f"C{number}", label=f"{net}, slope {slope(sizes, seconds):.2f}"
            )
            axes[1, column].loglog(
                sizes, taken, "o", color=f"C{number}", label=f"{net}, slope {slope(sizes, taken):.2f}"
            )
            predicted = [row["predicted_bytes"] / 1e6 for row in found]
            axes[1, column].loglog(sizes, predicted, "-", color=f"C{number}", alpha=0.6)
        for panel in axes[:, column]:
            panel.set_xlabel(axis)
            panel.set_xscale("log", base=2)
            panel.legend(fontsize=8)
    axes[0, 0].set_ylabel("CPU-seconds a step")
    axes[1, 0].set_ylabel("peak of a step, MB (line: predicted)")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Measures all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="three sizes of each")
    short = parser.parse_args().short
    torch.set_num_threads(1)
    points: dict[tuple[str, int, int, int], Row] = {}
    for net, (_, ranges) in NETS.items():
        middle = {name: values[len(values) // 2] for name, values in ranges.items()}
        for axis in AXES:
            for size in ranges[axis][1:4] if short else ranges[axis]:
                sizes = middle | {axis: size}
                key = (net, sizes["width"], sizes["depth"], sizes["batch"])
                if key not in points:
                    points[key] = measure(net, sizes)
                    row = points[key]
                    print(
                        f"{net:12} {sizes}: {row['seconds']['median']:.4f} s, {row['bytes'] / 1e6:.1f} MB, "
                        f"predicted {row['predicted_bytes'] / row['bytes'] - 1:+.2%}",
                        flush=True,
                    )
    rows = list(points.values())
    worst = max(abs(row["predicted_bytes"] / row["bytes"] - 1) for row in rows)
    name = "growth_short" if short else "growth"
    write_results(name, rows, [target("worst error of a predicted peak", worst, "<=", 0.02, "of the measured one")])
    picture(rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()

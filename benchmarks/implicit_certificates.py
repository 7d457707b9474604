"""Certificates of an implicit layer trained on MNIST against projected-gradient attacks, and how tight they are.

    python -m benchmarks.implicit_certificates --short     under a minute
    python -m benchmarks.implicit_certificates             a few minutes

For each image and radius (maximum norm, inputs in [0, 1]; attacks may leave that range) the sensitivity matrix gives an
interval of each output. Attacks push every output up and down in float32; one whose best point, solved in float64, is outside is
a violation. Two ratios tell how tight it is: the interval's half-width over the movement the best attack
reached, and the bound by the product of norms over that half-width. An image is certified where every difference of its top
output and another one is proven positive; `robust` counts the images that an attack on those differences leaves right.
"""

import argparse
import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, spread, target, write_results
from featherlight.data import load_mnist
from featherlight.nn.implicit import RELU, ImplicitLayer, OutputInterval, Sensitivity, output_interval, sensitivity

RADII = (0.5 / 255, 2 / 255, 8 / 255)
CLASSES = 10
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done.

    Args:
        states: of the layer.
        steps: of Adam.
        images: attacked, the first of the test set.
        pushes: gradient steps of an attack.
    """

    states: int
    steps: int
    images: int
    pushes: int


SHORT = Size(states=40, steps=300, images=100, pushes=8)
FULL = Size(states=100, steps=900, images=1000, pushes=10)


class Bounds(NamedTuple):
    """What is proven and what was reached, (N, Y) each."""

    proven: OutputInterval
    lowest: Tensor
    highest: Tensor


def trained(images: Tensor, labels: Tensor, *, size: Size, seed: int = 0) -> ImplicitLayer:
    """A layer with row-projected A after `size.steps` steps of Adam under one cycle of rates, then in float64.

    Args:
        images: (N, 784), in [0, 1].
        labels: (N,).
        size: states and steps.
        seed: of weights and batches.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = ImplicitLayer(size.states, images.shape[1], CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=size.steps)
    for _ in range(size.steps):
        rows = torch.randint(len(images), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(images[rows]).values, labels[rows]).backward()
        optimizer.step()
        schedule.step()
    layer.project_()
    return layer.double().requires_grad_(False)


def attack(layer: ImplicitLayer, readout: Tensor, u: Tensor, radius: float, pushes: int, chunk: int = 100) -> Tensor:
    """The largest values that projected steps by the gradient's sign reach, within `radius` of the images.

    Steps begin at the corner that the gradient at the image points to, and shrink; they are taken in float32, and the best
    point of each is evaluated in float64.

    Args:
        layer: float64.
        readout: (R, Y), what is pushed up, sums of outputs; all rows in one batch.
        u: (N, I), float64.
        radius: of the box around each image.
        pushes: steps.
        chunk: images at a time.

    Returns:
        (N, R), float64.
    """
    quick = copy.deepcopy(layer).float()
    return torch.cat([_attacked(layer, quick, readout, part, radius, pushes) for part in u.split(chunk)])


def _attacked(
    layer: ImplicitLayer, quick: ImplicitLayer, readout: Tensor, u: Tensor, radius: float, pushes: int
) -> Tensor:
    center, wanted = u.repeat_interleave(len(readout), 0), readout.repeat(len(u), 1)
    middle, weights = center.float(), wanted.float()
    point = best = middle
    highest = torch.full((len(point),), -float("inf"))
    for push in range(pushes + 1):
        point = point.detach().requires_grad_()
        reached = (quick(point).values * weights).sum(1)
        better = reached.detach() > highest
        highest = torch.where(better, reached.detach(), highest)
        best = torch.where(better[:, None], point.detach(), best)
        gradient = torch.autograd.grad(reached.sum(), point)[0]
        step = 2 * radius * (1 - push / (pushes + 1))
        point = (point.detach() + step * gradient.sign()).clamp(middle - radius, middle + radius)
    inside = best.double().clamp(center - radius, center + radius)
    return (layer(inside).values * wanted).sum(1).reshape(len(u), len(readout))


def bounds(
    layer: ImplicitLayer, proven: Sensitivity, u: Tensor, radius: float, pushes: int, chunk: int = 100
) -> Bounds:
    """Intervals of all outputs, and how far attacks on each got, `chunk` images at a time."""
    both = torch.cat((torch.eye(CLASSES), -torch.eye(CLASSES))).to(u)
    reached = torch.cat([attack(layer, both, part, radius, pushes) for part in u.split(chunk)])
    found = output_interval(proven, RELU, u, layer(u).states, radius)
    return Bounds(found, -reached[:, CLASSES:], reached[:, :CLASSES])


def differences(predicted: Tensor) -> Tensor:
    """(N, 9, 10): the top output minus each other one."""
    eye = torch.eye(CLASSES, dtype=torch.float64)
    every = eye[predicted][:, None] - eye
    return every[torch.arange(CLASSES) != predicted[:, None]].view(len(predicted), CLASSES - 1, CLASSES)


def certified(
    layer: ImplicitLayer, u: Tensor, labels: Tensor, radius: float, pushes: int
) -> tuple[float, float, float]:
    """Shares of images that are right, that are proven right within `radius`, and that an attack leaves right."""
    predicted = layer(u).values.argmax(1)
    right = predicted == labels
    proven, robust = torch.zeros_like(right), torch.zeros_like(right)
    for k in range(CLASSES):
        chosen = (right & (predicted == k)).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        rows = differences(torch.tensor([k]))[0]
        of_pairs = sensitivity(layer.A, layer.B, rows @ layer.C, rows @ layer.D)
        found = output_interval(of_pairs, RELU, u[chosen], layer(u[chosen]).states, radius)
        proven[chosen] = (found.low > 0).all(1)
        robust[chosen] = (-attack(layer, -rows, u[chosen], radius, pushes) > 0).all(1)
    assert not bool((proven & ~robust).any()), "a certified image was attacked with success"
    return float(right.double().mean()), float(proven.double().mean()), float(robust.double().mean())


def row(layer: ImplicitLayer, u: Tensor, labels: Tensor, radius: float, pushes: int) -> Row:
    """All figures of one radius."""
    proven = sensitivity(layer.A, layer.B, layer.C, layer.D)
    found = bounds(layer, proven, u, radius, pushes)
    center = layer(u).values
    outside = (found.highest > found.proven.high) | (found.lowest < found.proven.low)
    half = (found.proven.high - found.proven.low) / 2
    moved = torch.maximum(found.highest - center, center - found.lowest)
    accuracy = certified(layer, u, labels, radius, pushes)
    plain = float(
        layer.C.abs().sum(1).max() * layer.B.abs().sum(1).max() / (1 - layer.A.abs().sum(1).max())
        + layer.D.abs().sum(1).max()
    )
    return {
        "radius": radius,
        "images": len(u),
        "attacks": 2 * outside.numel(),
        "violations": int(outside.sum()),
        "half_width_over_attack": spread((half / moved).flatten().tolist()),
        "norm_product_over_half_width": spread((proven.norm_product * radius / half).flatten().tolist()),
        "unscaled_norm_product_over_half_width": spread((plain * radius / half).flatten().tolist()),
        **dict(zip(("accuracy", "certified", "robust"), accuracy, strict=True)),
    }


def measure(size: Size, radii: tuple[float, ...] = RADII, runs: FinishedRuns | None = None) -> list[Row]:
    """Trains if need be, then attacks at each radius whose row is not there.

    Raises:
        OutOfTimeError: the minutes of `runs` are used up.
    """
    splits = load_mnist()
    assert splits.test is not None
    train = splits.train
    made: list[ImplicitLayer] = []
    u, labels = splits.test.floats(slice(size.images)).flatten(1).double(), splits.test.labels[: size.images]
    rows = []
    for radius in radii:

        def make(radius: float = radius) -> Row:
            if not made:
                made.append(trained(train.floats(slice(None)).flatten(1), train.labels, size=size))
            return row(made[0], u, labels, radius, size.pushes)

        rows.append(make() if runs is None else runs.get({"radius": radius}, make, _line))
    return rows


def _line(found: Row) -> str:
    return (
        f"radius {found['radius']:.4f}: {found['violations']} of {found['attacks']} attacks outside, half-width "
        f"{found['half_width_over_attack']['median']:.2f} times the attack's reach, norm product "
        f"{found['norm_product_over_half_width']['median']:.1f} times the half-width; accuracy {found['accuracy']:.3f}, "
        f"certified {found['certified']:.3f}, robust {found['robust']:.3f}"
    )


def picture(rows: list[Row]) -> None:
    """Certified and attacked accuracy by radius."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    radii = [one["radius"] for one in rows]
    for name in ("accuracy", "robust", "certified"):
        axes.plot(radii, [100 * one[name] for one in rows], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("radius in the maximum norm (inputs in [0, 1])")
    axes.set_ylabel("% of test images")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "implicit_certificates.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a small layer and 100 images")
    parser.add_argument("--minutes", type=float, help="begin no radius after so many; the same command goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "implicit_certificates_short" if arguments.short else "implicit_certificates"
    try:
        runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.minutes)
        rows = measure(SHORT if arguments.short else FULL, runs=runs)
    except OutOfTimeError:
        print("out of time; the same command goes on")
        return
    tightest = min(one["norm_product_over_half_width"]["median"] for one in rows)
    targets = [
        target("attacks outside their interval", sum(one["violations"] for one in rows), "<=", 0, "attacks"),
        target("product of norms over the interval's half-width, median", tightest, ">=", 1, "times"),
    ]
    write_results(name, rows, targets)
    if not arguments.short:
        picture(rows)


if __name__ == "__main__":
    main()

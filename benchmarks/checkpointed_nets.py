"""The nets of the benchmark of activation checkpointing: a chain, what comes after it, and a step with or without segments."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

Batch = dict[str, Tensor]


class Net(nn.Module):
    """A chain and a linear head on the mean over places.

    Args:
        stages: of the chain.
        width: channels or features at its end.
    """

    def __init__(self, stages: list[nn.Module], width: int) -> None:
        super().__init__()
        self.chain = nn.Sequential(*stages)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, segments: int | None = None) -> Tensor:
        """Logits, (B, 10); by `checkpoint_sequential` where a number of segments is given."""
        if segments is None:
            x = self.chain(x)
        else:
            x = checkpoint_sequential(self.chain, segments, x, use_reentrant=False, preserve_rng_state=False)
        return self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)

    @staticmethod
    def losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of each example."""
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    def step(self, batch: Mapping[str, Tensor], segments: int | None = None) -> Callable[[], Tensor]:
        """Forward and backward."""

        def run() -> Tensor:
            self.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self(batch["x"], segments), batch["y"])
            loss.backward()
            return loss.detach()

        return run


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, as in ResNet-101."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.branch = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        changed = stride > 1 or inputs != outputs
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = projection if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same places, or half as many."""
        return nn.functional.relu(self.branch(x) + self.shortcut(x), inplace=True)


class Residual(nn.Module):
    """`x + f(x)` with a small part of f at the start, so that a thousand of them can be trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(last.weight, std=0.01)
        self.branch = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.branch(x)


def _examples(*shape: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(*shape, generator=generator), "y": torch.arange(shape[0]) % 10}


def resnet101_like() -> tuple[Net, Batch]:
    """A stem and 3 + 4 + 23 + 3 bottlenecks, an eighth as wide as ResNet-101, so that weights are few as they are there."""
    stem = nn.Sequential(
        *(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
    )
    stages: list[nn.Module] = [stem]
    inputs = 8
    for group, (width, blocks) in enumerate(zip((8, 16, 32, 64), (3, 4, 23, 3), strict=True)):
        for block in range(blocks):
            stages.append(Bottleneck(inputs, width, 2 if group and not block else 1))
            inputs = 4 * width
    return Net(stages, inputs), _examples(24, 3, 128, 128)


def homogeneous() -> tuple[Net, Batch]:
    """64 equal stages: a linear layer of width 96 and GELU."""
    return Net([nn.Sequential(nn.Linear(96, 96), nn.GELU()) for _ in range(64)], 96), _examples(4096, 96)


def thousand_layers() -> tuple[Net, Batch]:
    """1,000 residual layers of 8 channels on images of 16 x 16."""
    return Net([nn.Conv2d(3, 8, 3, padding=1), *(Residual(8) for _ in range(998))], 8), _examples(8, 3, 16, 16)


def random_net(generator: torch.Generator) -> tuple[Net, Batch]:
    """Between 3 and 24 stages of several kinds, widths and places."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    width, stages = 4 * draw(2, 8), list[nn.Module]()
    side = 16 * draw(1, 3)
    examples = _examples(draw(2, 12), 3, side, side)
    stages.append(nn.Conv2d(3, width, 3, padding=1))
    for _ in range(draw(2, 23)):
        kind, outputs = draw(0, 4), 4 * draw(2, 12)
        if kind == 0:
            stages.append(
                nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
            )
            width = outputs
        elif kind == 1:
            stages.append(nn.Sequential(nn.GroupNorm(4, width), nn.GELU(), nn.Dropout(0.1)))
        elif kind == 2 and side > 8:
            stages.append(nn.AvgPool2d(2))
            side //= 2
        elif kind == 3:
            stages.append(
                nn.Sequential(nn.Conv2d(width, outputs, 1), nn.SiLU(), nn.Conv2d(outputs, width, 3, padding=1))
            )
        else:
            stages.append(Residual(width))
    return Net(stages, width), examples


NETS = {"ResNet-101-like, 34 stages": resnet101_like, "homogeneous, 64 stages": homogeneous}

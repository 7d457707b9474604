"""Families of random directions, and how many a batch carries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from featherlight.functional import SignStream
from featherlight.optim.zeroth_order.targets import Directions, Target
from featherlight.optim.zeroth_order.update import MAX_DIRECTIONS


class DirectionFamily(Protocol):
    """Where the directions of a step come from; drawn by number, the same for the same (seed, step, number)."""

    @property
    def count(self) -> int | None:
        """Directions a batch; None is one for each example."""
        ...

    def dense(self, targets: Sequence[Target], *, seed: int, step: int, number: int) -> list[Tensor]:
        """One direction, as tensors of the parameters' shapes and dtypes."""
        ...


@dataclass(frozen=True)
class RankOneSigns:
    """Rank-one directions of random signs for matrices, sign vectors for the rest (design.md, section 5).

    Args:
        count: directions a batch, each carried by an equal run of its examples; None is one for each example.
    """

    count: int | None = 1

    def __post_init__(self) -> None:
        _check_count(self.count)

    def dense(self, targets: Sequence[Target], *, seed: int, step: int, number: int) -> list[Tensor]:
        """One direction: rank one for matrices, a sign for each element of the rest."""
        directions = Directions(targets, SignStream(seed=seed, step=step), number + 1)
        return [directions.dense(target, 0 if target.shared else number, target.parameter.dtype) for target in targets]


@dataclass(frozen=True)
class WholeBatchSigns:
    """Directions as those of RankOneSigns, each carried by all examples of the batch: as many times the forward passes.

    Examples may depend on each other here, and no part of the loss has to be told apart.

    Args:
        count: directions a batch.

    Source: FZOO (arXiv 2506.09034), whose directions have a sign for each weight.
    """

    count: int = 8

    def __post_init__(self) -> None:
        _check_count(self.count)

    def dense(self, targets: Sequence[Target], *, seed: int, step: int, number: int) -> list[Tensor]:
        """One direction: rank one for matrices, a sign for each element of the rest."""
        return RankOneSigns(self.count).dense(targets, seed=seed, step=step, number=number)


@dataclass(frozen=True)
class Gaussian:
    """Dense standard normal directions, as in MeZO (Malladi et al. 2023).

    Args:
        count: as for RankOneSigns.
    """

    count: int | None = 1

    def __post_init__(self) -> None:
        _check_count(self.count)

    def dense(self, targets: Sequence[Target], *, seed: int, step: int, number: int) -> list[Tensor]:
        """One direction of standard normals."""
        generator = gaussian_generator(targets[0].parameter.device, seed=seed, step=step, number=number)
        return [draw_gaussian(target.parameter, generator) for target in targets]


def gaussian_generator(device: torch.device, *, seed: int, step: int, number: int = 0) -> torch.Generator:
    """A generator of its own for each (seed, step, number)."""
    words = SignStream(seed=seed, step=step).words(torch.zeros(1, dtype=torch.int64), 0, number)
    return torch.Generator(device).manual_seed(int(words[0, 0]) << 31 | int(words[0, 1]) >> 1)


def draw_gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normals of the shape, dtype and device of `like`."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def direction_of_example(num_examples: int, count: int | None) -> Int[Tensor, "B"]:
    """The direction that each of B examples carries: `count` runs of equal length, or as equal as can be."""
    count = min(num_examples, MAX_DIRECTIONS if count is None else count)
    return torch.arange(num_examples) * count // num_examples


def _check_count(count: int | None) -> None:
    if count is not None and not 1 <= count <= MAX_DIRECTIONS:
        raise ValueError(
            f"`count` must be between 1 and {MAX_DIRECTIONS} directions (beyond that the integer sum of an update is no "
            f"longer exact); got {count}. Pass None for one direction for each example."
        )

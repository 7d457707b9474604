"""Which weights a network keeps: by one threshold, by layers, or by groups. Each is a part of `Prune`.

A pattern is asked anew at each update of a schedule, with the share of its sparsity that is due by then.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class SparsityPattern(Protocol):
    """Chooses the weights that stay."""

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the pattern does not fit these weights."""
        ...

    def keep(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The weights that stay.

        Args:
            weights: by name, of any shapes.
            share: of the sparsity that is due, in [0, 1].

        Returns:
            For each a boolean tensor of its shape; equal magnitudes are kept from the first index on.
        """
        ...


@dataclass(frozen=True)
class Global:
    """The smallest of all weights together. Layers whose weights are small on the whole lose most, or all.

    Args:
        sparsity: share of all weights that goes, in [0, 1).

    Source: Han et al. 2015; Frankle and Carbin 2019 for the threshold over all layers.
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Fits any weights."""

    def keep(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The largest over all layers. Cost: one sort of all weights."""
        return _largest_of_all({name: weight.abs() for name, weight in weights.items()}, self.sparsity * share)


@dataclass(frozen=True)
class LayerAdaptive:
    """The smallest of all weights together, each measured against what its layer would have left without it.

    A layer never loses all, and small layers keep a larger share, without anything to set for each.

    Args:
        sparsity: share of all weights that goes, in [0, 1).

    Source: Lee et al. 2021 (arXiv 2010.07611): w^2 over the sum of the squares in the layer that are not smaller.
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Fits any weights."""

    def keep(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The best over all layers. Cost: a sort of each layer and one of all weights."""
        scores = {name: _layer_adaptive_scores(weight) for name, weight in weights.items()}
        return _largest_of_all(scores, self.sparsity * share)


@dataclass(frozen=True)
class PerLayer:
    """The smallest of each layer by itself.

    Args:
        sparsities: share that goes, in [0, 1), by pattern of names, such as {"features.*": 0.95, "head.weight": 0.8}; the
            first that fits counts, and what none fits is kept.
    """

    sparsities: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise ValueError("`sparsities` is empty, so nothing would be pruned. Name layers by patterns.")
        for sparsity in self.sparsities.values():
            _check_sparsity(sparsity)

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError if a pattern fits no weight, with those that are near it."""
        for pattern in self.sparsities:
            if not any(fnmatchcase(name, pattern) for name in weights):
                near = difflib.get_close_matches(pattern, list(weights), n=3, cutoff=0.3) or list(weights)[:3]
                raise ValueError(
                    f"the pattern {pattern!r} of `sparsities` fits none of the {len(weights)} weights; near it are "
                    f"{', '.join(near)}. `*` stands for anything."
                )

    def keep(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The largest of each layer. Cost: a sort of each."""
        found = {}
        for name, weight in weights.items():
            sparsity = next((one for pattern, one in self.sparsities.items() if fnmatchcase(name, pattern)), 0.0)
            found |= _largest_of_all({name: weight.abs()}, sparsity * share)
        return found


@dataclass(frozen=True)
class NOfM:
    """In each group of `m` neighbouring inputs of a unit, the `n` largest weights stay: 2 of 4 is what GPUs are quick with.

    Args:
        n: how many stay.
        m: inputs in a group; divides the inputs of each layer.

    Source: Mishra et al. 2021 (arXiv 2104.08378). While a schedule runs, the smallest of those that will go, go first.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"of `m` inputs `n` must stay, 1 <= n < m; got n={self.n} and m={self.m}.")

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the groups do not divide the inputs of a layer."""
        for name, weight in weights.items():
            inputs = weight[0].numel() if weight.ndim > 1 else 0
            if inputs == 0 or inputs % self.m:
                raise ValueError(
                    f"groups of {self.m} do not divide the {inputs} inputs of a unit of `{name}`, which has the shape "
                    f"{tuple(weight.shape)}. Leave the layer out, or take a width that {self.m} divides."
                )

    def keep(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The largest of each group. Cost: a sort of each layer in groups, and one of those that go."""
        found = {}
        for name, weight in weights.items():
            groups = weight.abs().reshape(-1, self.m)
            rank = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            goes = (rank >= self.n).flatten()
            size = torch.where(goes, groups.flatten(), torch.inf)
            found[name] = _largest(size, round(share * int(goes.sum()))).view(weight.shape)
        return found


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must lie in [0, 1), the share of weights that goes; got {sparsity}. At 1 nothing would be left."
        )


def _largest_of_all(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """All but the lowest scores, over all tensors together."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    keep = _largest(flat, round(sparsity * flat.numel()))
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(flat: Tensor, gone: int) -> Tensor:
    """A boolean for each of some numbers, false for the `gone` lowest of them; of equal ones the last go first."""
    order = flat.argsort(descending=True, stable=True)
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[order[len(order) - gone :]] = False
    return keep


def _layer_adaptive_scores(weight: Tensor) -> Tensor:
    squares = weight.flatten().double().square()
    order = squares.argsort(descending=True, stable=True)
    ranked = squares[order]
    scores = torch.empty_like(squares)
    scores[order] = ranked / ranked.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return scores.view(weight.shape)

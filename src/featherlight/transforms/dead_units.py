"""Takes out units that do nothing: those that nothing reads, and those that read nothing and are constant.

Legend of shapes: U units (features or channels) of a layer, P places of a channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherlight.transforms.dead_units_chains import Chain, chains

Example = Tensor | tuple[Tensor, ...]
"""What a model is run on: one input or several."""


@dataclass(frozen=True, kw_only=True)
class DeadUnits:
    """What was found.

    Attributes:
        units: by name of the layer, the numbers of its units that do nothing, as they were counted before.
    """

    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many there are in all."""
        return sum(map(len, self.units.values()))


@torch.no_grad()
def zero_dead_units(model: nn.Module, example: Example) -> DeadUnits:
    """Sets to zero, in place, all that belongs to units that do nothing, so that it takes next to no bytes; shapes stay.

    A unit that nothing reads loses the weights and the bias that it reads with. What a constant unit hands on goes into the
    bias of the layer that reads it, where that has one. The function of the model stays the same up to the order of its sums.

    Args:
        model: in evaluation mode for the time being; linear layers and convolutions are looked at that feed one other such
            layer, by way of activations, pooling, batch norms and flattening alone.
        example: an input, for the shapes; it is run once without a graph.

    Returns:
        The units of each layer.

    Raises:
        ValueError: the model cannot be traced with this input.

    Cost: one export of the model by torch.
    """
    found: dict[str, set[int]] = {}
    _silence(_chains(model, example), found, adds_biases=False)
    return _frozen(found)


@torch.no_grad()
def remove_dead_units(model: nn.Module, example: Example) -> DeadUnits:
    """As `zero_dead_units`, and then takes the units out: weights, biases and norms get smaller, in place.

    A layer keeps one unit at least, and one without a bias gets it where a constant goes there. Convolutions in groups keep
    their shape.

    Args:
        model: as there; it should not be under a transform.
        example: as there.

    Returns:
        The units of each layer that were found to do nothing.

    Raises:
        ValueError: as there.
    """
    found: dict[str, set[int]] = {}
    all_chains = _chains(model, example)
    _silence(all_chains, found, adds_biases=True)
    for chain in all_chains:
        gone = found.get(chain.name, set())
        keep = [unit for unit in range(chain.num_units) if unit not in gone] or [0]
        if gone:
            chain.keep_units(torch.tensor(keep, device=chain.producer.weight.device))
    return _frozen(found)


def _frozen(found: Mapping[str, set[int]]) -> DeadUnits:
    return DeadUnits(units={name: tuple(sorted(units)) for name, units in found.items() if units})


def _chains(model: nn.Module, example: Example) -> Sequence[Chain]:
    inputs = example if isinstance(example, tuple) else (example,)
    training = model.training
    model.eval()
    try:
        return chains(model, inputs)
    finally:
        model.train(training)


def _silence(all_chains: Sequence[Chain], found: dict[str, set[int]], *, adds_biases: bool) -> None:
    """Zeroes dead units from the outputs back to the inputs and again, until there are no more."""
    before = -1
    while sum(map(len, found.values())) != before:
        before = sum(map(len, found.values()))
        for chain in reversed(all_chains):
            if chain.is_grouped:
                continue
            unread = (chain.read_by_unit() == 0).all(1)
            silent = (chain.producer.weight.flatten(1) == 0).all(1) & ~unread
            for unit in _folded(chain, silent, adds_biases) + unread.nonzero().flatten().tolist():
                chain.silence(unit)
                found.setdefault(chain.name, set()).add(unit)


def _folded(chain: Chain, silent: Tensor, adds_biases: bool) -> list[int]:
    """Those of the constant units whose value could be moved into the next layer's bias."""
    if not silent.any():
        return []
    constants_UP = chain.constants()
    done = []
    for unit in silent.nonzero().flatten().tolist():
        value_P = constants_UP[unit]
        if bool((value_P != 0).any()):
            if not chain.can_fold(value_P, adds_biases):
                continue
            chain.fold(unit, value_P)
        done.append(unit)
    return done

"""Prunes weights, at once or while a network is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.transforms.prune_layers import WeightSite, bake, install, installed, weight_sites
from featherlight.transforms.prune_patterns import SparsityPattern
from featherlight.transforms.prune_schedule import CubicSchedule


class PruningMask(nn.Module):
    """Hides weights, as a parametrization.

    Attributes:
        keep: of the weight's shape, false where it is zero.
        reaches: where gradients reach the weight.
        updated: the number of the last update.
    """

    keep: Tensor
    reaches: Tensor
    updated: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("reaches", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("updated", torch.tensor(-1))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, exactly zero where it is pruned."""
        return _Hidden.apply(weight, self.keep, self.reaches)


class Prune:
    """Hides more and more of a network's weights while it is trained; a transform.

    What is pruned is exactly zero whatever the optimizer's state holds, and gets no gradient, except while the schedule
    runs, if `regrow`.

    Args:
        pattern: which weights stay.
        schedule: how fast the others go.
        layers: patterns of the names of weights that are pruned, such as "features.*.weight"; `*` fits anything. Biases
            are pruned where a pattern fits them.
        regrow: whether, while the schedule runs, gradients reach pruned weights as if they were there, so that one that
            grows takes the place of another (Guo et al. 2016). Afterwards the choice is frozen.

    Cost: a sort of the weights for each update of the schedule, and a mask in each forward and backward pass.
    Source: Han et al. 2015 (arXiv 1506.02626); Zhu and Gupta 2017 for the schedule.
    """

    def __init__(
        self,
        pattern: SparsityPattern,
        *,
        schedule: CubicSchedule = CubicSchedule(),  # noqa: B008
        layers: Sequence[str] = ("*.weight", "weight"),
        regrow: bool = True,
    ) -> None:
        self.pattern = pattern
        self.schedule = schedule
        self.layers = tuple(layers)
        self.regrow = regrow

    def prepare(self, model: nn.Module) -> None:
        """Puts a mask on each weight, which hides nothing yet.

        Raises:
            ValueError: there is nothing to prune, a pattern fits nothing, a weight is tied or not finite, or there are masks.
        """
        sites = weight_sites(model, self.layers)
        self.pattern.check({name: site.parameter.detach() for name, site in sites.items()})
        install(sites, {name: PruningMask(site.parameter) for name, site in sites.items()})

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float) -> None:
        """Makes the masks anew where the schedule says so."""
        sites = installed(model, PruningMask)
        masks = {name: _mask(site) for name, site in sites.items()}
        due = self.schedule.update_at(progress)
        if not masks or int(next(iter(masks.values())).updated) == due:
            return
        weights = {name: site.parameter.detach() for name, site in sites.items()}
        is_open = self.regrow and due < self.schedule.last
        for name, keep in self.pattern.keep(weights, self.schedule.share(due)).items():
            masks[name].keep.copy_(keep)
            masks[name].reaches.copy_(keep | is_open)
            masks[name].updated.fill_(due)

    def convert(self, model: nn.Module) -> None:
        """Leaves plain weights with exact zeros in them."""
        for site in installed(model, PruningMask).values():
            bake(site, PruningMask)


@torch.no_grad()
def prune_weights(
    model: nn.Module, pattern: SparsityPattern, *, layers: Sequence[str] = ("*.weight", "weight")
) -> dict[str, float]:
    """Sets weights to zero in place, at once.

    Args:
        model: any module.
        pattern: which weights stay.
        layers: patterns of names, as for `Prune`.

    Returns:
        The share that is zero now of each tensor, by name.

    Raises:
        ValueError: as `Prune.prepare`.
    """
    sites = weight_sites(model, layers)
    weights = {name: site.parameter for name, site in sites.items()}
    pattern.check(weights)
    for name, keep in pattern.keep({name: weight.detach() for name, weight in weights.items()}, 1.0).items():
        weights[name].masked_fill_(~keep, 0)
    return {name: float((weight == 0).double().mean()) for name, weight in weights.items()}


class _Hidden(torch.autograd.Function):
    """The weight where it is kept and zero elsewhere; its gradient where it reaches."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, reaches: Tensor) -> Tensor:
        ctx.save_for_backward(reaches)
        return weight.masked_fill(~keep, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (reaches,) = ctx.saved_tensors
        return gradients[0].masked_fill(~reaches, 0), None, None


def _mask(site: WeightSite) -> PruningMask:
    found = next(one for one in site.chain or () if isinstance(one, PruningMask))
    assert isinstance(found, PruningMask), "asked for where there is one"
    return found

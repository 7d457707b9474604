"""Lets the weights of a layer share a few values, and trains these.

Legend of shapes: K codes beside zero.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.transforms.prune_layers import WeightSite, bake, install, installed, weight_sites
from featherlight.transforms.share_weights_codes import FixedCodes, Reassigned, rate_distortion_codes
from featherlight.transforms.share_weights_kmeans import kmeans_1d, nearest_code

_MEMORY = 0.98


class SharedValues(nn.Module):
    """Replaces each weight by its code's value, as a parametrization.

    Attributes:
        centroids: values of the codes, (K,); trained.
        index: of the weight's shape: 0 for exactly zero, or 1 + the number of a centroid.
        importance: of the weight's shape: running mean of squared gradients; empty where codes are fixed.
        updated: the number of the last choice of codes.
        trains_weight: whether the weight itself was trained before.
    """

    index: Tensor
    importance: Tensor
    updated: Tensor

    def __init__(self, parameter: nn.Parameter, weight: Tensor, num_codes: int, *, dtype: torch.dtype, fixed: bool):
        super().__init__()
        weight = weight.detach()
        found = weight[weight != 0].flatten()
        found = found if len(found) >= num_codes else weight.flatten()
        self.centroids = nn.Parameter(kmeans_1d(found, num_codes))
        self.register_buffer("index", _nearest(weight, self.centroids.detach()).to(torch.int32))
        self.register_buffer("importance", weight.new_zeros(0) if fixed else torch.zeros_like(weight))
        self.register_buffer("updated", torch.tensor(-1))
        self.dtype = dtype
        self.trains_weight = parameter.requires_grad

    def values(self) -> Tensor:
        """The centroids as they are kept: rounded to the codebook's dtype, straight through. (K,)"""
        rounded = self.centroids.detach().to(self.dtype).to(self.centroids.dtype)
        return self.centroids + (rounded - self.centroids.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """The value of each weight's code; exactly zero where the weight is, as a mask before may have made it."""
        return _LookedUp.apply(weight, self.values(), self.index, self.importance)


class ShareWeights:
    """Gives each layer a codebook, whose values its weights share, and trains them; a transform.

    Weights that are exactly zero keep a code of their own that is exactly zero, so that what is pruned stays pruned. The
    gradient of a centroid is the sum of those of its weights. `prepare` makes the codebooks, before the optimizer is made: so
    that it can begin when a network is trained, give it a stage of its own.

    Args:
        num_codes: values of a codebook beside zero; by pattern of names, such as {"features.*": 15, "*": 7}, of which the
            first that fits counts; or one number for all.
        bits: in place of `num_codes`: 2**bits of them.
        layers: patterns of the names of tensors that are shared, such as "*.bias".
        assign: whether each weight keeps its code, or takes others on the way.
        codebook: dtype that centroids are rounded to, such as torch.bfloat16, to be kept in fewer bytes.

    Attributes:
        sizes: numbers of codes by pattern of names.
        layers: as given, as are `assign` and `codebook`.

    Raises:
        ValueError: neither or both of `num_codes` and `bits`, or less than one code.

    Cost: a look-up in each forward pass and a sum in each backward pass. With codes that change, one more tensor of the size
    of the weights, and K + 1 floats a weight of one layer at each choice.
    Source: Han et al. 2015 (Deep Compression, arXiv 1510.00149), section 3.
    """

    def __init__(
        self,
        num_codes: int | Mapping[str, int] | None = None,
        *,
        bits: int | Mapping[str, int] | None = None,
        layers: Sequence[str] = ("*.weight", "weight"),
        assign: FixedCodes | Reassigned = FixedCodes(),  # noqa: B008
        codebook: torch.dtype = torch.float32,
    ) -> None:
        given = num_codes if bits is None else bits
        if given is None or (num_codes is not None and bits is not None):
            raise ValueError(f"give `num_codes` or `bits`, one of them; got {num_codes} and {bits}.")
        sizes = dict(given) if isinstance(given, Mapping) else {"*": given}
        self.sizes = sizes if bits is None else {pattern: 2**one for pattern, one in sizes.items()}
        if not sizes or min(self.sizes.values()) < 1 or min(sizes.values()) < (bits is not None):
            raise ValueError(f"a codebook has at least 1 code and `bits` are at least 1; got {sizes}.")
        self.layers = tuple(layers)
        self.assign = assign
        self.codebook = codebook

    def prepare(self, model: nn.Module) -> None:
        """Makes a codebook of each tensor by K-means of what it holds.

        Raises:
            ValueError: there is nothing to share, a pattern fits nothing, a tensor is tied, not finite or has fewer weights
                than codes, or there are codebooks.
        """
        sites = weight_sites(model, self.layers)
        fixed = isinstance(self.assign, FixedCodes)
        made = {name: self._made(site, fixed) for name, site in sites.items() if self._size(site)}
        if not made:
            raise ValueError(
                f"none of {', '.join(sites)} fits one of the patterns {list(self.sizes)} of codebook sizes. Add one for '*'."
            )
        install({name: sites[name] for name in made}, made)
        for name in made:
            sites[name].parameter.requires_grad_(sites[name].parameter.requires_grad and not fixed)

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float) -> None:
        """Chooses codes anew where that is due, and centers the codebooks on the weights that took each code."""
        if not isinstance(self.assign, Reassigned):
            return
        sites = installed(model, SharedValues)
        due = min(self.assign.updates, int(progress / self.assign.end * self.assign.updates))
        shared = {name: shared_values(site) for name, site in sites.items()}
        before = int(next(iter(shared.values())).updated) if shared else due
        if before == due:
            return
        if before >= 0:
            self.choose(model)
        for one in shared.values():
            one.updated.fill_(due)
            one.importance.mul_(float(due < self.assign.updates))

    def convert(self, model: nn.Module) -> None:
        """Leaves plain weights of few values, which require gradients as before."""
        for site in installed(model, SharedValues).values():
            trained = shared_values(site).trains_weight
            bake(site, SharedValues)
            site.parameter.requires_grad_(trained)

    def _made(self, site: WeightSite, fixed: bool) -> SharedValues:
        size, weight = self._size(site), site.tensor
        if size > weight.numel():
            raise ValueError(
                f"`{site.name}` has {weight.numel()} weights, fewer than the {size} codes that they would share. Give it fewer, "
                "or leave it out."
            )
        return SharedValues(site.parameter, weight, size, dtype=self.codebook, fixed=fixed)

    def _size(self, site: WeightSite) -> int:
        return next((size for pattern, size in self.sizes.items() if fnmatchcase(site.name, pattern)), 0)

    @torch.no_grad()
    def choose(self, model: nn.Module) -> None:
        """Chooses all codes anew, whether that is due or not, by distance, importance and bits, and centers the codebooks."""
        assert isinstance(self.assign, Reassigned), "asked for where codes change"
        sites = installed(model, SharedValues)
        weights = [(site.before(SharedValues).detach(), shared_values(site)) for site in sites.values()]
        bit_cost = self.assign.rate * mean_energy([(one.importance, one.index, weight) for weight, one in weights])
        for weight, one in weights:
            importance = one.importance + 1e-3 * one.importance.mean() + torch.finfo(weight.dtype).tiny
            index = rate_distortion_codes(
                weight, one.centroids, importance=importance, bit_cost=bit_cost, start=one.index
            )
            if not self.assign.regrow:
                index.masked_fill_(one.index == 0, 0)
            one.index.copy_(index)
            one.centroids.copy_(_centered(weight, index, importance, one.centroids))


def shared_values(site: WeightSite) -> SharedValues:
    """The codebook at a site that has one."""
    found = next(one for one in site.chain or () if isinstance(one, SharedValues))
    assert isinstance(found, SharedValues), "asked for where there is one"
    return found


def mean_energy(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The mean over all weights that are not zero of importance times square.

    Args:
        parts: importance, code and weight of each tensor.
    """
    total = sum(float((importance * weight.square() * (index != 0)).sum()) for importance, index, weight in parts)
    return total / max(1, sum(int((index != 0).sum()) for _, index, _ in parts))


class _LookedUp(torch.autograd.Function):
    """The value of each code; gradients go to the values in sums, and to the weights as they are."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values_K: Tensor, index: Tensor, importance: Tensor) -> Tensor:
        index = index.masked_fill(weight == 0, 0)
        ctx.save_for_backward(index)
        ctx.num_codes, ctx.importance = len(values_K), importance
        table = torch.cat([values_K.new_zeros(1), values_K])
        return table.index_select(0, index.flatten()).view(index.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (index,) = ctx.saved_tensors
        gradient = gradients[0]
        summed = torch.zeros(ctx.num_codes + 1, dtype=torch.float64, device=gradient.device)
        summed.index_add_(0, index.flatten(), gradient.flatten().double())
        if ctx.importance.numel():
            square = gradient.square()  # not finite where a scaled loss overflowed, whose step is skipped
            ctx.importance.lerp_(square.where(square.isfinite().all(), ctx.importance), 1 - _MEMORY)
        return gradient if ctx.needs_input_grad[0] else None, summed[1:].to(gradient.dtype), None, None


def _nearest(weight: Tensor, centroids_K: Tensor) -> Tensor:
    """Index of the nearest centroid, 0 where the weight is exactly zero."""
    return torch.where(weight == 0, 0, nearest_code(weight, centroids_K) + 1)


def _centered(weight: Tensor, index: Tensor, importance: Tensor, centroids_K: Tensor) -> Tensor:
    """Means of the weights of each code; a code that none took keeps its value."""
    count = len(centroids_K) + 1
    mass, moment = (
        torch.bincount(index.flatten(), weights=one.flatten().double(), minlength=count)[1:]
        for one in (importance, importance * weight)
    )
    return torch.where(mass > 0, moment / mass.clamp(min=1e-300), centroids_K.double()).to(centroids_K.dtype)

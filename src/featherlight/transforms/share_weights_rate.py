"""Rate-aware training: the bits that shared weights would take, as a part of the loss."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.functional.entropy_model import EntropyModel, soft_assign
from featherlight.objective import Objective
from featherlight.transforms.prune_layers import installed
from featherlight.transforms.share_weights import SharedValues, shared_values
from featherlight.transforms.share_weights_codes import code_levels


class RatePenalty:
    """An Objective with a price on bits: adds the gradient of the bits that shared weights are expected to take.

    A weight behind its code is drawn to cheaper codes near it, above all to zero; it takes them when `Reassigned` chooses
    anew. Each weight counts with its shares in all codes of its codebook, and the archive's own model of levels says what a
    code costs where the weight stands. Loss and values are those of the wrapped objective alone.

    Args:
        objective: the loss.
        model: under ShareWeights with codes that are Reassigned.
        strength: loss that a bit, as the mean over all shared weights, is worth.
        every: adds the gradient in one of so many steps, so many times as strong.
        step: number of the step.

    Raises:
        ValueError: a strength or number out of range.

    Cost: some K + 1 floats for each weight of one layer and passes over them, in one of `every` steps.
    Source: Oktay et al. 2020 (arXiv 1906.06624) for bits in the loss; soft shares as in Agustsson et al. 2017 (1704.00648).
    """

    def __init__(
        self, objective: Objective, model: nn.Module, strength: float, *, every: int = 20, step: int = 0
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise ValueError(f"`strength` must be a finite number of at least 0; got {strength}.")
        if every < 1 or step < 0:
            raise ValueError(f"`every` must be at least 1 and `step` at least 0; got {every} and {step}.")
        self.objective = objective
        self.model = model
        self.strength = strength
        self.every = every
        self.step = step

    def __call__(self) -> Float[Tensor, ""]:
        """Fills the gradients of the loss, adds those of the bits, and returns the loss."""
        loss = self.objective()
        if self.strength > 0 and self.step % self.every == 0:
            bits = expected_bits_per_weight(self.model)
            if bits.requires_grad:
                (self.every * self.strength * bits).backward()
        return loss

    def value(self) -> Float[Tensor, ""]:
        """That of the wrapped objective."""
        return self.objective.value()

    def values(self) -> Float[Tensor, "B"]:
        """Those of the wrapped objective."""
        return self.objective.values()


def expected_bits_per_weight(model: nn.Module) -> Float[Tensor, ""]:
    """The mean bits of a shared weight, with its shares in codes that are near it; its gradient reaches the weights.

    Raises:
        ValueError: nothing is shared.
    """
    sites = installed(model, SharedValues)
    if not sites:
        raise ValueError("nothing in the model shares its weights, so it has no bits. Prepare ShareWeights first.")
    total, count = torch.zeros(()), 0
    for site in sites.values():
        shared = shared_values(site)
        weight, centroids_K = site.before(SharedValues), shared.centroids.detach()
        table = torch.cat([centroids_K.new_zeros(1), centroids_K])
        levels = code_levels(centroids_K)
        present = levels[shared.index.long()]
        entropy = EntropyModel.fit(present, reach=int(levels.abs().max()))
        gaps = table.sort().values.diff()
        gap = gaps[gaps > 0].mean() if bool((gaps > 0).any()) else table.abs().max().clamp(min=1e-12)
        shares = soft_assign(weight, table, temperature=float(gap.square() / 4))
        total = total.to(weight.device) + entropy.expected_bits(shares, present, levels).sum()
        count += weight.numel()
    return total / count


@torch.no_grad()
def estimated_bits(model: nn.Module) -> dict[str, float]:
    """About how many bits the levels of each shared tensor take in the archive, by name; codebooks are not counted."""
    found = {}
    for name, site in installed(model, SharedValues).items():
        shared = shared_values(site)
        levels = code_levels(shared.centroids)[shared.index.long()]
        found[name] = float(EntropyModel.fit(levels).bits(levels).sum())
    return found

"""Shares the weights of a finished network at once, with an eye on what each weight matters and what its code costs."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from featherlight.objective import Objective
from featherlight.transforms.prune_layers import installed, weight_sites
from featherlight.transforms.share_weights import SharedValues, ShareWeights, shared_values
from featherlight.transforms.share_weights_codes import Reassigned


def squared_gradients(
    model: nn.Module, objectives: Iterable[Objective], *, layers: Sequence[str] = ("*.weight", "weight")
) -> dict[str, Tensor]:
    """What each weight matters: the mean of the squared gradients of some losses, an estimate of the diagonal Fisher matrix.

    Args:
        model: its gradients are cleared afterwards.
        objectives: of few examples each, on data that the model was trained on: the gradient of a mean over many examples
            says little of the single ones.
        layers: patterns of the names of tensors.

    Returns:
        For each tensor by name one of its shape, at least 0.

    Raises:
        ValueError: there are no objectives, or a pattern fits nothing.

    Cost: a forward and a backward pass for each objective.
    Source: Theis et al. 2018 (arXiv 1801.05787), section 3, for pruning by it; Choi et al. 2017 (1612.01543) for codebooks.
    """
    sites = weight_sites(model, layers)
    found = {name: torch.zeros_like(site.parameter) for name, site in sites.items()}
    count = 0
    for objective in objectives:
        objective()
        count += 1
        for name, site in sites.items():
            if site.parameter.grad is not None:
                found[name].addcmul_(site.parameter.grad, site.parameter.grad)
    if count == 0:
        raise ValueError("`objectives` is empty, so nothing can be told of what a weight matters. Give some batches.")
    model.zero_grad(set_to_none=True)
    return {name: one.detach() / count for name, one in found.items()}


@torch.no_grad()
def share_weights(
    model: nn.Module,
    num_codes: int | Mapping[str, int] | None = None,
    *,
    bits: int | Mapping[str, int] | None = None,
    rate: float = 0.0,
    importance: Mapping[str, Tensor] | None = None,
    layers: Sequence[str] = ("*.weight", "weight"),
    codebook: torch.dtype = torch.float32,
) -> None:
    """Lets the weights of each layer share a few values, in place and at once; exact zeros stay.

    Each weight takes the code of least importance times squared distance, plus what its bits cost; then the values are
    centered on those that took them, and both is done once more.

    Args:
        model: any module.
        num_codes: as for `ShareWeights`, as are the arguments that are not named here.
        bits: as there.
        rate: what a bit costs, as a share of the mean over all weights that are not zero of importance times square.
        importance: for tensors by name, as `squared_gradients` returns it; None takes all weights as alike.
        layers: as there.
        codebook: as there.

    Raises:
        ValueError: as `ShareWeights`, or an importance of another shape, below zero or not finite.

    Cost: a sort of the weights, and some K + 1 floats a weight of one layer.
    """
    transform = ShareWeights(
        num_codes, bits=bits, layers=layers, assign=Reassigned(rate=rate, updates=1), codebook=codebook
    )
    transform.prepare(model)
    try:
        for name, site in installed(model, SharedValues).items():
            shared = shared_values(site)
            given = None if importance is None else importance.get(name)
            shared.importance.copy_(
                torch.ones_like(shared.importance) if given is None else _checked(name, given, shared)
            )
        for _ in range(2):
            transform.choose(model)
    finally:
        transform.convert(model)


def _checked(name: str, importance: Tensor, shared: SharedValues) -> Tensor:
    if importance.shape != shared.index.shape or not bool((importance >= 0).all() & importance.isfinite().all()):
        raise ValueError(
            f"the importance of `{name}` must be finite numbers of at least 0 in the shape {tuple(shared.index.shape)}; got the "
            f"shape {tuple(importance.shape)} and values from {float(importance.min()):g} to {float(importance.max()):g}."
        )
    return importance

"""K-means of numbers: exact steps on sorted values.

Legend of shapes: N numbers, K centroids.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_MOST_STEPS = 200


@torch.no_grad()
def kmeans_1d(
    values_N: Float[Tensor, "N"], num_codes: int, *, importance_N: Float[Tensor, "N"] | None = None
) -> Float[Tensor, "K"]:
    """Centroids of numbers by Lloyd's steps from a linear start, each of them exact.

    Where there are no more distinct numbers than codes, these are the centroids; what is left over repeats the last one.

    Args:
        values_N: the numbers, finite.
        num_codes: K, at most N.
        importance_N: weights of the squared errors, at least 0; None weighs all alike.

    Returns:
        In ascending order. A centroid that no number is nearest to stays where the start put it.

    Raises:
        ValueError: there are more codes than numbers.

    Cost: one sort, and a few binary searches a step: at most 200, fewer when nothing moves any more.
    Source: Lloyd 1982; the linear start is Han et al. 2015 (arXiv 1510.00149), section 3.1.
    """
    if not 1 <= num_codes <= len(values_N):
        raise ValueError(
            f"`num_codes` must lie between 1 and the {len(values_N)} weights there are, or a code would stand for nothing; got "
            f"{num_codes}."
        )
    order = values_N.argsort()
    sorted_N = values_N[order].double()
    distinct = sorted_N.unique_consecutive()
    if len(distinct) <= num_codes:
        return torch.cat([distinct, distinct[-1:].expand(num_codes - len(distinct))]).to(values_N.dtype)
    mass_N = torch.ones_like(sorted_N) if importance_N is None else importance_N[order].double()
    zero = sorted_N.new_zeros(1)
    mass, moment = torch.cat([zero, mass_N.cumsum(0)]), torch.cat([zero, (mass_N * sorted_N).cumsum(0)])
    low, high = float(sorted_N[0]), float(sorted_N[-1])
    centroids_K = torch.linspace(low, high, num_codes, dtype=torch.float64, device=values_N.device)
    if num_codes == 1:
        centroids_K = centroids_K.new_full((1,), (low + high) / 2)
    for _ in range(_MOST_STEPS):
        inner = torch.searchsorted(sorted_N, (centroids_K[1:] + centroids_K[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(sorted_N))])
        inside, total = mass[edges].diff(), moment[edges].diff()
        moved = torch.where(inside > 0, total / inside, centroids_K)
        if torch.equal(moved, centroids_K):
            break
        centroids_K = moved.sort().values
    return centroids_K.to(values_N.dtype)


def nearest_code(values: Float[Tensor, "..."], centroids_K: Float[Tensor, "K"]) -> Tensor:
    """The number of the nearest of some centroids in ascending order, of the shape of `values`; the lower one of two."""
    return torch.searchsorted((centroids_K[1:] + centroids_K[:-1]) / 2, values.contiguous())

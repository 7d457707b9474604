"""Laws of soft convex quantization: scale, the path from the nearest code to the hull, and what stands at its ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.nn.vector_quantizers import Codebook, EntropyBalancing, Exact, SoftConvexQuantizer, Sparse
from featherlight.nn.vector_quantizers.mixing import Mixing

MIXINGS = pytest.mark.parametrize("mixing", [Exact(), Sparse(2), Sparse(4)], ids=str)


def layer_with(codes: torch.Tensor, mixing: Mixing, strength: float) -> SoftConvexQuantizer:
    codebook = Codebook(*codes.shape, learnable=True, init=None).to(codes.dtype)
    with torch.no_grad():
        codebook.weight.copy_(codes)
    return SoftConvexQuantizer(codebook, mixing=mixing, strength=strength, balancing=EntropyBalancing()).eval()


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@MIXINGS
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**20),
    exponent=st.floats(-4, 4),
    shift=st.floats(-3, 3),
    strength=st.sampled_from([1e-3, 0.1, 3.0]),
)
def test_scaled_and_shifted_vectors_and_codes_have_the_same_shares(
    mixing: Mixing, seed: int, exponent: float, shift: float, strength: float
) -> None:
    x, codes, scale = drawn(seed, 30, 5), drawn(seed + 1, 16, 5), 10**exponent
    plain = layer_with(codes, mixing, strength)
    moved = layer_with(scale * (codes + shift), mixing, strength)
    one, other = plain(x), moved(scale * (x + shift))
    assert torch.equal(one.codes.indices, other.codes.indices)
    torch.testing.assert_close(one.codes.weights, other.codes.weights, rtol=0, atol=1e-6)
    loss = [layer.train()(y).aux_loss for layer, y in ((plain, x), (moved, scale * (x + shift)))]
    assert plain.balancing is not None
    terms = [plain.balancing(y, c, None) for y, c in ((x, codes), (scale * (x + shift), scale * (codes + shift)))]
    torch.testing.assert_close(terms[0], terms[1] / scale**2, rtol=1e-6, atol=1e-9)
    assert all(bool(term.isfinite()) for term in loss)


@settings(max_examples=3)
@given(seed=st.integers(0, 2**20))
def test_the_path_from_the_nearest_code_to_the_hull_is_continuous(seed: int) -> None:
    x, codes = drawn(seed, 25, 3), drawn(seed + 1, 12, 3)
    strengths = torch.logspace(-8, 8, 200).tolist()
    path = torch.stack([layer_with(codes, Exact(), strength)(x).values.detach() for strength in strengths])
    errors = (path - x).square().sum(2)
    assert bool((errors.diff(dim=0) >= -1e-9).all())
    assert float((path[1:] - path[:-1]).norm(dim=2).max()) < 0.2 * float(codes.norm(dim=1).max())
    nearest = codes[torch.cdist(x, codes).argmin(1)]
    torch.testing.assert_close(path[-1], nearest, rtol=0, atol=1e-6)
    # the nearest point of a convex set: no code lies further along the way to x
    beyond = ((x - path[0])[:, None] * (codes - path[0][:, None])).sum(2)
    assert float(beyond.max()) < 1e-5


@pytest.mark.parametrize("mixing", [Sparse(2), Sparse(8)], ids=str)
def test_few_codes_go_to_the_nearest_code_and_many_to_the_hull(mixing: Mixing) -> None:
    x, codes = drawn(3, 200, 3), drawn(4, 20, 3)
    nearest = codes[torch.cdist(x, codes).argmin(1)]
    torch.testing.assert_close(layer_with(codes, mixing, 1e8)(x).values.detach(), nearest, rtol=0, atol=1e-6)
    hull = layer_with(codes, Exact(), 1e-8)(x).values.detach()
    few = layer_with(codes, mixing, 1e-8)(x).values.detach()
    excess = ((few - x).square().sum(1).mean() - (hull - x).square().sum(1).mean()) / (nearest - x).square().sum(
        1
    ).mean()
    assert float(excess) < (0.02 if mixing == Sparse(8) else 0.6)

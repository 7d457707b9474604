"""Quantizers whose codes are not learned one by one: finite scalar, lookup-free and SimVQ, against a trusted peer."""

import math
from collections.abc import Iterator

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor
from torch.nn.functional import mse_loss

from featherlight.nn.vector_quantizers import (
    Codebook,
    Codes,
    EntropyLoss,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    RotationTrick,
    SimVQ,
    StraightThrough,
)
from featherlight.nn.vector_quantizers.positions import to_rows


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _rows(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("levels", [(8, 5, 5, 3), (7,), (4, 4, 6)])
def test_finite_scalar_equals_the_peer(levels: tuple[int, ...]) -> None:
    ours, theirs = FiniteScalarQuantizer(levels), peer.FSQ(list(levels))
    x = _rows(3, 500, len(levels), scale=2.0).requires_grad_()
    result, (expected, indices) = ours(x), theirs(x)
    torch.testing.assert_close(result.values, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(result.codes.indices, indices.long())
    weights = _rows(*x.shape, seed=1)
    (grad,) = torch.autograd.grad((result.values * weights).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)
    every = torch.arange(math.prod(levels))[None]
    torch.testing.assert_close(ours.codes_to_values(Codes(every)), theirs.indices_to_codes(every))


def test_two_levels_part_at_zero_and_thousands_are_all_reached() -> None:
    x = torch.linspace(-9, 9, 200_001)[:, None]
    values, (indices, _), _ = FiniteScalarQuantizer((2,))(x)
    assert torch.equal(indices, (x[:, 0] > 0).long())
    assert set(values.flatten().tolist()) == {-1.0, 0.0}
    layer = FiniteScalarQuantizer((3001,)).double()
    values, codes, _ = layer(x.double())
    assert torch.equal(codes.indices.unique(), torch.arange(3001))
    assert torch.equal(layer.codes_to_values(codes), values)


def _slow_entropy_loss(x_NF: Tensor, scale: float, temperature: float, diversity: float) -> float:
    """Over all sign vectors, one by one."""
    count, dim = x_NF.shape
    codes = [[scale if code >> f & 1 else -scale for f in range(dim)] for code in range(2**dim)]
    shares = []
    for row in x_NF.tolist():
        scores = [-sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) / temperature for code in codes]
        total = sum(math.exp(score - max(scores)) for score in scores)
        shares.append([math.exp(score - max(scores)) / total for score in scores])

    def entropy(share: list[float]) -> float:
        return -sum(p * math.log(p) for p in share if p > 0)

    mean = [sum(share[code] for share in shares) / count for code in range(2**dim)]
    return sum(map(entropy, shares)) / count - diversity * entropy(mean)


@pytest.mark.parametrize("masked", [False, True])
def test_the_entropy_loss_equals_the_sum_over_all_codes(masked: bool) -> None:
    x = _rows(30, 5, scale=0.4).double()
    mask = _rows(30, seed=1) > 0 if masked else None
    kept = x if mask is None else x[mask]
    part = EntropyLoss(weight=0.3, diversity=0.7, temperature=0.9, group_size=5)
    loss = part(to_rows(x, dim=5, mask=mask), to_rows(x, dim=5, mask=mask).rows_NF, 0.8)
    assert loss.item() == pytest.approx(0.3 * _slow_entropy_loss(kept, 0.8, 0.9, 0.7), rel=1e-10)
    pairs = EntropyLoss(weight=1.0, diversity=0.7, temperature=0.9, group_size=2)
    positions = to_rows(x, dim=5, mask=mask)
    grouped = sum(_slow_entropy_loss(kept[:, part], 0.8, 0.9, 0.7) for part in (slice(0, 2), slice(2, 4), slice(4, 5)))
    assert pairs(positions, positions.rows_NF, 0.8).item() == pytest.approx(grouped, rel=1e-10)


def test_lookup_free_equals_the_peer() -> None:
    ours = LookupFreeQuantizer(6, scale=0.5, entropy=EntropyLoss(weight=0.2, diversity=0.9), commitment=0.4)
    theirs = peer.LFQ(
        dim=6, entropy_loss_weight=0.2, diversity_gamma=0.9, commitment_loss_weight=0.4, codebook_scale=0.5
    )
    x = _rows(3, 50, 6, scale=0.02).requires_grad_()
    result, (expected, indices, loss) = ours(x), theirs(x)
    assert torch.equal(result.values, expected)
    backwards = sum(((indices.long() >> bit) & 1) << (5 - bit) for bit in range(6))
    assert torch.equal(result.codes.indices, backwards)
    assert result.aux_loss.item() == pytest.approx(loss.item(), abs=2e-4)  # the peer cuts logarithms at 1e-5
    (grad,) = torch.autograd.grad(result.aux_loss, x)
    (expected_grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, expected_grad, rtol=0.03, atol=2e-5)


def test_entropy_is_finite_and_has_a_finite_gradient_far_from_zero() -> None:
    layer = LookupFreeQuantizer(20)
    x = _rows(8, 20, scale=1e4).requires_grad_()
    result = layer(x)
    result.aux_loss.backward()
    assert bool(result.aux_loss.isfinite())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert torch.equal(layer.codes_to_values(result.codes), result.values)


@pytest.mark.parametrize("rotated", [False, True])
def test_sim_vq_equals_the_peer(rotated: bool) -> None:
    ours = SimVQ(Codebook(32, 3, init=None), dim=5, gradient=RotationTrick() if rotated else StraightThrough())
    theirs = peer.SimVQ(5, 32, frozen_codebook_dim=3, rotation_trick=rotated)
    theirs.frozen_codebook.copy_(ours.codebook.weight)
    theirs.code_transform.load_state_dict(ours.transform.state_dict())
    x = _rows(4, 20, 5).requires_grad_()
    result, (expected, indices, loss) = ours(x), theirs(x)
    torch.testing.assert_close(result.values, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.codes.indices, indices)
    assert result.aux_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert mse_loss(result.values, x) > 0
    weights = _rows(*x.shape, seed=1)
    grads = torch.autograd.grad((result.values * weights).sum() + result.aux_loss, [x, ours.transform.weight])
    theirs_grads = torch.autograd.grad((expected * weights).sum() + loss, [x, theirs.code_transform.weight])
    torch.testing.assert_close(grads, theirs_grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FiniteScalarQuantizer(()), "at least one feature"),
        (lambda: FiniteScalarQuantizer((8, 1)), r"at least 2 \(one level carries no information\); got \[8, 1\]"),
        (lambda: FiniteScalarQuantizer((2**32, 2**32)), "more than an index of 64 bits"),
        (lambda: LookupFreeQuantizer(64), "from 1 to 63.* got 64"),
        (lambda: LookupFreeQuantizer(4, scale=0.0), "`scale` must be above 0"),
        (lambda: EntropyLoss(temperature=0.0), "`temperature` must be above 0.* got 0.0"),
        (lambda: EntropyLoss(weight=-1.0), "must not be negative"),
        (lambda: EntropyLoss(group_size=17), "`group_size` must be from 1 to 16"),
        (lambda: SimVQ(Codebook(8, 4)), "a single book that stays as it is.* init=KMeans"),
        (lambda: SimVQ(Codebook(8, 4, init=None), dim=0), "`dim` must be at least 1"),
    ],
)
def test_what_no_quantizer_can_be_made_of_is_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()

"""The plain quantizer against a slow one in float64, and what holds in any layout, dtype and number of heads."""

import copy

import pytest
import torch
from torch import Tensor, nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Codes,
    Cosine,
    EmaUpdate,
    GradientUpdate,
    ReplaceDead,
    RotationTrick,
    VectorQuantizer,
)
from tests.oracles.vector_quantizer import SlowVectorQuantizer


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_training_equals_the_slow_quantizer(masked: bool) -> None:
    codebook = Codebook(24, 5, init=None).double()
    layer = VectorQuantizer(codebook, learn=EmaUpdate(decay=0.8), commitment=0.7)
    slow = SlowVectorQuantizer(codebook.weight, decay=0.8, eps=1e-5, commitment=0.7)
    for seed in range(4):
        x_BTF = _rows(3, 20, 5, seed=seed).double().requires_grad_()
        mask = _rows(3, 20, seed=seed) > 0 if masked else torch.ones(3, 20).bool()
        values, (indices, weights), loss = layer(x_BTF, mask=mask if masked else None)
        (grad,) = torch.autograd.grad(loss, x_BTF, retain_graph=True)
        expected, expected_indices, expected_loss, expected_grad = slow.step(
            x_BTF.detach().flatten(0, 1), mask.flatten()
        )
        assert weights is None
        assert torch.equal(indices.flatten(), expected_indices)
        torch.testing.assert_close(values.flatten(0, 1), expected, rtol=1e-12, atol=1e-12)
        assert loss.item() == pytest.approx(expected_loss, rel=1e-6)
        torch.testing.assert_close(grad.flatten(0, 1), expected_grad, rtol=1e-6, atol=1e-12)
        (through,) = torch.autograd.grad((values * x_BTF.detach()).sum(), x_BTF)
        assert torch.equal(through, x_BTF.detach() * mask[..., None])
        torch.testing.assert_close(codebook.weight, slow.codes, rtol=1e-12, atol=1e-12)
    state = copy.deepcopy(layer.state_dict())
    layer.eval()
    _, _, loss = layer(x_BTF)
    assert loss == 0.0
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("num_books", [1, 2])
@pytest.mark.parametrize("assign", [None, Cosine()])
def test_heads_quantize_their_parts_and_codes_invert(num_books: int, assign: Cosine | None) -> None:
    parts = {} if assign is None else {"assign": assign}
    layer = VectorQuantizer(Codebook(16, 3, num_books=num_books), heads=2, channel_axis=1, **parts)
    x = _rows(4, 6, 5, 7)
    mask = _rows(4, 5, 7, seed=1) > -0.5
    layer(x, mask=mask)
    values, codes, _ = layer.eval()(x, mask=mask)
    assert codes.indices.shape == (4, 5, 7, 2)
    assert torch.equal(codes.indices < 0, ~mask[..., None].expand_as(codes.indices))
    assert torch.equal(layer.codes_to_values(codes), values)
    for head in range(2):
        single = VectorQuantizer(Codebook(16, 3, init=None), channel_axis=1, **parts).eval()
        single.codebook.weight.copy_(layer.codebook.books[head % num_books])
        part = single(x[:, 3 * head : 3 * head + 3], mask=mask)
        assert torch.equal(part.codes.indices, codes.indices[..., head])
        assert torch.equal(part.values, values[:, 3 * head : 3 * head + 3])
    assert layer.bits_per_position == 8.0
    if assign is not None:
        lengths = values.unflatten(1, (2, 3)).norm(dim=2)
        torch.testing.assert_close(lengths, mask[:, None].expand_as(lengths).float())


def test_heads_learn_as_quantizers_of_their_own() -> None:
    layer = VectorQuantizer(Codebook(8, 3, num_books=2, init=None), heads=2)
    singles = [VectorQuantizer(Codebook(8, 3, init=None)) for _ in range(2)]
    for single, codes in zip(singles, layer.codebook.books, strict=True):
        single.codebook.weight.copy_(codes)
        single.learner.sums.copy_(codes)
    for seed in range(3):
        x, mask = _rows(50, 6, seed=seed), _rows(50, seed=seed) > 0
        losses = [single(part, mask=mask).aux_loss for single, part in zip(singles, x.split(3, 1), strict=True)]
        torch.testing.assert_close(layer(x, mask=mask).aux_loss, sum(losses) / 2)
    torch.testing.assert_close(layer.codebook.weight, torch.cat([single.codebook.weight for single in singles]))


def test_learnable_codes_follow_the_gradient_of_their_error() -> None:
    layer = VectorQuantizer(Codebook(6, 4, learnable=True, init=None), learn=GradientUpdate(weight=2.0), commitment=0.5)
    x = _rows(40, 4).requires_grad_()
    values, (indices, _), loss = layer(x)
    loss.backward()
    picked = torch.nn.functional.one_hot(indices, 6).float()
    error = (x - values).detach()
    torch.testing.assert_close(layer.codebook.weight.grad, -2 * 2.0 * picked.T @ error / 160)
    torch.testing.assert_close(x.grad, 2 * 0.5 * error / 160)
    assert loss.item() == pytest.approx(2.5 * error.square().mean().item(), rel=1e-5)


def test_the_rotation_trick_turns_gradients_as_the_rotation_of_row_to_code() -> None:
    layer = VectorQuantizer(Codebook(6, 4, init=None).double(), gradient=RotationTrick()).eval()
    x = _rows(30, 4).double().requires_grad_()
    values = layer(x).values
    upstream = _rows(30, 4, seed=1).double()
    (grad,) = torch.autograd.grad(values, x, upstream)
    for row, code, given, found in zip(x.detach(), values.detach(), upstream, grad, strict=True):
        u, q = row / row.norm(), code / code.norm()
        w = (u + q) / (u + q).norm()
        rotation = torch.eye(4).double() - 2 * torch.outer(w, w) + 2 * torch.outer(q, u)
        torch.testing.assert_close(rotation @ u, q)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(4).double())
        torch.testing.assert_close(found, code.norm() / row.norm() * rotation.T @ given)
    zero = torch.zeros(1, 4).double().requires_grad_()
    (grad,) = torch.autograd.grad(layer(zero).values, zero, upstream[:1])
    assert torch.equal(grad, upstream[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_out_as_it_came_in(dtype: torch.dtype) -> None:
    exact = VectorQuantizer(Codebook(64, 8, init=None)).eval()
    x = _rows(200, 8).to(dtype)
    x.requires_grad_()
    expected = exact(x.detach().float())
    values, codes, _ = exact(x)
    assert values.dtype == dtype
    assert torch.equal(codes.indices, expected.codes.indices)
    assert (values.float() - expected.values).abs().max() <= torch.finfo(dtype).eps / 2 * expected.values.abs().max()
    values.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact(x).codes.indices, expected.codes.indices)
    halved = copy.deepcopy(exact).to(dtype)
    again = halved(x)
    assert torch.equal(halved.codes_to_values(again.codes), again.values)
    trained = copy.deepcopy(exact).to(dtype).train()
    trained(x).aux_loss.backward()
    assert torch.isfinite(trained.codebook.weight).all()


def test_dead_codes_start_again_at_rows_and_others_stay() -> None:
    for learnable in (False, True):
        codebook = Codebook(40, 4, init=None, learnable=learnable)
        with torch.no_grad():
            codebook.weight[8:] += 100.0
        part = (GradientUpdate if learnable else EmaUpdate)(decay=0.5, replace=ReplaceDead(threshold=0.2))
        layer = VectorQuantizer(
            codebook, learn=part, assign=Cosine() if learnable else VectorQuantizer(codebook).assign
        )
        x = _rows(60, 4)
        mask = torch.arange(60) < 50
        loss = None
        for _ in range(8):
            loss = layer(x, mask=mask).aux_loss
        assert loss is not None
        if learnable:
            loss.backward()
        used = layer.eval()(x, mask=mask).codes.indices[mask]
        assert len(used.unique()) >= 38
        rows = layer.assign.prepare(x)
        if learnable:
            assert ((layer.codebook.weight[8:, None] - rows[mask]).abs().amax(2).amin(1) < 1e-6).all()
    assert torch.equal(layer.learner.steps, torch.tensor(8))


def test_codes_without_use_stay_where_they_are() -> None:
    layer = VectorQuantizer(Codebook(4, 3, init=None), learn=EmaUpdate(decay=0.5))
    far = torch.full((3,), 50.0)
    layer.codebook.weight[3] = far
    layer.learner.sums[3] = far
    for seed in range(60):
        layer(_rows(20, 3, seed=seed))
    assert layer.learner.counts[3] < 1e-9
    torch.testing.assert_close(layer.codebook.weight[3], far, rtol=0.02, atol=0.0)


def test_one_state_and_batch_give_one_outcome() -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        layer = VectorQuantizer(Codebook(32, 4), learn=EmaUpdate(replace=ReplaceDead()))
        for step in range(3):
            layer(_rows(100, 4, seed=step))
        states.append(layer.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_an_encoder_with_default_settings_keeps_its_codes_in_use() -> None:
    torch.manual_seed(0)
    x = _rows(512, 6) @ _rows(6, 12, seed=1)
    for learnable in (False, True):
        encoder, decoder = nn.Linear(12, 4), nn.Linear(4, 12)
        layer = VectorQuantizer(Codebook(64, 4, learnable=learnable))
        optimizer = torch.optim.Adam((*encoder.parameters(), *decoder.parameters(), *layer.parameters()), lr=1e-2)
        for _ in range(300):
            values, _, aux_loss = layer(encoder(x))
            loss = (decoder(values) - x).square().mean() + aux_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shares = torch.bincount(layer.eval()(encoder(x)).codes.indices, minlength=64) / 512
        assert (shares > 0).sum() >= 60
        assert torch.exp(-torch.special.xlogy(shares, shares).sum()) > 0.6 * 64


def test_what_does_not_fit_gets_a_sentence() -> None:
    layer = VectorQuantizer(Codebook(4, 3), heads=2, channel_axis=1)
    with pytest.raises(ValueError, match=r"6 features at axis 1; got 5 .*\(2, 5, 6\)\. Axis 2 has 6"):
        layer(torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match=r"position \(0, 3\) is not finite: feature 2 is inf"):
        layer(
            torch.zeros(2, 6, 5)
            .index_fill_(2, torch.tensor([3]), 0)
            .index_put_(tuple(torch.tensor([[0], [2], [3]])), torch.tensor(torch.inf))
        )
    with pytest.raises(ValueError, match="`num_books=2`, one for each"):
        VectorQuantizer(Codebook(4, 3, num_books=3), heads=2)
    with pytest.raises(ValueError, match="must not be negative"):
        VectorQuantizer(Codebook(4, 3), commitment=-1.0)
    with pytest.raises(ValueError, match="made with `learnable=True`"):
        VectorQuantizer(Codebook(4, 3, learnable=True), learn=EmaUpdate())
    with pytest.raises(ValueError, match="made with `learnable=False`"):
        VectorQuantizer(Codebook(4, 3), learn=GradientUpdate())
    with pytest.raises(ValueError, match=r"axis of 2 at the end; got shape \(5,\)"):
        layer.codes_to_values(Codes(torch.zeros(5).long()))
    with pytest.raises(ValueError, match="these codes have weights"):
        layer.codes_to_values(Codes(torch.zeros(5, 2).long(), torch.ones(5, 2)))
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\)"):
        EmaUpdate(decay=1.0)
    with pytest.raises(ValueError, match="`threshold` must be above 0"):
        ReplaceDead(threshold=0.0)

"""DiVeQ, Gumbel and the numbers that they draw."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam

from featherlight.nn.vector_quantizers import Codebook, DiVeQ, GumbelQuantizer, VectorQuantizer, noise
from featherlight.nn.vector_quantizers.noise import NoiseStream
from tests.oracles.philox import philox as slow_philox


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_are_those_of_the_slow_generator() -> None:
    stream = NoiseStream(3 + (5 << 32))
    stream.uniform(1, 1)
    drawn = stream.uniform(3, 6)
    for row in range(3):
        words = [word for block in range(2) for word in slow_philox((block, row, 0, 1), (3, 5))][:6]
        expected = [((word >> 9) + 0.5) / 2**23 for word in words]
        assert drawn[row].tolist() == expected
    assert stream.draws == 2


def test_a_row_is_the_same_in_any_batch_and_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NoiseStream(1).normal(40, 7)
    assert torch.equal(NoiseStream(1).normal(20, 7), whole[:20])
    monkeypatch.setattr(noise, "num_processes", lambda: 2)
    monkeypatch.setattr(noise.dist, "get_rank", lambda: 1)
    assert torch.equal(NoiseStream(1).normal(20, 7), whole[20:])
    monkeypatch.setattr(noise, "_BLOCKS_AT_ONCE", 16)
    assert torch.equal(NoiseStream(1).normal(20, 7), whole[20:])


def test_numbers_have_their_distributions() -> None:
    normal, gumbel = NoiseStream(0).normal(2000, 51).double(), NoiseStream(1).gumbel(2000, 50).double()
    assert normal.shape == (2000, 51)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert (normal**4).mean().item() == pytest.approx(3, abs=0.1)
    assert (normal[:, :25] * normal[:, 26:]).mean().item() == pytest.approx(0, abs=0.02)
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert gumbel.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert bool(gumbel.isfinite().all())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_diveq_without_noise_equals_the_peer(training: bool) -> None:
    layer = DiVeQ(Codebook(16, 4, learnable=True, init=None), noise_std=0.0).train(training)
    x = _rows(3, 20, 4).requires_grad_()
    values, (indices, _), loss = layer(x)
    expected = directional_reparam(x, layer.codebook.weight[indices], noise_variance=0.0)
    assert torch.equal(values.detach(), layer.codebook.weight[indices])
    assert loss == 0.0
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    weights = _rows(*x.shape, seed=1)
    grads = torch.autograd.grad((values * weights).sum(), [x, layer.codebook.weight])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, layer.codebook.weight])
    torch.testing.assert_close(grads, theirs, rtol=1e-4, atol=1e-5)
    assert bool((grads[1] != 0).any())


def test_noise_turns_the_error_and_keeps_its_length() -> None:
    layer = DiVeQ(Codebook(16, 8, learnable=True, init=None), noise_std=0.05, seed=3)
    x = _rows(200, 8)
    drawn = NoiseStream(3).normal(200, 8)
    values, (indices, _), _ = layer(x)
    error = layer.codebook.weight[indices] - x
    expected = x + F.normalize(error + 0.05 * drawn, dim=-1) * error.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((values - x).norm(dim=-1), error.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(values, layer(x).values, atol=1e-3)


def test_a_vector_on_its_code_has_a_finite_gradient() -> None:
    layer = DiVeQ(Codebook(4, 3, learnable=True, init=None), noise_std=0.0)
    x = layer.codebook.weight.detach().clone().requires_grad_()
    layer(x).values.square().sum().backward()
    assert x.grad is not None
    assert layer.codebook.weight.grad is not None
    assert torch.equal(x.grad, 2 * x.detach())
    assert bool(layer.codebook.weight.grad.isfinite().all())


def test_diveq_learns_its_codes_from_the_loss_of_the_task_alone() -> None:
    x = _rows(512, 4)
    layer = DiVeQ(Codebook(16, 4, learnable=True, init=None))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    errors = []
    for _ in range(60):
        loss = F.mse_loss(layer(x).values, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.75 * errors[0]


def _gumbel(**options: Any) -> GumbelQuantizer:
    layer = GumbelQuantizer(Codebook(6, 4, learnable=True, init=None), seed=2, **options)
    with torch.no_grad():
        layer.to_scores.weight.copy_(_rows(6, 4, seed=1))
        layer.codebook.weight.copy_(_rows(6, 4, seed=2))
    return layer


def test_gumbel_is_the_soft_draw_made_hard() -> None:
    layer = _gumbel(temperature=0.6, divergence=0.3)
    x = _rows(50, 4).requires_grad_()
    values, (indices, _), loss = layer(x)
    scores = layer.to_scores(x)
    drawn = scores + NoiseStream(2).gumbel(50, 6)
    soft = torch.softmax(drawn / 0.6, -1)
    hard = F.one_hot(drawn.argmax(-1), 6) + (soft - soft.detach())
    expected = hard @ layer.codebook.weight
    shares = torch.softmax(scores, -1)
    expected_loss = 0.3 * (shares * (shares * 6).log()).sum(-1).mean()
    assert torch.equal(indices, drawn.argmax(-1))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-7)
    inputs = [x, *layer.parameters()]
    weights = _rows(50, 4, seed=5)
    grads = torch.autograd.grad((values * weights).sum() + loss, inputs)
    torch.testing.assert_close(
        grads, torch.autograd.grad((expected * weights).sum() + expected_loss, inputs), rtol=1e-4, atol=1e-5
    )


def test_codes_are_drawn_as_often_as_their_scores_say_at_any_temperature() -> None:
    for temperature in (0.1, 2.0):
        layer = _gumbel(temperature=temperature)
        x = _rows(1, 4).expand(20_000, 4)
        shares = torch.softmax(layer.to_scores(x[0]), -1)
        drawn = layer(x).codes.indices.bincount(minlength=6) / 20_000
        torch.testing.assert_close(drawn, shares, rtol=0, atol=0.02)
        assert bool((layer.eval()(x).codes.indices == shares.argmax()).all())


def test_the_temperature_can_be_lowered_and_is_saved() -> None:
    layer, other = _gumbel(), _gumbel()
    layer.set_temperature(0.25)
    other.load_state_dict(layer.state_dict())
    assert other.temperature == 0.25
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`temperature` must be above 0 and finite"):
            layer.set_temperature(wrong)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DiVeQ(Codebook(8, 4, learnable=True, init=None)), "other random numbers than before"),
        (_gumbel, "other random numbers than before"),
        (lambda: VectorQuantizer(Codebook(8, 4, init=None)), "other codes than before"),
        (lambda: VectorQuantizer(Codebook(8, 4, learnable=True)), "other codes than before"),
    ],
)
def test_what_changes_in_each_step_is_not_computed_twice(make, sentence: str, reentrant: bool) -> None:
    layer = make()
    x = _rows(5, 4).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        values, _, aux_loss = layer(x)
        return values.square().sum() + aux_loss

    result = checkpoint(loss, x, use_reentrant=reentrant)
    with pytest.raises(ValueError, match=rf"{sentence}.*Leave the quantizer out of `torch.utils.checkpoint`"):
        result.backward()
    layer.eval()
    checkpoint(loss, x, use_reentrant=reentrant).backward()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DiVeQ(Codebook(8, 4)), "`codebook` must be learnable.* learnable=False"),
        (lambda: DiVeQ(Codebook(8, 4, learnable=True, num_books=2)), "a single book; got .*num_books=2"),
        (lambda: DiVeQ(Codebook(8, 4, learnable=True), noise_std=-0.1), "`noise_std` must not be negative"),
        (lambda: DiVeQ(Codebook(8, 4, learnable=True), seed=-1), "`seed` must fit in 64 bits"),
        (lambda: GumbelQuantizer(Codebook(8, 4, learnable=True)), "`init=None`"),
        (lambda: GumbelQuantizer(Codebook(8, 4, init=None)), "learnable=False"),
        (lambda: _gumbel(temperature=0.0), "`temperature` must be above 0"),
        (lambda: _gumbel(divergence=-1.0), "`divergence` must not be negative"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()

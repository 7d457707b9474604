"""Neural ODEs against solutions in closed form, finite differences, and what they say to bad input."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from featherlight.nn.implicit import Adjoint, Direct, DormandPrince, IntegrationError, ODELayer, RungeKutta4
from featherlight.solvers import Status

F = 3
PARTS = {
    "adjoint": (DormandPrince(relative_tolerance=1e-9, absolute_tolerance=1e-10), Adjoint()),
    "direct": (DormandPrince(), Direct()),
    "equal steps": (RungeKutta4(steps=60), Direct()),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """dx/dt = x A^T + u."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(normal(F, F))

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return x @ self.a.T + u


class Growing(nn.Module):
    """dx/dt = x^2, which ends at t = 1 / x."""

    def forward(self, t: Tensor, x: Tensor, *inputs: Tensor) -> Tensor:
        return x * x


def in_closed_form(a: Tensor, x: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """By the exponential of the system with u as constant states."""
    whole = torch.cat((torch.cat((a, torch.eye(F).double()), 1), torch.zeros(F, 2 * F).double()))
    return torch.cat((x, u), 1) @ torch.matrix_exp(t * whole).T[:, :F]


@pytest.mark.parametrize("name", PARTS)
def test_a_linear_equation_and_its_gradients_are_those_of_the_exponential(name: str) -> None:
    method, gradient = PARTS[name]
    layer = ODELayer(Linear(), method=method, gradient=gradient)
    times = torch.tensor([0.5, 0.2, -0.7], dtype=torch.float64)
    x, u = normal(4, F, seed=1).requires_grad_(), normal(4, F, seed=2).requires_grad_()
    weight = normal(4, F, seed=3)
    found = layer(x, u * 1, times=times)
    expected = [in_closed_form(layer.f.a, x, u, t - times[0]) for t in times]
    torch.testing.assert_close(found.states, torch.stack(expected), atol=1e-7, rtol=1e-7)
    assert torch.equal(found.values, found.states[-1])
    assert found.evaluations > 10
    tensors = (x, u, layer.f.a)
    loss, exact = (((s[1] + s[2]) * weight).sum() for s in (found.states, expected))
    for ours, theirs in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(exact, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


class Net(nn.Module):
    """Not linear, and with a time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(normal(2, 2))

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(x @ self.w * (1 + t) + u)


def test_gradients_through_the_steps_equal_finite_differences_twice() -> None:
    layer = ODELayer(Net(), method=RungeKutta4(steps=3), gradient=Direct())
    inputs = normal(2, 2, seed=1).requires_grad_(), normal(2, 2, seed=2).requires_grad_(), layer.f.w

    def call(x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"f.w": w}, (x, u)).values

    assert gradcheck(call, inputs, eps=1e-6, atol=1e-8, rtol=0)
    assert gradgradcheck(call, inputs, eps=1e-6, atol=1e-6, rtol=0, fast_mode=True)


def test_the_adjoint_says_that_it_has_no_second_derivatives() -> None:
    layer, x = ODELayer(Net(), method=RungeKutta4(steps=3)), normal(2, 2)
    with pytest.raises(ValueError, match=r"Adjoint\(\) has no second derivatives; use .*Direct\(\)"):
        torch.autograd.grad(layer(x, x).values.sum(), layer.f.w, create_graph=True)


def test_broken_and_growing_samples_are_named_and_the_others_not_touched() -> None:
    layer = ODELayer(Linear())
    x, u = normal(4, F), normal(4, F, seed=1)
    x[1, 2], u[3, 0] = float("nan"), float("inf")
    with pytest.raises(IntegrationError, match=r"nan or inf for samples 1, 3 \(2 of 4\)"):
        layer(x, u)
    found = layer.attempt(x, u)
    assert found.statuses.tolist() == [0, Status.BROKEN_INPUT, 0, Status.BROKEN_INPUT]
    torch.testing.assert_close(found.values[[0, 2]], layer(x[[0, 2]], u[[0, 2]]).values, atol=1e-8, rtol=1e-8)
    assert found.values[[1, 3]].isnan().all()
    found.values[[0, 2]].sum().backward()
    assert layer.f.a.grad.isfinite().all()
    growing, x = ODELayer(Growing(), method=DormandPrince(max_steps=60)), torch.tensor([[0.5], [2.0]])
    with pytest.raises(IntegrationError, match=r"stopped \(.*\) for samples 0, 1.*stiff or grow"):
        growing(x)
    assert growing.attempt(x).statuses.tolist() == [Status.STEPS_EXHAUSTED] * 2
    fixed = ODELayer(Growing(), method=RungeKutta4(steps=50))
    with pytest.raises(IntegrationError, match=r"left the range of torch.float32 for sample 1 \(1 of 2\)"):
        fixed(x)
    tried = fixed.attempt(x)
    assert tried.statuses.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert float(tried.values[0]) == pytest.approx(1.0, rel=1e-4)


def test_no_samples_and_autocast() -> None:
    layer, x = ODELayer(Linear()).float(), normal(2, F).float()
    assert layer(torch.zeros(0, F), torch.zeros(0, F)).values.shape == (0, F)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x, x)
    assert torch.equal(cast.values, layer(x, x).values)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda f: ODELayer(f)(torch.zeros(3)), r"\(samples, ...\).*got \(3,\)"),
        (lambda f: ODELayer(f)(torch.zeros(3, 0)), r"at least one number a sample; got \(3, 0\)"),
        (lambda f: ODELayer(f)(torch.zeros(3, 1), torch.zeros(2, 1)), r"the start's 3 samples.*got \(2, 1\)"),
        (
            lambda f: ODELayer(f)(torch.zeros(3, 1), times=torch.tensor([0.0, 1.0, 1.0])),
            r"all rising or all falling; got",
        ),
        (lambda f: ODELayer(f)(torch.zeros(3, 1), times=torch.tensor(1.0)), r"`times` must be at least 2.*got 1\.0"),
        (lambda f: DormandPrince(relative_tolerance=0.0), r"`relative_tolerance` must be in \(0, 1\)"),
        (lambda f: RungeKutta4(steps=0), r"`steps` must be at least 1"),
    ],
)
def test_bad_input_gets_a_sentence(call: Callable[[nn.Module], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(Growing())


def test_a_wrong_shape_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x[:, :1]

    with pytest.raises(ValueError, match=r"`f` must return.*\(3, 2\) torch.float32; it returned \(3, 1\)"):
        ODELayer(Narrow())(torch.zeros(3, 2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"torchdiffeq, which is not installed.*featherlight\[ode\]"):
        ODELayer(Narrow())

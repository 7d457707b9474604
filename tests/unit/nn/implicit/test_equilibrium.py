"""Fixed points of modules: gradients of both orders, vmap, failures, and the Jacobian penalty."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from featherlight.nn.implicit import Equilibrium, JacobianFree, Phantom, Unrolled
from featherlight.solvers import Anderson, Broyden, FixedPointError, Picard, Status


class Block(nn.Module):
    """A small convolution with normalisation, and features injected."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.GroupNorm(1, 2)
        self.outer = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.norm(self.inner(x)) + self.outer(u))


class Dense(nn.Module):
    """tanh(x W + u), with the weight's spectral norm given."""

    def __init__(self, size: int, norm: float) -> None:
        super().__init__()
        weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.weight = nn.Parameter(weight * norm / torch.linalg.matrix_norm(weight, 2))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight + u)


def block() -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block().double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_function(layer: nn.Module, start: Tensor) -> tuple[Callable[..., Tensor], list[Tensor]]:
    names = [name for name, _ in layer.named_parameters()]

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, state, (u,), {"start": start}).values

    return call, [p.detach().clone().requires_grad_() for p in layer.parameters()]


@pytest.mark.parametrize("gradient", [None, Phantom(steps=40, damping=1.0), Unrolled(steps=40)])
def test_gradients_equal_finite_differences(gradient: Phantom | Unrolled | None) -> None:
    start = torch.zeros(2, 2, 3, 2, dtype=torch.float64)
    call, parameters = as_function(Equilibrium(block(), gradient=gradient), start)
    u = normal(2, 1, 3, 2).requires_grad_()
    assert gradcheck(call, (u, *parameters), eps=1e-6, atol=1e-8, rtol=0, fast_mode=True)
    assert gradgradcheck(call, (u, *parameters), eps=1e-6, atol=1e-6, rtol=0, fast_mode=True)


def test_a_third_derivative_is_exact_too() -> None:
    layer = Equilibrium(Dense(3, 0.6))
    start = torch.zeros(1, 3, dtype=torch.float64)

    def value(u: Tensor) -> Tensor:
        return layer(u, start=start).values.pow(2).sum()

    u, direction = normal(1, 3), normal(1, 3, seed=1)

    def along(t: Tensor) -> Tensor:
        return value(u + t * direction)

    second = torch.func.grad(torch.func.grad(along))
    zero, h = torch.zeros((), dtype=torch.float64), 1e-5
    slope = (second(zero + h) - second(zero - h)) / (2 * h)
    torch.testing.assert_close(torch.func.grad(second)(zero), slope, atol=1e-7, rtol=1e-6)


def test_jacobian_free_is_one_application() -> None:
    f, u = block(), normal(2, 1, 3, 2)
    start = torch.zeros(2, 2, 3, 2, dtype=torch.float64)
    layer = Equilibrium(f, gradient=JacobianFree())
    found = layer(u, start=start)
    ours = torch.autograd.grad(found.values.sum(), list(f.parameters()))
    expected = torch.autograd.grad(f(found.states.detach(), u).sum(), list(f.parameters()))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_vmap_over_inputs_and_over_an_ensemble() -> None:
    models = [Equilibrium(Dense(4, norm)) for norm in (0.3, 0.6, 0.9)]
    start, u = torch.zeros(2, 4, dtype=torch.float64), normal(3, 2, 4)
    stacked, _ = torch.func.stack_module_state(models)

    def loss(parameters: dict[str, Tensor], u: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], parameters, (u,), {"start": start}).values.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0))(stacked, u)
    by_input = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, 0))(
        dict(models[1].named_parameters()), u
    )
    for i, model in enumerate(models):
        loss_ = model(u[i], start=start).values.square().sum()
        torch.testing.assert_close(ours["f.weight"][i], torch.autograd.grad(loss_, model.f.weight)[0])
        one = torch.func.grad(loss, argnums=1)(dict(models[1].named_parameters()), u[i])
        torch.testing.assert_close(by_input[i], one)


def test_a_sample_that_does_not_converge_has_a_status_and_no_gradient() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return self.rate * u * x + 1

    layer = Equilibrium(Growing(), solver=Picard())
    u, start = torch.tensor([[0.5], [3.0], [-0.5]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(FixedPointError, match=r"sample 1 \(1 of 3\)"):
        layer(u, start=start)
    found = layer.attempt(u, start=start)
    assert found.statuses.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    found.values[[0, 2]].sum().backward()
    expected = 0.5 / 0.5**2 - 0.5 / 1.5**2
    assert float(layer.f.rate.grad) == pytest.approx(expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_sample_is_named_and_does_not_reach_gradients(broken: float) -> None:
    layer, u = Equilibrium(block()), normal(3, 1, 3, 2)
    start = torch.zeros(3, 2, 3, 2, dtype=torch.float64)
    harmed = u.clone()
    harmed[1, 0, 2, 1] = broken
    if broken != broken:
        with pytest.raises(FixedPointError, match=r"nan or inf at its first evaluation for sample 1 \(1 of 3\)"):
            layer(harmed, start=start)
    found = layer.attempt(harmed, start=start)
    assert found.statuses.tolist() == [Status.CONVERGED, Status.BROKEN_INPUT, Status.CONVERGED]
    assert found.values[1].isnan().all()
    gradients = torch.autograd.grad(found.values[[0, 2]].square().sum(), list(layer.parameters()))
    alone = layer(u[[0, 2]], start=start[[0, 2]]).values
    torch.testing.assert_close(found.values[[0, 2]], alone)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(alone.square().sum(), list(layer.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_gradient_that_is_not_found_is_an_error() -> None:
    layer = Equilibrium(Dense(6, 0.99), backward_solver=Picard(max_steps=2))
    found = layer(normal(2, 6) * 0.01, start=torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(FixedPointError, match="after 2 steps"):
        found.values.sum().backward()


def test_the_jacobian_penalty_is_the_frobenius_norm_and_shortens_the_search() -> None:
    layer, u = Equilibrium(Dense(5, 0.9), solver=Picard()), normal(3, 5)
    start = torch.zeros(3, 5, dtype=torch.float64)
    states = layer(u, start=start).states.detach()
    jacobian = torch.func.vmap(torch.func.jacrev(layer.f))(states[:, None], u[:, None])
    exact = float(jacobian.detach().square().sum() / 15)
    generator = torch.Generator().manual_seed(0)
    found = layer.jacobian_penalty(states, u, generator=generator, num_probes=3000)
    assert float(found.detach()) == pytest.approx(exact, rel=0.05)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        found = layer(u, start=start)
        layer.jacobian_penalty(found.states, u, generator=generator).backward()
        optimizer.step()
    before, after = Dense(5, 0.9), layer.f
    steps = [int(Picard()(lambda x, f=f: f(x, u), start).steps.max()) for f in (before, after)]
    assert steps[1] < steps[0]


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Picard()])
def test_a_warm_start_ends_at_once(solver: Anderson | Broyden | Picard) -> None:
    layer, u = Equilibrium(block(), solver=solver), normal(2, 1, 3, 2)
    first = layer(u, start=torch.zeros(2, 2, 3, 2, dtype=torch.float64))
    again = layer(u, start=first.states)
    torch.testing.assert_close(again.values, first.values, atol=1e-11, rtol=0)


def test_autocast_does_not_reach_the_map() -> None:
    layer, u = Equilibrium(block().float()), normal(2, 1, 3, 2).float()
    start = torch.zeros(2, 2, 3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(u, start=start)
    assert torch.equal(cast.values, layer(u, start=start).values)


def test_whole_number_inputs_are_handed_through() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return torch.tanh(0.5 * x + self.table(index))

    layer = Equilibrium(Embedded())
    layer(torch.tensor([1, 4]), start=torch.zeros(2, 3)).values.sum().backward()
    assert layer.f.table.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("part", [nn.BatchNorm2d(2), nn.Dropout(0.1)])
def test_a_map_that_changes_from_call_to_call_is_refused(part: nn.Module) -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * self.part(x)

    layer = Equilibrium(Changing())
    with pytest.raises(ValueError, match=rf"module `part` of the map is a {type(part).__name__} in training mode"):
        layer(start=torch.ones(2, 2, 3, 3))
    assert layer.eval()(start=torch.ones(2, 2, 3, 3)).values.shape == (2, 2, 3, 3)


def test_bad_input_gets_a_sentence() -> None:
    layer = Equilibrium(Dense(4, 0.5))
    with pytest.raises(ValueError, match=r"it returned \(2, 4\)"):
        layer(torch.zeros(2, 4).double(), start=torch.zeros(1, 4).double())
    with pytest.raises(ValueError, match=r"`num_probes` must be at least 1"):
        layer.jacobian_penalty(torch.zeros(2, 4), torch.zeros(2, 4), generator=torch.Generator(), num_probes=0)

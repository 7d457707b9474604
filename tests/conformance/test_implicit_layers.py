"""One contract for every well-posedness map, solver and gradient of the implicit layer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from featherlight.nn import implicit
from featherlight.nn.implicit import (
    ELU,
    RELU,
    SIGMOID,
    TANH,
    Activation,
    GradientMode,
    ImplicitDifferentiation,
    ImplicitLayer,
    IteratedWellPosedness,
    JacobianFree,
    MonotoneOperator,
    Phantom,
    RowProjection,
    RowRescaling,
    StrictlyTriangular,
    Unconstrained,
    Unrolled,
    leaky_relu,
)
from featherlight.solvers import Anderson, Broyden, FixedPointError, FixedPointSolver, Picard, Status

STATES, INPUTS, OUTPUTS, SAMPLES = 5, 3, 2, 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """Parts that go together.

    Attributes:
        well_posed: where A comes from.
        activation: phi.
        solver: None as the layer chooses.
        gradient: None as the layer chooses.
        exact: whether gradients are exact to rounding.
    """

    well_posed: IteratedWellPosedness | StrictlyTriangular
    activation: Activation = RELU
    solver: FixedPointSolver | None = None
    gradient: GradientMode | None = None
    exact: bool = True


TABLE: dict[str, Row] = {
    "projection": Row(well_posed=RowProjection()),
    "projection, Picard": Row(well_posed=RowProjection(), solver=Picard(), activation=TANH),
    "projection, Broyden": Row(well_posed=RowProjection(), solver=Broyden(), activation=leaky_relu(0.1)),
    "rescaling": Row(well_posed=RowRescaling(), activation=ELU),
    "monotone operator": Row(well_posed=MonotoneOperator(margin=0.5)),
    "monotone operator, Anderson": Row(well_posed=MonotoneOperator(), solver=Anderson(memory=6), activation=SIGMOID),
    "unconstrained": Row(well_posed=Unconstrained(), activation=SIGMOID),
    "triangular": Row(well_posed=StrictlyTriangular(block_sizes=(2, 1, 2)), activation=TANH),
    "triangular, ReLU": Row(well_posed=StrictlyTriangular(block_sizes=(1,) * STATES)),
    "Jacobian-free": Row(well_posed=RowProjection(), gradient=JacobianFree(), exact=False),
    "phantom of many steps": Row(well_posed=RowProjection(bound=0.5), gradient=Phantom(steps=60, damping=1.0)),
    "phantom": Row(well_posed=RowProjection(), gradient=Phantom(), exact=False),
    "unrolled of many steps": Row(well_posed=RowProjection(bound=0.5), gradient=Unrolled(steps=60)),
    "implicit differentiation": Row(well_posed=RowRescaling(), gradient=ImplicitDifferentiation()),
}
ROWS = pytest.mark.parametrize("name", TABLE)
EXACT = pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.exact])


def make(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> ImplicitLayer:
    row = TABLE[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = ImplicitLayer(
            STATES,
            INPUTS,
            OUTPUTS,
            activation=row.activation,
            solver=row.solver,
            gradient=row.gradient,
            well_posed=row.well_posed,
        )
    return layer.to(dtype)


def inputs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, INPUTS, generator=generator, dtype=torch.float64).to(dtype)


def as_function(layer: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Its values as a function of inputs and parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (u,)).values

    return call, [p.detach().clone().requires_grad_() for p in layer.parameters()]


def test_every_part_has_a_row() -> None:
    used = {type(part) for row in TABLE.values() for part in (row.well_posed, row.gradient) if part is not None}
    parts = {
        value
        for value in vars(implicit).values()
        if isinstance(value, type)
        and not getattr(value, "_is_protocol", False)
        and ("parameters_of" in vars(value) or ("states" in vars(value) and value.__module__.endswith(".gradients")))
    }
    assert parts <= used | {implicit.Sensitivity}


@ROWS
def test_the_states_solve_their_equation_and_values_read_them_out(name: str) -> None:
    layer, u = make(name), inputs(2, SAMPLES)
    values, states, residuals, statuses = layer(u)
    b = u @ layer.B.T
    torch.testing.assert_close(layer.activation(states @ layer.A.T + b), states, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(values, states @ layer.C.T + u @ layer.D.T)
    assert residuals.shape == statuses.shape == (2, SAMPLES)
    assert (statuses == Status.CONVERGED).all()


@EXACT
def test_gradients_equal_finite_differences_through_the_map_of_well_posedness(name: str) -> None:
    """Parameters of A, B, C, D and the inputs; for double backward the same of the gradients."""
    call, parameters = as_function(make(name))
    u = inputs(2).requires_grad_()
    assert gradcheck(call, (u, *parameters), eps=1e-6, atol=1e-8, rtol=0)
    assert gradgradcheck(call, (u, *parameters), eps=1e-6, atol=1e-6, rtol=0, fast_mode=True)


@ROWS
def test_inexact_gradients_still_descend(name: str) -> None:
    layer, u = make(name), inputs(64)
    target = torch.sin(inputs(64, seed=5)[:, :OUTPUTS])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (layer(u).values - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@ROWS
def test_vmap_over_inputs_and_over_an_ensemble(name: str) -> None:
    layer, u = make(name), inputs(3, SAMPLES)
    mapped = torch.func.vmap(lambda u: layer(u).values)(u)
    torch.testing.assert_close(mapped, torch.stack([layer(each).values for each in u]))
    layers = [make(name, seed=seed) for seed in range(3)]
    stacked, _ = torch.func.stack_module_state(layers)

    def loss(parameters: dict[str, Tensor], u: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (u,)).values.square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, u[0])
    for i, each in enumerate(layers):
        each.zero_grad()
        each(u[0]).values.square().sum().backward()
        for parameter_name, parameter in each.named_parameters():
            torch.testing.assert_close(gradients[parameter_name][i], parameter.grad, atol=1e-9, rtol=1e-9)


@ROWS
def test_autocast_keeps_the_states_in_full_precision(name: str) -> None:
    layer, u = make(name, dtype=torch.float32), inputs(SAMPLES, dtype=torch.float32)
    plain = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(u)
        loss = cast.values.float().sum()
    assert torch.equal(cast.states, plain.states)
    assert cast.values.dtype == torch.bfloat16
    loss.backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    layer(u).values.sum().backward()
    for ours, parameter in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=0.03, rtol=0.03)


@ROWS
def test_a_deep_copy_shares_nothing(name: str) -> None:
    layer, u = make(name), inputs(SAMPLES)
    other = copy.deepcopy(layer)
    before = layer(u).values
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(layer(u).values, before)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(u).values, before)


@pytest.mark.parametrize("name", ["projection", "triangular", "Jacobian-free"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own tracing
def test_the_surrounding_model_compiles(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(6, INPUTS)
            self.implicit = make(name, dtype=torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return torch.log_softmax(self.implicit(torch.relu(self.into(x))).values, -1)

    model, x = Model(), inputs(SAMPLES, dtype=torch.float32)
    x = torch.cat((x, x), 1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch._dynamo.reset()
    whole = torch.compile(model, backend="eager", fullgraph=True)
    if isinstance(TABLE[name].well_posed, StrictlyTriangular):
        torch.testing.assert_close(whole(x), model(x))
    else:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="solver's steps depends on values"):
            whole(x)


@ROWS
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_sample_is_named_and_others_and_their_gradients_are_not_touched(name: str, broken: float) -> None:
    layer, u = make(name), inputs(SAMPLES)
    harmed = u.clone()
    harmed[2, 1] = broken
    others = [i for i in range(SAMPLES) if i != 2]
    tried = layer.attempt(harmed)
    assert tried.statuses.tolist() == [Status.BROKEN_INPUT if i == 2 else Status.CONVERGED for i in range(SAMPLES)]
    assert torch.equal(tried.values[others], layer(u).values[others])
    assert tried.values[2].isnan().all()
    tried.values[others].square().sum().backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    layer(u[others]).values.square().sum().backward()
    for ours, parameter in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
    harmed[2, 1] = float("nan")
    if isinstance(TABLE[name].well_posed, StrictlyTriangular) or isinstance(TABLE[name].gradient, Unrolled):
        found = layer(harmed)
        assert found.values[2].isnan().any()
        assert (found.statuses != Status.CONVERGED).tolist() == [False, False, True, False]
    else:
        with pytest.raises(FixedPointError, match=r"sample 2 \(1 of 4\)"):
            layer(harmed)


@ROWS
def test_from_matrices_gives_the_matrices_back(name: str) -> None:
    layer, row = make(name), TABLE[name]
    matrices = [m.detach() for m in (layer.A, layer.B, layer.C, layer.D)]
    again = ImplicitLayer.from_matrices(
        *matrices,
        activation=row.activation,
        solver=row.solver,
        gradient=row.gradient,
        well_posed=row.well_posed,
    )
    torch.testing.assert_close(again.A, layer.A, atol=1e-12, rtol=1e-12)
    u = inputs(SAMPLES)
    torch.testing.assert_close(again(u).values, layer(u).values, atol=1e-10, rtol=1e-10)
    again.project_()
    torch.testing.assert_close(again.A, layer.A, atol=1e-12, rtol=1e-12)


@ROWS
def test_no_samples_and_one_sample(name: str) -> None:
    layer = make(name)
    assert layer(inputs(0)).values.shape == (0, OUTPUTS)
    assert layer(inputs()).values.shape == (OUTPUTS,)
    layer(inputs(0)).values.sum().backward()

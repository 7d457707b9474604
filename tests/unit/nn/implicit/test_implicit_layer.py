"""The implicit layer: well-posed sets, triangular models, warm starts, and what it says to bad input."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from featherlight.nn.implicit import (
    RELU,
    TANH,
    Activation,
    ImplicitLayer,
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
from featherlight.solvers import Anderson, FixedPointError, Picard, Status


@pytest.fixture(autouse=True)
def _same_initial_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", [RELU, TANH])
def test_substitution_equals_picard(activation: Activation) -> None:
    sizes = (40, 1, 25, 34)
    free = ImplicitLayer(100, 7, 3, well_posed=StrictlyTriangular(block_sizes=sizes), activation=activation).double()
    matrices = [m.detach() for m in (free.A, free.B, free.C, free.D)]
    iterated = ImplicitLayer.from_matrices(
        *matrices, activation=activation, solver=Picard(tolerance=1e-15), well_posed=Unconstrained()
    )
    u = normal(9, 7)
    torch.testing.assert_close(free(u).states, iterated(u).states, atol=1e-12, rtol=0)
    assert int((matrices[0] != 0).sum()) == sum(p.numel() for p in free.free.values())


def test_one_block_is_a_layer_without_feedback() -> None:
    layer = ImplicitLayer(5, 3, 2, well_posed=StrictlyTriangular(block_sizes=(5,))).double()
    u = normal(4, 3)
    assert not layer.A.any()
    assert layer.A.shape == (5, 5)
    torch.testing.assert_close(layer(u).states, torch.relu(u @ layer.B.T))


@pytest.mark.parametrize("well_posed", [RowProjection(bound=0.9), RowRescaling(bound=0.9)])
def test_rows_stay_within_the_bound_whatever_the_parameters(well_posed: RowProjection | RowRescaling) -> None:
    layer = ImplicitLayer(30, 3, 2, well_posed=well_posed).double()
    with torch.no_grad():
        layer.free["weight"].mul_(torch.logspace(-3, 3, 30, dtype=torch.float64)[:, None])
        layer.free["weight"][4] = 0
    assert float(layer.A.detach().abs().sum(1).max()) <= 0.9 * (1 + 1e-12)
    gradient = torch.autograd.grad(layer.A.sum(), layer.free["weight"])[0]
    assert gradient.isfinite().all()


def test_project_keeps_the_matrix_and_brings_parameters_back() -> None:
    layer = ImplicitLayer(10, 3, 2).double()
    with torch.no_grad():
        layer.free["weight"].mul_(5)
    before = layer.A.detach().clone()
    layer.project_()
    assert torch.equal(layer.free["weight"], before)


def test_monotone_operators_have_states_where_rows_are_long() -> None:
    """Among them matrices that the plain iteration does not solve."""
    layer = ImplicitLayer(40, 5, 2, well_posed=MonotoneOperator(margin=0.05)).double()
    with torch.no_grad():
        layer.free["skew"].mul_(4)
        layer.free["symmetric"].mul_(2)
    eigenvalues = torch.linalg.eigvalsh(torch.eye(40, dtype=torch.float64) - (layer.A + layer.A.T) / 2)
    assert float(eigenvalues[0].detach()) >= 0.05 - 1e-12
    u = normal(8, 5)
    states = layer(u).states
    torch.testing.assert_close(torch.relu(states @ layer.A.T + u @ layer.B.T), states, atol=1e-9, rtol=1e-9)
    plain = ImplicitLayer.from_matrices(layer.A, layer.B, layer.C, layer.D, solver=Picard(), well_posed=Unconstrained())
    assert (plain.attempt(u).statuses == Status.DIVERGED).all()


def test_a_warm_start_needs_fewer_steps() -> None:
    counted: list[int] = []

    class Counting:
        def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor):
            found = Picard()(f, start)
            counted.append(int(found.steps.max()))
            return found

    a = torch.full((6, 6), 0.15, dtype=torch.float64)
    layer = ImplicitLayer.from_matrices(a, normal(6, 3).abs(), normal(2, 6), normal(2, 3), solver=Counting())
    u = normal(4, 3).abs()
    first = layer(u)
    again = layer(u, start=first.states)
    torch.testing.assert_close(again.states, first.states, atol=1e-10, rtol=1e-10)
    assert counted[1] == 1 < counted[0]


@pytest.mark.parametrize("gradient", [JacobianFree(), Phantom(), Unrolled(steps=400)])
def test_other_gradients_have_the_same_states(gradient: JacobianFree | Phantom | Unrolled) -> None:
    exact = ImplicitLayer(12, 3, 2).double()
    other = ImplicitLayer(12, 3, 2, gradient=gradient).double()
    other.load_state_dict(exact.state_dict())
    u = normal(5, 3)
    torch.testing.assert_close(other(u).states, exact(u).states, atol=1e-10, rtol=1e-10)


def test_phantom_gradients_approach_the_exact_one() -> None:
    layers = [ImplicitLayer(12, 3, 2, gradient=gradient).double() for gradient in (None, *map(phantom, (1, 8, 64)))]
    gradients = []
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        layer(normal(5, 3)).values.square().sum().backward()
        gradients.append(layer.B.grad)
    errors = [float((g - gradients[0]).norm() / gradients[0].norm()) for g in gradients[1:]]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def phantom(steps: int) -> Phantom:
    return Phantom(steps=steps)


def test_unrolling_too_short_says_so() -> None:
    a = torch.full((6, 6), 0.15, dtype=torch.float64)
    layer = ImplicitLayer.from_matrices(a, normal(6, 3).abs(), normal(2, 6), normal(2, 3), gradient=Unrolled(steps=3))
    found = layer(normal(4, 3).abs())
    assert (found.statuses == Status.STEPS_EXHAUSTED).all()
    assert (found.residuals > 0.05).all()


def test_a_map_that_does_not_contract_is_an_error_and_one_sample_of_it_no_harm() -> None:
    """The second state grows without end where the input pushes it, and rests at 0 elsewhere."""
    a = torch.tensor([[0.5, 0.0], [0.0, 3.0]], dtype=torch.float64)
    b, c, d = torch.eye(2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2).double()
    layer = ImplicitLayer.from_matrices(a, b, c, d, solver=Picard(), well_posed=Unconstrained())
    u = torch.tensor([[1.0, -1.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    with pytest.raises(
        FixedPointError, match=r"left the range of torch.float64 for sample 1 \(1 of 3\).*does not contract"
    ):
        layer(u)
    found = layer.attempt(u)
    assert found.statuses.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    torch.testing.assert_close(found.values[[0, 2], 0], torch.tensor([2.0, 4.0], dtype=torch.float64))
    found.values[[0, 2]].sum().backward()
    torch.testing.assert_close(layer.B.grad, torch.tensor([[6.0, -4.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ImplicitLayer(0, 3, 2), r"`state_dim` must be at least 1; got 0"),
        (lambda: ImplicitLayer(4, 3, 0), r"`out_features` must be at least 1"),
        (lambda: ImplicitLayer(4, 3, 2)(torch.ones(5, 4)), r"in_features = 3; got shape \(5, 4\)"),
        (lambda: ImplicitLayer(4, 3, 2)(torch.ones(5, 3), start=torch.ones(5, 3)), r"`start` must be.*\(5, 4\)"),
        (lambda: RowProjection(bound=1.0), r"`bound` must be in \(0, 1\)"),
        (lambda: MonotoneOperator(margin=0.0), r"`margin` must be in \(0, 1\]"),
        (lambda: Phantom(damping=0.0), r"`damping` must be in \(0, 1\]"),
        (lambda: Unrolled(steps=0), r"`steps` must be at least 1"),
        (lambda: Unrolled(tolerance=1.0), r"`tolerance` must be in \(0, 1\)"),
        (lambda: leaky_relu(1.5), r"`negative_slope` must be in \[0, 1\]"),
        (lambda: StrictlyTriangular(block_sizes=()), r"one size of at least 1 a block; got \[\]"),
        (
            lambda: ImplicitLayer(4, 3, 2, well_posed=StrictlyTriangular(block_sizes=(2, 1))),
            r"\[2, 1\] sum to 3, but there are 4 states",
        ),
        (
            lambda: ImplicitLayer(4, 3, 2, solver=Anderson(), well_posed=StrictlyTriangular(block_sizes=(2, 2))),
            r"leave `solver` and `gradient` out",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("a", "well_posed", "sentence"),
    [
        (
            [[0.0, 1.5], [0.1, 0.0]],
            RowProjection(),
            r"exceeds the bound 0.95 by 0.55.*value of \|A\| is 0.3873 < 1.*scaled",
        ),
        ([[0.0, 1.5], [1.5, 0.0]], RowProjection(), r"exceeds the bound 0.95 by 0.55.*is 1.5, so no scaling helps"),
        ([[0.95, 0.0], [0.0, 0.0]], RowRescaling(), r"exceeds the bound 0.95 by 0"),
        ([[1.5, 0.0], [0.0, 0.0]], MonotoneOperator(), r"I - A is -0.5.*subtract at least 0.6"),
        ([[0.0, 1.0], [2.0, 0.0]], StrictlyTriangular(block_sizes=(1, 1)), r"entry \(1, 0\) is 2"),
    ],
)
def test_a_matrix_outside_the_set_says_by_how_much(a: list, well_posed, sentence: str) -> None:
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=sentence):
        ImplicitLayer.from_matrices(torch.tensor(a, dtype=torch.float64), eye, eye, eye, well_posed=well_posed)


def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\), \(3, 2\), \(2, 2\) and \(2, 2\)"):
        ImplicitLayer.from_matrices(torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2, 2))

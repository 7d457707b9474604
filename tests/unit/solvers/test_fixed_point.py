"""Fixed-point solvers: what they find, each sample on its own, and what they say where they find nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from featherlight.solvers import Anderson, Broyden, FixedPointError, FixedPointSolver, Picard, Status

SOLVERS: dict[str, FixedPointSolver] = {
    "picard": Picard(),
    "damped": Picard(damping=0.7),
    "anderson": Anderson(),
    "anderson 1": Anderson(memory=1),
    "anderson 6": Anderson(memory=6),
    "anderson, few looks": Anderson(memory=2, plain_steps=2, check_every=3),
    "broyden": Broyden(),
    "broyden 3": Broyden(memory=3),
}
N, F = 9, 12


def affine(norm: float, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A matrix of that spectral norm and one input a sample."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(F, F, generator=generator, dtype=torch.float64)
    inputs = torch.randn(N, F, generator=generator, dtype=torch.float64)
    return (matrix * norm / torch.linalg.matrix_norm(matrix, 2)).to(dtype), inputs.to(dtype)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_map_is_solved_as_by_elimination(name: str, dtype: torch.dtype) -> None:
    matrix, inputs = affine(0.9, dtype=dtype)
    outcome = SOLVERS[name](lambda x: x @ matrix.T + inputs, torch.zeros_like(inputs))
    expected = torch.linalg.solve((torch.eye(F, dtype=dtype) - matrix).double(), inputs.double().T).T
    accuracy = 1e-10 if dtype == torch.float64 else 3e-4
    torch.testing.assert_close(outcome.unwrap().double(), expected, atol=accuracy, rtol=accuracy)
    assert outcome.converged.all()
    assert (outcome.residual <= outcome.tolerance).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_may_have_any_shape_and_the_residual_is_what_it_says(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    kernel = 0.05 * torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    u = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64)
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1) + u)

    outcome = SOLVERS[name](f, torch.zeros_like(u))
    assert outcome.value.shape == u.shape
    torch.testing.assert_close(f(outcome.unwrap()), outcome.value, atol=1e-11, rtol=0)
    assert int(outcome.steps.max()) == len(seen) - 1
    last = int(outcome.steps.argmax())
    x, fx = seen[-2][last], f(seen[-2])[last]
    assert float(outcome.residual[last]) == pytest.approx(float((fx - x).norm() / fx.norm()), rel=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_each_sample_stops_on_its_own(name: str) -> None:
    """A slow companion changes neither the value nor the count of steps of another sample, to the bit."""
    rates = torch.tensor([[0.1], [0.9], [0.5]], dtype=torch.float64)
    start = torch.zeros(3, 16, dtype=torch.float64)

    def solve(rates: Tensor):
        return SOLVERS[name](lambda x: torch.cos(2 * rates * x) * 0.6 + 0.1, start[: len(rates)])

    together, quick = solve(rates), solve(rates[:1])
    assert torch.equal(together.value[:1], quick.value)
    assert together.steps[0] == quick.steps[0] != together.steps[1]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_sample_is_named_and_the_others_are_not_touched(name: str, broken: float) -> None:
    matrix, inputs = affine(0.8)
    clean = SOLVERS[name](lambda x: torch.tanh(x @ matrix.T) + inputs, torch.zeros_like(inputs))
    harmed = inputs.clone()
    harmed[4, 2] = broken
    outcome = SOLVERS[name](lambda x: torch.tanh(x @ matrix.T) + harmed, torch.zeros_like(inputs))
    kept = [i for i in range(N) if i != 4]
    assert outcome.status[4] == Status.BROKEN_INPUT
    assert torch.equal(outcome.value[kept], clean.value[kept])
    assert torch.equal(outcome.steps[kept], clean.steps[kept])
    with pytest.raises(FixedPointError, match=r"nan or inf at its first evaluation for sample 4 \(1 of 9\)") as caught:
        outcome.unwrap()
    assert caught.value.outcome is outcome


def test_a_map_that_does_not_contract_is_never_returned_in_silence() -> None:
    matrix, inputs = affine(3.0)
    outcome = Picard(max_steps=2000)(lambda x: x @ matrix.T + inputs, torch.zeros_like(inputs))
    assert (outcome.status == Status.DIVERGED).all()
    with pytest.raises(
        FixedPointError, match=r"left the range of torch.float64 for samples 0, 1, 2, 3, 4, ... \(9 of 9\)"
    ):
        outcome.unwrap()
    growing = Picard(max_steps=1500)(lambda x: 1.7 * x + inputs, torch.zeros_like(inputs))
    assert (growing.status == Status.DIVERGED).all()
    turning = Picard(max_steps=50)(lambda x: 1 - x, torch.full((2, 3), 0.2))
    assert (turning.status == Status.STEPS_EXHAUSTED).all()
    with pytest.raises(
        FixedPointError, match=r"not reached for samples 0, 1 \(2 of 2\): residual 3.0e\+00 after 50 steps"
    ):
        turning.unwrap()


@pytest.mark.parametrize("solver", [Anderson(memory=F), Broyden(memory=40)])
def test_acceleration_solves_what_does_not_contract(solver: FixedPointSolver) -> None:
    matrix, inputs = affine(1.6)
    found = solver(lambda x: x @ matrix.T + inputs, torch.zeros_like(inputs)).unwrap()
    torch.testing.assert_close(found @ matrix.T + inputs, found, atol=1e-9, rtol=1e-9)


def test_acceleration_needs_fewer_steps() -> None:
    matrix, inputs = affine(0.97)
    solvers = Picard(check_every=1), Anderson(memory=6, check_every=1), Broyden(check_every=1)
    picard, anderson, broyden = (
        int(solver(lambda x: x @ matrix.T + inputs, torch.zeros_like(inputs)).steps.max()) for solver in solvers
    )
    assert 2 * anderson < picard
    assert 2 * broyden < picard


def test_mixtures_begin_after_the_plain_steps() -> None:
    matrix, inputs = affine(0.9)
    seen: dict[int, list[Tensor]] = {0: [], 3: []}
    for plain, points in seen.items():

        def f(x: Tensor, points: list[Tensor] = points) -> Tensor:
            points.append(x)
            return x @ matrix.T + inputs

        Anderson(plain_steps=plain)(f, torch.zeros_like(inputs)).unwrap()
    plain = [torch.zeros_like(inputs)]
    for _ in range(6):
        plain.append(plain[-1] @ matrix.T + inputs)
    equal = {k: [torch.equal(a, b) for a, b in zip(points, plain, strict=False)] for k, points in seen.items()}
    assert equal[0][:3] == [True, True, False]
    assert equal[3][:6] == [True, True, True, True, True, False]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_start_at_the_fixed_point_takes_one_evaluation(name: str) -> None:
    outcome = SOLVERS[name](lambda x: 0.5 * x, torch.zeros(3, 2))
    assert outcome.steps.tolist() == [getattr(SOLVERS[name], "check_every") or 1] * 3  # noqa: B009
    assert len(SOLVERS[name](lambda x: 0.5 * x, torch.zeros(0, 2)).unwrap()) == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Picard(max_steps=0), r"`max_steps` must be at least 1"),
        (lambda: Picard(tolerance=0.0), r"`tolerance` must be in \(0, 1\)"),
        (lambda: Picard(damping=1.5), r"`damping` must be in \(0, 1\]"),
        (lambda: Anderson(memory=0), r"`memory` must be at least 1"),
        (lambda: Anderson(plain_steps=-1), r"`plain_steps` must be at least 0; got -1"),
        (lambda: Anderson(check_every=0), r"`check_every` must be at least 1"),
        (lambda: Anderson(ridge=-1.0), r"`ridge` must be in \[0, 1\)"),
        (lambda: Broyden(memory=0), r"`memory` must be at least 1"),
        (lambda: Picard()(lambda x: x, torch.zeros(3)), r"shape \(samples, ...\).*got \(3,\)"),
        (lambda: Picard()(lambda x: x, torch.zeros(3, 0)), r"at least one number a sample; got \(3, 0\)"),
        (lambda: Picard()(lambda x: x, torch.zeros(3, 1, dtype=torch.int64)), r"floating-point states"),
        (lambda: Picard()(lambda x: x[:, :1], torch.zeros(3, 2)), r"\(3, 2\) torch.float32; it returned \(3, 1\)"),
    ],
)
def test_bad_input_gets_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()

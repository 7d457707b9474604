"""Projections against their optimality conditions, slow references and finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from featherlight.solvers import project_box, project_l1_ball, project_l2_ball, project_linf_rows, project_simplex
from featherlight.solvers.projections import _by_newton, _by_sorting

BALLS: dict[str, Callable[..., Tensor]] = {
    "simplex": project_simplex,
    "l1": project_l1_ball,
    "l2": project_l2_ball,
}


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def simplex_by_bisection(x: Tensor, radius: float) -> Tensor:
    """One vector; the threshold between bounds, halved until float64 can halve no more."""
    low, high = x.max() - radius, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (x - middle).clamp(min=0).sum() > radius else (low, middle)
    return (x - high).clamp(min=0)


@pytest.mark.parametrize("size", [1, 2, 7, 31, 32, 33, 400])
@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0, 50.0])
def test_simplex_and_l1_ball_equal_bisection(size: int, radius: float) -> None:
    x = sample(6, size)
    x[3] *= 0.1 / size
    ours = project_simplex(x, radius=radius)
    expected = torch.stack([simplex_by_bisection(row, radius) for row in x])
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    expected = torch.stack(
        [row if row.abs().sum() <= radius else row.sign() * simplex_by_bisection(row.abs(), radius) for row in x]
    )
    torch.testing.assert_close(project_l1_ball(x, radius=radius), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_axis_and_dtype(name: str, dtype: torch.dtype) -> None:
    x = sample(3, 40, 5, dtype=dtype)
    ours = BALLS[name](x, dim=1, radius=2.0)
    assert ours.dtype == dtype
    assert ours.shape == x.shape
    rows = BALLS[name](x.double().movedim(1, -1), radius=2.0).movedim(-1, 1)
    torch.testing.assert_close(ours.double(), rows, atol=2 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)
    whole = BALLS[name](x.double().reshape(-1), radius=2.0)
    assert whole.norm(p=2 if name == "l2" else 1) == pytest.approx(2.0)


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("size", [5, 40])
def test_derivatives_are_exact_twice_in_point_and_radius(name: str, size: int) -> None:
    x = sample(4, size, seed=3)
    x[2] *= 1e-3
    radius = torch.tensor([[0.5], [1.0], [2.0], [0.1]], dtype=torch.float64, requires_grad=True)
    x.requires_grad_()

    def projected(x: Tensor, radius: Tensor) -> Tensor:
        return BALLS[name](x, radius=radius)

    assert gradcheck(projected, (x, radius), eps=1e-7, atol=1e-7)
    assert gradgradcheck(projected, (x, radius), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("size", [8, 100])
def test_a_point_inside_stays_to_the_bit_with_the_identity_as_derivative(size: int) -> None:
    x = sample(3, size, dtype=torch.float32) * 1e-3
    x[0] = 0
    x.requires_grad_()
    for project in (project_l1_ball, project_l2_ball):
        out = project(x)
        assert torch.equal(out, x)
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones_like(x))


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("size", [8, 100])
def test_a_broken_vector_becomes_nan_and_no_other_changes(name: str, size: int) -> None:
    x = sample(4, size)
    alone = BALLS[name](x[[0, 3]])
    x[1, 2], x[2, 4] = float("nan"), float("inf")
    ours = BALLS[name](x)
    assert torch.equal(ours[[0, 3]], alone)
    assert ours[1:3].isnan().all(1).all()


@pytest.mark.parametrize("size", [8, 100])
def test_excluded_entries_of_a_simplex_are_nought_and_huge_ones_cost_no_accuracy(size: int) -> None:
    x = sample(2, size)
    x[0, 3] = -float("inf")
    x.requires_grad_()
    ours = project_simplex(x)
    kept = [i for i in range(size) if i != 3]
    torch.testing.assert_close(ours[0, kept], project_simplex(x[0, kept]))
    assert ours[0, 3] == 0
    assert torch.isfinite(torch.autograd.grad(ours.square().sum(), x)[0]).all()
    steep = torch.tensor([[1e6, 1e6 + 0.25]]).expand(1, 2)
    torch.testing.assert_close(project_simplex(steep), torch.tensor([[0.375, 0.625]]))
    torch.testing.assert_close(project_l2_ball(torch.full((4,), 1e30)), torch.full((4,), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_and_sorting_agree(dtype: torch.dtype) -> None:
    for seed, spread in enumerate((1e-3, 0.1, 1.0, 30.0)):
        x = sample(20, 257, seed=seed, dtype=dtype) * spread
        x[4] = x[4].round()
        x[5] = 1.5
        newton = _by_newton(x, torch.ones((), dtype=dtype), 1, False)
        torch.testing.assert_close(newton, _by_sorting(x, torch.ones((), dtype=dtype), 1), atol=2e-6, rtol=2e-6)


def test_rows_of_a_matrix_are_bounded_each_by_its_own() -> None:
    a = sample(2, 30, 50)
    assert project_linf_rows(a, bound=0.95).abs().sum(-1).max() == pytest.approx(0.95)
    bounds = torch.rand(30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(project_linf_rows(a, bound=bounds).abs().sum(-1), bounds[:, 0].expand(2, 30))


def test_the_box_clips_and_is_one_at_its_bounds() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 1.0, 3.0], requires_grad=True)
    out = project_box(x, 0.0, 1.0)
    assert out.tolist() == [0, 0, 0.5, 1, 1]
    assert torch.autograd.grad(out.sum(), x)[0][[0, 2, 4]].tolist() == [0, 1, 0]
    assert project_box(x.detach(), torch.zeros(5), torch.full((5,), 0.25)).tolist() == [0, 0, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("size", [6, 60])
def test_vmap_and_per_sample_gradients(name: str, size: int) -> None:
    x = sample(5, 3, size)
    radii = torch.rand(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1

    def loss(x: Tensor, radius: Tensor) -> Tensor:
        return BALLS[name](x, dim=-1, radius=radius).pow(3).sum()

    ours = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(1, None))(x.movedim(0, 1), radii[0])
    ours_radii = torch.func.vmap(loss, in_dims=(None, 0))(x[0], radii)
    for i in range(5):
        torch.testing.assert_close(ours[0][i], torch.func.grad(loss)(x[i], radii[0]))
        torch.testing.assert_close(ours_radii[i], loss(x[0], radii[i]))


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own tracing
def test_compiled_without_a_graph_break(name: str) -> None:
    x = sample(5, 70, dtype=torch.float32)
    compiled = torch.compile(BALLS[name], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), BALLS[name](x))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: project_simplex(torch.ones(3, dtype=torch.int64)), r"floating-point.*int64"),
        (lambda: project_simplex(torch.ones(3), dim=2), r"`dim` 2 is not an axis"),
        (lambda: project_l1_ball(torch.ones(3, 0)), r"no entries"),
        (lambda: project_l2_ball(torch.ones(3), radius=-1.0), r"at least 0; got -1"),
        (lambda: project_simplex(torch.ones(3, 4), radius=torch.ones(4)), r"radii of shape \(4,\).*\(3, 1\)"),
        (lambda: project_linf_rows(torch.ones(3)), r"at least 2 axes"),
        (lambda: project_box(torch.ones(3), 2.0, 1.0), r"the box is empty"),
    ],
)
def test_bad_input_gets_a_sentence(call: Callable[[], Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_negative_radius_in_a_tensor_gives_nan() -> None:
    radii = torch.tensor([[1.0], [-1.0]])
    for project in BALLS.values():
        assert project(torch.ones(2, 3), radius=radii).isnan().all(1).tolist() == [False, True]

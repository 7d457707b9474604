"""The lasso of one row with a bound, by Clarabel."""

from torch import Tensor


def by_clarabel(x: Tensor, t: Tensor, *, penalty: float, bound: float | None, num_bounded: int) -> float:
    """The least of |t - X w|^2 / 2 + penalty |w|_1 with the first entries' sizes bounded in sum."""
    import cvxpy

    w = cvxpy.Variable(x.shape[1])
    cost = cvxpy.sum_squares(t.numpy() - x.numpy() @ w) / 2 + penalty * cvxpy.norm1(w)
    limits = [] if bound is None else [cvxpy.norm1(w[:num_bounded]) <= bound]
    problem = cvxpy.Problem(cvxpy.Minimize(cost), limits)
    problem.solve(solver=cvxpy.CLARABEL)
    return float(problem.value)  # pyright: ignore[reportArgumentType]

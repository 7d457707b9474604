"""Steps of small convex programs the slow way: cvxpy with Clarabel, made exact by the conditions of optimality at its active
set, and differentiated by complex steps through those.

Legend of shapes: N coordinates, M equations.
"""

from collections.abc import Callable, Mapping
from typing import Any

import cvxpy
import numpy as np

Numbers = Mapping[str, np.ndarray]
"""m and x (N); matrix (N, N), or diagonal (N) and factors (N, R); what the constraint has: low, high (N), radius (),
matrix_a (M, N), vector (M); strength (N) of the L1 term."""


def metric(given: Numbers) -> np.ndarray:
    """H."""
    if "matrix" in given:
        return 0.5 * (given["matrix"] + given["matrix"].T)
    factors = given.get("factors", np.zeros((len(given["diagonal"]), 1)))
    return np.diag(given["diagonal"]) + factors @ factors.T


def by_clarabel(kind: str, given: Numbers) -> np.ndarray:
    """The point x + d, to about 1e-6."""
    m, x = given["m"], given["x"]
    y = cvxpy.Variable(len(m))
    d = y - x
    goal = m @ d + 0.5 * cvxpy.quad_form(d, cvxpy.psd_wrap(metric(given)))
    if "strength" in given:
        goal = goal + given["strength"] @ cvxpy.abs(y)
    sets: dict[str, Callable[[], list[Any]]] = {
        "none": list,
        "box": lambda: [y >= given["low"], y <= given["high"]],
        "linf": lambda: [cvxpy.norm_inf(y) <= given["radius"]],
        "l2": lambda: [cvxpy.norm2(y) <= given["radius"]],
        "l1": lambda: [cvxpy.norm1(y) <= given["radius"]],
        "simplex": lambda: [y >= 0, cvxpy.sum(y) == given["radius"]],
        "affine": lambda: [given["matrix_a"] @ y == given["vector"]],
    }
    problem = cvxpy.Problem(cvxpy.Minimize(goal), sets[kind]())
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert y.value is not None
    return np.asarray(y.value)


def exact(kind: str, given: Numbers, near: np.ndarray) -> np.ndarray:
    """The step, by the conditions of optimality with that active set which the point `near` has; complex numbers go through."""
    n, margin = len(near), 2e-4
    h, m, x = metric(given), given["m"], given["x"]
    rows, values = _fixed(kind, given, near, margin)
    size = np.abs(near)
    slope = np.zeros(n, dtype=complex)
    if "strength" in given:
        slope = given["strength"] * np.sign(near) * (size > margin)
    if kind == "simplex" or (kind == "l1" and size.sum() > np.real(given["radius"]) - margin):
        rows.append(np.where(size > margin, np.sign(near), 0.0))
        values.append(given["radius"])
    if kind == "affine":
        rows += list(given["matrix_a"])
        values += list(given["vector"])
    across = np.array(rows, dtype=complex).reshape(len(rows), n)
    touched = kind == "l2" and bool(np.linalg.norm(near) > np.real(given["radius"]) - margin)
    y, level = near.astype(complex), 0.0 + 0.0j
    if touched:
        pull = m + h @ (near - x)
        level = -(pull @ near) / (near @ near)
    for _ in range(6 if touched else 1):
        y, level = _newton(h, m + slope - h @ x, across, np.array(values, dtype=complex), y, level, given, touched)
    return y - x


def _fixed(kind: str, given: Numbers, near: np.ndarray, margin: float) -> tuple[list[np.ndarray], list[Any]]:
    """Equations of the coordinates that are at a bound, or at 0 where the set or the L1 term has a kink."""
    n = len(near)
    places = []
    if kind in ("simplex", "l1") or "strength" in given:
        places.append(np.zeros(n))
    if kind == "box":
        places += [given["low"], given["high"]]
    if kind == "linf":
        places += [np.full(n, -1 * given["radius"]), np.full(n, given["radius"])]
    rows, values = [], []
    for place in places:
        for i in np.flatnonzero(np.abs(near - np.real(place)) <= margin):
            rows.append(np.eye(n)[i])
            values.append(place[i])
    return rows, values


def _newton(
    h: np.ndarray, linear: np.ndarray, across: np.ndarray, values: np.ndarray, y: np.ndarray, level: Any,
    given: Numbers, touched: bool,
) -> tuple[np.ndarray, Any]:  # fmt: skip
    """Of H y + linear + level y + across' multipliers = 0, across y = values, and y'y = radius^2 if touched."""
    n, k = len(y), len(across)
    system = np.zeros((n + k + touched, n + k + touched), dtype=complex)
    system[:n, :n] = h + level * np.eye(n)
    system[:n, n : n + k], system[n : n + k, :n] = across.T, across
    side = np.concatenate((-linear, values)).astype(complex)
    if touched:
        system[:n, -1], system[-1, :n] = y, 2 * y
        side = np.concatenate((side, [given["radius"] ** 2 + y @ y]))
        side[:n] += level * y
    found = np.linalg.solve(system, side)
    return found[:n], found[-1] if touched else level


def gradients(kind: str, given: Numbers, near: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of weights @ step, for all numbers."""
    found = {}
    for name, value in given.items():
        of = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            of[index] = np.imag(weights @ exact(kind, {**given, name: moved}, near)) / 1e-30
        found[name] = of
    return found

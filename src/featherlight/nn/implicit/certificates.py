"""What can be proven about x = phi(A x + B u), y = C x + D u for every activation with slopes in [0, 1].

All bounds are computed in float64 and hold with its rounding: a sum of n products is off by at most g = 2 (n + 8) eps times
the sum of their absolute values, which is added; the error of a linear solve is bounded by its residual.

Legend of shapes: S numbers of a state, I inputs, Y outputs, N samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_STEPS = 100
_RELATIVE_GAP = 1e-10


@dataclass(frozen=True, kw_only=True)
class PerronFrobenius:
    """Bounds of the largest eigenvalue of |A|, below 1 of which the equation is well posed, and the scaling behind them.

    Attributes:
        lower: proven lower bound.
        upper: proven upper bound: the infinity norm of A in the coordinates `scaling`, which no scaling brings below `lower`.
        scaling: (S,), float64, positive; diag(1/s) A diag(s) has the infinity norm `upper`.
        norm: the infinity norm of A as it stands.
    """

    lower: float
    upper: float
    scaling: Tensor
    norm: float

    @property
    def well_posed(self) -> bool:
        """Whether the equation is proven to have exactly one solution, which Picard's iteration reaches."""
        return self.upper < 1


def perron_frobenius(a: Tensor) -> PerronFrobenius:
    """Bounds of the Perron-Frobenius value of |A| by Noda's iteration.

    Every positive vector v bounds it from above by max (|A| v)_i / v_i, and every v of at least 0 from below by the least
    ratio where v_i > 0 (Collatz 1942, Wielandt 1950). An inverse iteration shifted by the upper bound lowers that bound
    in every step, in the end quadratically. Where |A| falls into parts that do not all reach each other (a triangular A),
    the gap closes slowly and may be left open; the bounds hold all the same.

    Args:
        a: (S, S), any float dtype.

    Raises:
        ValueError: not square, empty, or not finite.

    Cost: about 10 LU decompositions of (S, S) in float64.

    Source: Noda 1971, "Note on the computation of the maximal eigenvalue of a non-negative irreducible matrix".
    """
    size = _check_square(a).double().abs()
    slack = _slack(len(size))
    norm = float(size.sum(1).max()) * (1 + slack)
    v = torch.ones(len(size), dtype=torch.float64, device=a.device)
    best, scaling, lower = norm, v, 0.0
    eye = torch.eye(len(size), dtype=torch.float64, device=a.device)
    for _ in range(_MAX_STEPS):
        product = size @ v
        ratios = product / v
        upper = float(ratios.max()) * (1 + slack)
        lower = max(lower, _lower(size, v) * (1 - slack))
        if upper < best:
            best, scaling = upper, v
        if upper - lower <= _RELATIVE_GAP * upper or upper == 0:
            break
        shift = upper * (1 + 1e-13)
        following, info = torch.linalg.solve_ex(shift * eye - size, v)
        if int(info) or not bool((following > 0).all() and following.isfinite().all()):
            break
        following = following / following.max()
        if bool((following < 1e-280).any()) or torch.equal(following, v):
            break
        v = following
    return PerronFrobenius(lower=lower, upper=best, scaling=scaling, norm=norm)


def _lower(size: Tensor, v: Tensor) -> float:
    """The best of a few truncations, which find the part of |A| the value belongs to."""
    best = 0.0
    for share in (0.0, 1e-9, 1e-6, 1e-3, 0.1):
        part = torch.where(v > share * v.max(), v, torch.zeros_like(v))
        held = part > 0
        best = max(best, float(((size @ part)[held] / part[held]).min()))
    return best


def scaled_system(a: Tensor, b: Tensor, c: Tensor, scaling: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C in the coordinates x / s, which give the same outputs for activations with phi(s x) = s phi(x), s > 0.

    These are ReLU, leaky ReLU and the identity.

    Args:
        a: (S, S).
        b: (S, I).
        c: (Y, S).
        scaling: s, (S,), positive.
    """
    s = scaling.double()
    if not bool((s > 0).all()):
        raise ValueError(f"`scaling` must be positive; its least entry is {float(s.min())}.")
    scaled = a.double() / s[:, None] * s
    return scaled.to(a), (b.double() / s[:, None]).to(b), (c.double() * s).to(c)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How far outputs can move: |y(u) - y(u')| <= matrix |u - u'| entry by entry, for all inputs.

    Attributes:
        matrix: (Y, I), float64, the upper bound of |C| (I - |A|)^-1 |B| + |D|.
        states: (Y, S), float64, the upper bound of |C| (I - |A|)^-1: how an error in the equation reaches the outputs.
        norm_product: |C| |B| / (1 - |A|) + |D| in infinity norms, after the best scaling of the states: what the entries
            sum to at most, and the usual bound.
        system: A, B, C and D in float64.
    """

    matrix: Tensor
    states: Tensor
    norm_product: float
    system: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def norm(self) -> float:
        """The Lipschitz constant in the maximum norm that the matrix proves."""
        return float(self.matrix.sum(1).max())


def sensitivity(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Sensitivity:
    """The sensitivity matrix of El Ghaoui et al. 2021, section 3.2, as a proven upper bound.

    Args:
        a: (S, S).
        b: (S, I).
        c: (Y, S).
        d: (Y, I).

    Raises:
        ValueError: the Perron-Frobenius value of |A| is not proven to be below 1, or shapes do not fit.

    Cost: `perron_frobenius` and one solve with (Y, S).
    """
    _check_system(a, b, c, d)
    value = perron_frobenius(a)
    if not value.well_posed:
        raise ValueError(
            f"no sensitivity is proven: the Perron-Frobenius value of |A| is between {value.lower:.4g} and {value.upper:.4g}, "
            f"and must be below 1. Bound A's rows (RowProjection, RowRescaling), or scale A by less than {1 / value.upper:.4g}."
        )
    size, inputs, outputs, direct = (matrix.double().abs() for matrix in map(torch.detach, (a, b, c, d)))
    slack = _slack(len(size))
    s = value.scaling
    states = _upper_solution(size, outputs, s)
    matrix = (states @ inputs * (1 + slack) + direct) * (1 + slack)
    into, out = float((inputs / s[:, None]).sum(1).max()), float((outputs * s).sum(1).max())
    product = out * into / (1 - value.upper) + float(direct.sum(1).max())
    system = (a.detach().double(), b.detach().double(), c.detach().double(), d.detach().double())
    return Sensitivity(matrix=matrix, states=states, norm_product=product, system=system)


def _upper_solution(size: Tensor, outputs: Tensor, s: Tensor) -> Tensor:
    """An upper bound of X = outputs (I - size)^-1.

    Of any X~ the error is R (I - size)^-1 with R = outputs - X~ (I - size). A positive row t with t (I - size) >= r > 0
    bounds it by t max |R| / r. Such a t is found by one more solve, and checked with rounding.
    """
    count, slack = len(size), _slack(len(size))
    system = torch.eye(count, dtype=torch.float64, device=size.device) - size
    right = torch.cat((outputs, torch.ones(1, count, dtype=torch.float64, device=size.device)))
    found = torch.linalg.solve(system.T, right.T).T.clamp(min=0)
    rough, t = found[:-1], found[-1:]
    left = t - (t @ size) * (1 + slack)
    if not bool((left > 0).all()):
        raise ValueError(
            "no sensitivity is proven: I - |A| is so close to singular that float64 cannot bound its inverse. Use a smaller "
            f"bound for A's rows; the scaled norm is {float((size @ s / s).max()):.10g}."
        )
    carried = rough @ size
    residual = (outputs - rough + carried).abs() + slack * (outputs + rough + carried)
    worst = (residual / left).amax(1, keepdim=True) * (1 + slack)
    return (rough + t * worst) * (1 + slack)


@dataclass(frozen=True, kw_only=True)
class OutputInterval:
    """Bounds of the outputs over a box of inputs.

    Attributes:
        low: (N, Y), float64.
        high: (N, Y), float64.
    """

    low: Tensor
    high: Tensor


def output_interval(
    proven: Sensitivity, activation: Callable[[Tensor], Tensor], u: Tensor, states: Tensor, radius: float | Tensor
) -> OutputInterval:
    """Bounds of y for all inputs within `radius` of `u` entry by entry.

    The states need not be exact: the bounds have room for the error in their equation, which is measured here, and for
    float64's rounding of everything (of the activation: 8 eps of its value).

    Args:
        proven: of the model.
        activation: phi.
        u: (N, I), the centers.
        states: (N, S), the states there, as a solver found them.
        radius: at least 0; a number, (I,) or (N, I).
    """
    a, b, c, d = proven.system
    u, x = u.detach().double(), states.detach().double()
    reach = torch.as_tensor(radius, dtype=torch.float64, device=u.device)
    if bool((reach < 0).any()):
        raise ValueError(f"`radius` must be at least 0; got {float(reach.min())}.")
    slack = _slack(len(a) + b.shape[1])
    scale = x.abs() @ a.T.abs() + u.abs() @ b.T.abs()
    error = (x - activation(x @ a.T + u @ b.T)).abs() + slack * (scale + x.abs())
    center = x @ c.T + u @ d.T
    rounding = slack * (x.abs() @ c.T.abs() + u.abs() @ d.T.abs())
    room = (reach.expand(u.shape) @ proven.matrix.T + error @ proven.states.T + rounding) * (1 + slack)
    return OutputInterval(low=center - room, high=center + room)


def _slack(count: int) -> float:
    return 2 * (count + 8) * torch.finfo(torch.float64).eps


def _check_square(a: Tensor) -> Tensor:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) == 0:
        raise ValueError(f"A must be a square matrix (S, S) with S of at least 1; got shape {tuple(a.shape)}.")
    if not bool(a.isfinite().all()):
        raise ValueError("A holds nan or inf, of which nothing can be proven.")
    return a.detach()


def _check_system(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    _check_square(a)
    states = len(a)
    wanted = ((states, b.shape[-1]), (c.shape[0], states), (c.shape[0], b.shape[-1]))
    if tuple(map(tuple, (b.shape, c.shape, d.shape))) != wanted:
        raise ValueError(
            f"the matrices of a model must be A (S, S), B (S, I), C (Y, S) and D (Y, I); got {tuple(a.shape)}, "
            f"{tuple(b.shape)}, {tuple(c.shape)} and {tuple(d.shape)}."
        )

"""Known methods as rules: a start for learning, and what the rule is tested against.

Numbers are learned from there on; `ConvexUpdate(params, adam(1e-3), weight_decay=...)` adds weight decay as torch does.
"""

from featherlight.optim.learned.adaptive import AdaptiveSteps
from featherlight.optim.learned.memory import Momentum, MovingAverage, PastTerms
from featherlight.optim.learned.metrics import MirrorSteps, ScalarSteps
from featherlight.optim.learned.protocols import MemoryPart
from featherlight.optim.learned.rule import ConvexRule
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn
from featherlight.solvers.convex import Constraint, L2Ball, LinfBall, Simplex

_NO_CURVATURE = 1e30


def sgd(size: float, *, momentum: float = 0.0, nesterov: bool = False) -> ConvexRule:
    """torch.optim.SGD with `lr=size` and `dampening=0`: `min m'd + |d|^2 / (2 size)`.

    Source: Polyak 1964; Sutskever et al. 2013.
    """
    memory: MemoryPart | None = Momentum(momentum, nesterov=nesterov) if momentum else None
    return ConvexRule(ScalarSteps(size), memory)


def adagrad(size: float = 1e-2, *, eps: float = 1e-10) -> ConvexRule:
    """torch.optim.Adagrad with `lr=size`. Source: Duchi, Hazan, Singer 2011."""
    return ConvexRule(AdaptiveSteps(ScalarSteps(size), decay=None, eps=eps))


def rmsprop(size: float = 1e-2, *, decay: float = 0.99, eps: float = 1e-8, momentum: float = 0.0) -> ConvexRule:
    """torch.optim.RMSprop with `lr=size` and `alpha=decay`, not centred. Source: Tieleman, Hinton 2012."""
    memory: MemoryPart | None = PastTerms(step_weights=(momentum,)) if momentum else None
    return ConvexRule(AdaptiveSteps(ScalarSteps(size), decay=decay, corrected=False, eps=eps), memory)


def adam(size: float = 1e-3, *, decays: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> ConvexRule:
    """torch.optim.Adam with `lr=size` and `betas=decays`. Source: Kingma, Ba 2015, algorithm 1."""
    return ConvexRule(AdaptiveSteps(ScalarSteps(size), decay=decays[1], eps=eps), MovingAverage(decays[0]))


def ista(size: float, strength: float) -> ConvexRule:
    """Gradient step, then soft thresholds of `size * strength`: for a loss plus `strength * sum |x|`.

    Source: Daubechies, Defrise, De Mol 2004.
    """
    return ConvexRule(ScalarSteps(size), prox=L1Penalty(strength))


def projected_gradient(size: float, constraint: Constraint) -> ConvexRule:
    """Gradient step, then the nearest point of the set. Source: Goldstein 1964; Levitin, Polyak 1966."""
    return ConvexRule(ScalarSteps(size), constraint=PointIn(constraint))


def exponentiated_gradient(size: float, *, rows: bool = True) -> ConvexRule:
    """`x exp(-size g)`, scaled to sum to 1, for each vector along the last axis (or each tensor as a whole).

    Source: Kivinen, Warmuth 1997.
    """
    return ConvexRule(MirrorSteps(size), constraint=PointIn(Simplex(), rows=rows))


def sign_descent(size: float) -> ConvexRule:
    """`-size sign(g)`: `min m'd` with no entry of d above `size`. Source: Bernstein et al. 2018.

    The metric is 1e-30 instead of 0, so gradients below 1e-30 times `size` make shorter steps.
    """
    return ConvexRule(ScalarSteps(_NO_CURVATURE), constraint=StepIn(LinfBall(size)))


def trust_region(radius: float, size: float = _NO_CURVATURE) -> ConvexRule:
    """`-radius g / |g|` over all parameters together, or a gradient step of `size` where that is shorter.

    Source: the first-order trust region, Conn, Gould, Toint 2000, section 6.3.
    """
    return ConvexRule(ScalarSteps(size), constraint=StepIn(L2Ball(radius), jointly=True))


def clipped_gradient(size: float, max_norm: float) -> ConvexRule:
    """A gradient step of `size` with the gradient of all parameters scaled down to a norm of at most `max_norm`.

    Source: Pascanu et al. 2013, algorithm 1; torch.nn.utils.clip_grad_norm_ but for its 1e-6 in the denominator.
    """
    return trust_region(size * max_norm, size)

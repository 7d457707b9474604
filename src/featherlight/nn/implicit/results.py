"""What every implicit layer returns.

Legend of shapes: ... positions (samples, or samples and time), S numbers of a state, Y outputs.
"""

from typing import NamedTuple

from torch import Tensor


class ImplicitResult(NamedTuple):
    """The outcome of an implicit layer.

    Attributes:
        values: what goes on in the network, (..., Y); of an `Equilibrium` the states themselves.
        states: (..., S), at which the equation holds; the next call can start from them.
        residuals: (...), |f(x) - x| / |f(x)| that the solver stopped at; 0 where states are found exactly.
        statuses: (...), int8 numbers of `featherlight.solvers.Status`; of convex programs, of `ConvexStatus`.
    """

    values: Tensor
    states: Tensor
    residuals: Tensor
    statuses: Tensor

"""Fixed points x = f(x) of a batch of samples: Picard, Anderson and Broyden behind one protocol."""

from featherlight.solvers.fixed_point.anderson import Anderson
from featherlight.solvers.fixed_point.broyden import Broyden
from featherlight.solvers.fixed_point.outcome import FixedPoint, FixedPointError, FixedPointSolver, Status
from featherlight.solvers.fixed_point.picard import Picard

__all__ = ["Anderson", "Broyden", "FixedPoint", "FixedPointError", "FixedPointSolver", "Picard", "Status"]

"""The layer of cvxpylayers for a program of one's own, and what is to be said where there is none."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any


def make_cvxpy_layer(problem: Any, parameters: Sequence[Any], variables: Sequence[Any]) -> Any:
    """A differentiable map from the values of parameters to those of variables, of the extra `cvxpy`.

    Args:
        problem: a cvxpy.Problem that follows the rules of disciplined parametrized programming.
        parameters: all of the problem's, in the order of the layer's arguments.
        variables: those that are returned.

    Raises:
        ValueError: cvxpylayers is absent, or the problem is not of that kind.

    Source: Agrawal et al. 2019, "Differentiable convex optimization layers" (arXiv 1910.12430).
    """
    try:
        layers = import_module("cvxpylayers.torch")
    except ImportError as error:
        raise ValueError(
            "programs of one's own need cvxpylayers, which is not installed: pip install 'featherlight[cvxpy]'. ConvexLayer and "
            "ConvexUpdate, with their metrics, balls, boxes, simplices and penalties, need no extra."
        ) from error
    if not problem.is_dpp():
        raise ValueError(
            "the problem is convex only for fixed parameters (cvxpy: `problem.is_dpp()` is False), so it has no derivative in "
            "them. Let each parameter enter linearly: make a product of two one parameter, and for a quadratic form take "
            "sum_squares(factor @ variable)."
        )
    return layers.CvxpyLayer(problem, parameters=list(parameters), variables=list(variables))

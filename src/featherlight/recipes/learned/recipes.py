"""Recipes of learned optimizers."""

from featherlight.recipes.catalogue import Recipe, recipe
from featherlight.recipes.learned.config import LearnedConfig

_SIMULATED = "none: problems are drawn at random; problem=NAME takes another class"


def _named(one: Recipe) -> Recipe:
    """The recipe with hyphens in its name."""
    return Recipe(name=one.name.replace("_", "-"), make=one.make, summary=one.summary, cost=one.cost, data=one.data)


@_named
@recipe(cost="half a minute on 1 core", data=_SIMULATED)
def least_squares() -> LearnedConfig:
    """One metric for least squares with a matrix of condition 1e4, by one linear solve: every new task in one step."""
    return LearnedConfig()


@_named
@recipe(
    cost="half a minute on 1 core",
    data=f"{_SIMULATED}; problem=records reads system-id/ in the folder FEATHERLIGHT_DATA",
)
def system_identification() -> LearnedConfig:
    """Impulse responses of random plants: the mean curvature of past records, corrected by secants."""
    return LearnedConfig(problem="impulse-responses", method="curvature", horizon=10, memory=10, tasks=400)


@_named
@recipe(
    cost="2 minutes on 1 core",
    data=f"{_SIMULATED}; problem=digits takes those of scikit-learn, problem=mnist reads mnist/ in the folder FEATHERLIGHT_DATA",
)
def smooth_nonconvex() -> LearnedConfig:
    """Small nets that learn from a teacher: a metric learned by backpropagation through ten steps, corrected by secants."""
    return LearnedConfig(
        problem="teacher-student", method="unrolled", horizon=10, memory=8, steps=150, evaluations=100, held_out=24
    )

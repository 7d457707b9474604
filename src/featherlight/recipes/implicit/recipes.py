"""Recipes of implicit models."""

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.implicit.config import GrowthConfig, ImplicitConfig, LoopConfig


@recipe(cost="minutes on 1 core", data="mnist/ in the folder FEATHERLIGHT_DATA")
def mnist() -> ImplicitConfig:
    """100 states on MNIST, block by block; method=implicit trains a full A by implicit differentiation."""
    return ImplicitConfig(
        kind="images",
        data="mnist",
        valid_fraction=0.05,
        blocks=(84, 16),
        activation="relu",
        sparse=(0.001, 0.003, 0.01),
        growth=GrowthConfig(directions=50, ridge=1.0),
        loop=LoopConfig(epochs=2, lr=5e-3),
    )


@recipe(
    cost="seconds to minutes on 1 core", data="uci-regression/ in the folder FEATHERLIGHT_DATA; data=FILE takes a table"
)
def tabular() -> ImplicitConfig:
    """A wide block on a table of numbers, and further ones until the validation rows say stop."""
    return ImplicitConfig(blocks=(40, 10, 10), growth=GrowthConfig(ridge=1e-1, decay=1.0, steps=40, patience=1))


@recipe(cost="seconds on 1 core", data="computed: points of a smooth function or of one with kinks")
def interpolation() -> ImplicitConfig:
    """A function from some of its points: data=sine, ripple, kink, saw or cone."""
    growth = GrowthConfig(ridge=1e-11, decay=1e-11)
    return ImplicitConfig(kind="function", data="sine", points=100, blocks=(20,) * 5, sparse=(), growth=growth)

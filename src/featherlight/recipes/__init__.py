"""Recipes: a run is a function of a frozen config.

Finding a recipe and changing its config needs no torch; what runs is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featherlight.recipes.catalogue import Recipe, find, recipe, recipes
from featherlight.recipes.config import RunConfig, changed, to_toml

if TYPE_CHECKING:
    from featherlight.recipes.runner import Plan, Variant, plan_runs, resume, run_all, run_one

__all__ = [
    "Plan",
    "Recipe",
    "RunConfig",
    "Variant",
    "changed",
    "find",
    "plan_runs",
    "recipe",
    "recipes",
    "resume",
    "run_all",
    "run_one",
    "to_toml",
]

_NEED_TORCH = ("Plan", "Variant", "plan_runs", "resume", "run_all", "run_one")


def __getattr__(name: str) -> Any:
    """What needs torch, so that `featherlight recipes` does not wait for it."""
    if name in _NEED_TORCH:
        return getattr(import_module("featherlight.recipes.runner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The recipes there are, and how one is found by what the user typed."""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherlight.recipes.config import RunConfig, changed, nearest, read_toml

FAMILIES = (
    "classify",
    "compress",
    "dbn",
    "finetune",
    "forecast",
    "implicit",
    "int8",
    "learned",
    "precision",
    "regularize",
    "text",
    "vq",
)
"""Folders of this room; the recipes of each are the functions in its module `recipes`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A Python function that returns a config, with what people want to know before they run it.

    Attributes:
        name: "family/variant", or "module:function" for a user's own.
        make: returns a fresh config.
        summary: one line.
        cost: time and memory on a usual machine.
        data: where the data come from.
    """

    name: str
    make: Callable[[], RunConfig]
    summary: str
    cost: str
    data: str

    def __call__(self) -> RunConfig:
        """A fresh config."""
        return self.make()


def recipe(*, cost: str, data: str) -> Callable[[Callable[[], Any]], Recipe]:
    """Decorates a function without arguments that returns a config; its docstring's first line is the summary.

    Args:
        cost: time and memory on a usual machine.
        data: where the data come from.
    """

    def wrap(make: Callable[[], Any]) -> Recipe:
        family = make.__module__.removeprefix(f"{__package__}.").partition(".")[0]
        summary = (make.__doc__ or "").strip().partition("\n")[0]
        return Recipe(name=f"{family}/{make.__name__}", make=make, summary=summary, cost=cost, data=data)

    return wrap


def recipes() -> dict[str, Recipe]:
    """All recipes of the package by name."""
    modules = [importlib.import_module(f"{__package__}.{family}.recipes") for family in FAMILIES]
    found = [one for module in modules for one in vars(module).values() if isinstance(one, Recipe)]
    return {one.name: one for one in sorted(found, key=lambda one: one.name)}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or a user's own as module:function.

    Raises:
        ValueError: there is none of that name (with the nearest), or the module or function cannot be loaded.
    """
    if ":" in name:
        return _own_recipe(name)
    known = recipes()
    if name in known:
        return known[name]
    near = nearest(name, list(known))
    hint = f"Did you mean {near}?" if near else f"There are {', '.join(known)}."
    raise ValueError(f"there is no recipe {name}. {hint} A recipe of your own is named module:function.")


def make_config(one: Recipe) -> RunConfig:
    """The config of a recipe.

    Raises:
        ValueError: a user's recipe raised, with the place; or it returned no config.
    """
    try:
        config = one()
    except Exception as error:
        raise ValueError(f"the recipe {one.name} raised {type(error).__name__}: {error}{_place(error)}") from error
    if not (dataclasses.is_dataclass(config) and isinstance(config, RunConfig)):
        raise ValueError(
            f"the recipe {one.name} returned a {type(config).__name__}; it must return a frozen dataclass with a `seed` and a "
            "method `experiment(workspace)`. The page 'Extending' in the documentation has an example."
        )
    return config


def find(target: str) -> tuple[Recipe, RunConfig]:
    """The recipe and its config of a name, of module:function, or of a TOML file; raises ValueError with a sentence."""
    if target.endswith(".toml"):
        return from_file(Path(target))
    one = find_recipe(target)
    return one, make_config(one)


def from_file(path: Path) -> tuple[Recipe, RunConfig]:
    """The recipe that a TOML file names, and its config with the file's keys.

    Raises:
        ValueError: the file cannot be read, names no recipe, or has a wrong key or value.
    """
    name, values = read_toml(path)
    if name is None:
        raise ValueError(f'{path} names no recipe. Add a line such as recipe = "classify/digits" at its top.')
    one = find_recipe(name)
    return one, changed(make_config(one), values, source=str(path))


def _own_recipe(name: str) -> Recipe:
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the module of the recipe {name} cannot be found ({error}). Run where it can be imported, or correct the name."
        ) from None
    except Exception as error:
        raise ValueError(
            f"the module of the recipe {name} raised {type(error).__name__}: {error}{_place(error)}"
        ) from error
    found: Any = getattr(module, function, None)
    make: Callable[[], RunConfig] = found.make if isinstance(found, Recipe) else found
    if not callable(make):
        near = nearest(function, [one for one in vars(module) if not one.startswith("_")])
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"the module {module_name} has no function {function}.{hint}")
    summary = (make.__doc__ or "").strip().partition("\n")[0]
    return Recipe(name=name, make=make, summary=summary, cost="unknown", data="unknown")


def _place(error: BaseException) -> str:
    """File and line of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""

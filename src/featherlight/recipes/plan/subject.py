"""What a plan is made for: a model, a batch and a loss, whichever way they were named."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.objective import Batch, BatchObjective, ClipGradient, Objective, PerExampleLoss, autocast
from featherlight.objective.passes import num_rows
from featherlight.precision import Precision
from featherlight.recipes.catalogue import find, recipes
from featherlight.recipes.config import changed, known_keys
from featherlight.recipes.methods import METHODS, Setup
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.plan.ways import Way
from featherlight.trainer import Display, Workspace


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train one subject, ready to be followed.

    Attributes:
        model: real or of fake tensors; a fake one is used up.
        batch: its rows.
        loss: of each row.
        head: the output layer, where one is told apart.
        loaded: whether the model is in memory.
    """

    model: nn.Module
    batch: Batch
    loss: PerExampleLoss
    head: nn.Linear | None = None
    loaded: bool = False


class Subject(Protocol):
    """What is trained."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def rows(self) -> int:
        """Of the batch that was asked for."""
        ...

    @property
    def is_text(self) -> bool:
        """Whether `featherlight finetune` can run its ways."""
        ...

    def case(self, way: Way, rows: int) -> Case:
        """The model as the way trains it, and a batch of so many rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadySubject:
    """A model that exists, with a batch and its loss.

    Attributes:
        name: as `Subject`.
        model: as it is trained in full.
        batch: tensors by name.
        loss: of each row.
        rows: as `Subject`.
        is_text: as `Subject`; it is none.
    """

    name: str
    model: nn.Module
    batch: Mapping[str, Tensor]
    loss: PerExampleLoss
    rows: int
    is_text: bool = field(default=False, init=False)

    def case(self, way: Way, rows: int) -> Case:
        """As `Subject`; rows are those of the batch over and over."""
        which = torch.arange(rows) % num_rows(self.batch)
        batch = {name: tensor[which.to(tensor.device)] for name, tensor in self.batch.items()}
        return Case(model=self.model, batch=batch, loss=self.loss, loaded=True)


def objective_of(way: Way, case: Case) -> Callable[[nn.Module, Batch], Objective]:
    """Makes the objective of a step."""
    loss = autocast(case.loss, Precision() if way.autocast is None else Precision(compute=way.autocast))
    return lambda model, batch: BatchObjective(model, batch, loss, micro_batch=way.micro_batch)


def optimizer_of(way: Way, case: Case, rows: int) -> Callable[[nn.Module], Optimizer]:
    """Makes the optimizer of a way."""

    def build(model: nn.Module) -> Optimizer:
        if way.method == "sgd":
            return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        method = METHODS[way.method]
        setup = Setup(
            model=model,
            head=case.head if case.head in set(model.modules()) else None,
            lr=method.default_lr,
            settings=OptimizerConfig(),
            batch=rows,
            seed=0,
            journal=None,
            meter=Meter(),
        )
        return method.build(setup)

    return build


def from_recipe(name: str, batch: int | None, workspace: Workspace) -> ReadySubject:
    """The first stage of a recipe.

    Raises:
        ValueError: there is no such recipe, or its loss is not that of a batch.
    """
    _, config = find(name)
    if "device" in known_keys(type(config)):
        config = changed(config, {"device": "cpu"}, source=name)
    experiment = config.experiment(workspace)
    objective: Any = experiment.stages[0].objective(0, Meter())
    while isinstance(objective, ClipGradient):
        objective = objective.objective
    if not isinstance(objective, BatchObjective):
        raise ValueError(
            f"the steps of {name} are those of a {type(objective).__name__}, and a plan needs the loss of a batch. Plan its "
            "model by module:function instead."
        )
    rows = objective.num_examples if batch is None else batch
    return ReadySubject(name=name, model=experiment.model, batch=objective.batch, loss=objective.loss, rows=rows)


def from_function(name: str, batch: int | None) -> ReadySubject:
    """A model, a batch and a loss from a user's own function.

    Args:
        name: "module:function"; it takes nothing and returns `(model, batch, loss)`, as BatchObjective takes them.
        batch: rows; None keeps those of the batch.

    Raises:
        ValueError: there is no such function, or it returns something else.
    """
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be called ({error}). Name a function that takes nothing, as module:function."
        ) from error
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module) and callable(made[2])):
        raise ValueError(
            f"{name} returned {type(made).__name__}; a plan needs `(model, batch, loss)`: a module, a dict of tensors with a "
            "row for each example, and a function `loss(model, batch)` that returns one loss for each row."
        )
    model, rows, loss = made
    return ReadySubject(name=name, model=model, batch=rows, loss=loss, rows=num_rows(rows) if batch is None else batch)


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe."""
    return name in recipes()


def silent_workspace(scratch: Any) -> Workspace:
    """A workspace that says nothing."""
    return Workspace(scratch=scratch, display=Display(None))

"""What recipes have in common that train a network by a method without a journal."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, ClipGradient, Objective
from featherlight.recipes.methods import METHODS, Setup
from featherlight.recipes.optimizer_config import OptimizerConfig


class TrainingConfig(Protocol):
    """What a config says of training."""

    @property
    def method(self) -> str:
        """Key of METHODS."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """How the weights are moved."""
        ...

    @property
    def batch(self) -> int:
        """Examples a step."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...


def settled(
    config: TrainingConfig, networks: str, learning_rates: Mapping[str, float] | None = None
) -> OptimizerConfig:
    """How the weights are moved, with every choice made.

    Args:
        config: of the run.
        networks: what is trained, for the sentence.
        learning_rates: of methods that need another than they have by themselves, where the config has none.

    Raises:
        ValueError: the method is none, or needs a journal.
    """
    known = [key for key, method in METHODS.items() if not method.replayable]
    if config.method not in known:
        raise ValueError(f"`method` must be one of {', '.join(known)} for {networks}; got {config.method!r}.")
    given, method = config.optimizer, METHODS[config.method]
    lr = (learning_rates or {}).get(config.method, method.default_lr) if given.lr is None else given.lr
    return replace(given, lr=lr, schedule=given.schedule if method.scheduled else "constant")


def build_optimizer(
    config: TrainingConfig, model: nn.Module, meter: Meter, *, head: nn.Linear | None = None
) -> Optimizer:
    """The optimizer of the method of a config with every choice made; `head` is the output layer, where one is told apart."""
    assert config.optimizer.lr is not None, "the config is settled"
    setup = Setup(
        model=model,
        head=head,
        lr=config.optimizer.lr,
        settings=config.optimizer,
        batch=config.batch,
        seed=config.seed,
        journal=None,
        meter=meter,
    )
    return METHODS[config.method].build(setup)


def clipped(config: TrainingConfig, objective: BatchObjective, model: nn.Module) -> Objective:
    """The objective with its gradient as short as the config asks for."""
    clip = config.optimizer.clip
    return objective if clip is None else ClipGradient(objective, model.parameters(), clip)

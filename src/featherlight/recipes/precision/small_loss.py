"""A classifier whose loss has a very small weight, ready to run: what loss scaling is for."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, Objective, PerExampleLoss
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.arithmetic import Arithmetic, arithmetic
from featherlight.recipes.classify.experiment import build_experiment as build_classifier
from featherlight.recipes.precision.config import LossScalingConfig
from featherlight.recipes.precision.experiment import last_step
from featherlight.recipes.precision.sections import format_sections
from featherlight.trainer import Experiment, Stage, Workspace

_EPS = 1e-20  # of AdamW, far below the smallest gradients, so that its step does not depend on the loss's weight


def build_experiment(config: LossScalingConfig, workspace: Workspace) -> Experiment:
    """Loads the images and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    classify = replace(config.classify, precision="fp32", seed=config.seed, device=config.device)
    whole = build_classifier(classify, workspace)
    (plain,) = whole.stages
    chosen = arithmetic(config.precision, method=classify.method)
    lowered = chosen if config.scaling else Arithmetic(chosen.precision, None)
    decay = classify.optimizer.weight_decay

    def optimizer(journal: Journal | None, meter: Meter) -> Optimizer:
        trained = [parameter for parameter in whole.model.parameters() if parameter.requires_grad]
        lr = whole.config.optimizer.lr
        return lowered.scaled(AdamW(trained, lr=lr, weight_decay=decay, eps=_EPS))

    stage = replace(
        plain,
        objective=lambda step, meter: _light(plain, step, meter, config.loss_weight, lowered),
        optimizer=optimizer,
    )
    return replace(
        whole,
        stages=[stage],
        evaluate=lambda: lowered.noted(whole.evaluate()),
        title=_title(config),
        facts={**whole.facts, **_facts(config), **lowered.facts()},
        sections=lambda: [*lowered.sections(), *format_sections(last_step(whole.model, stage)), *whole.sections()],
        config=replace(config, classify=whole.config),
    )


def _light(plain: Stage, step: int, meter: Meter, weight: float, lowered: Arithmetic) -> Objective:
    """The objective of a step with a weight on its loss."""
    heavy = plain.objective(step, meter)
    assert isinstance(heavy, BatchObjective), "there is no clipping"
    return BatchObjective(
        heavy.model,
        heavy.batch,
        lowered.lowered(_weighted(heavy.loss, weight)),
        micro_batch=heavy.micro_batch,
        dropout_seed=heavy.dropout_seed,
        meter=meter,
    )


def _weighted(loss: PerExampleLoss, weight: float) -> PerExampleLoss:
    def weighted(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return loss(model, batch) * weight

    return weighted


def _title(config: LossScalingConfig) -> str:
    scaling = {"fp16": " with loss scaling" if config.scaling else " without loss scaling"}.get(config.precision, "")
    return f"{config.precision}{scaling}, tiny gradients"


def _facts(config: LossScalingConfig) -> Mapping[str, str]:
    return {"weight of the loss": f"{config.loss_weight:.3g}"}

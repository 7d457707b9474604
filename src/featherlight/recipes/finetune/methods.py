"""The methods of a fine-tune. The table at the end is the one place where their names stand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import AdamW, Optimizer

from featherlight.meter import Meter
from featherlight.nn.models import Pretrained
from featherlight.optim import MeZO, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.finetune.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a method is set up.

    Attributes:
        build: makes the optimizer of a loaded model from a config, a journal and a meter.
        default_lr: learning rate where the config has none.
        dropout: whether steps run with dropout; forward-only methods compare evaluations of one function without it.
        replayable: whether a journal stands for the run; the others are saved.
    """

    build: Callable[[Pretrained, float, FinetuneConfig, Journal | None, Meter], Optimizer]
    default_lr: float
    dropout: bool
    replayable: bool


def _zo(loaded: Pretrained, lr: float, config: FinetuneConfig, journal: Journal | None, meter: Meter) -> Optimizer:
    return ZerothOrderSGD(
        loaded.model,
        lr,
        sigma=config.optimizer.sigma,
        directions=RankOneSigns(config.optimizer.directions),
        normalize=SpreadNormalized() if config.optimizer.normalize else None,
        weight_decay=config.optimizer.weight_decay,
        params=_groups(loaded, config.optimizer.head_scale),
        seed=config.seed,
        journal=journal,
        meter=meter,
    )


def _groups(loaded: Pretrained, head_scale: float) -> list[dict[str, Any]]:
    """The trained parameters, those of the head in a group of their own."""
    of_head = set() if loaded.head is None else {id(parameter) for parameter in loaded.head.parameters()}
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in of_head]},
        {"params": [p for p in trained if id(p) in of_head], "scale": head_scale},
    ]
    return [group for group in groups if group["params"]]


def _mezo(loaded: Pretrained, lr: float, config: FinetuneConfig, journal: Journal | None, meter: Meter) -> Optimizer:
    return MeZO(
        loaded.model,
        lr,
        sigma=config.optimizer.sigma,
        weight_decay=config.optimizer.weight_decay,
        seed=config.seed,
        meter=meter,
    )


def _adamw(loaded: Pretrained, lr: float, config: FinetuneConfig, journal: Journal | None, meter: Meter) -> Optimizer:
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    return AdamW(trained, lr=lr, weight_decay=config.optimizer.weight_decay, fused=True)


METHODS: dict[str, Method] = {
    "zo": Method(build=_zo, default_lr=1e-3, dropout=False, replayable=True),
    "mezo": Method(build=_mezo, default_lr=1e-6, dropout=False, replayable=False),
    "adamw": Method(build=_adamw, default_lr=5e-5, dropout=True, replayable=False),
}

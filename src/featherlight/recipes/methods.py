"""The methods by which a model is trained. The table at the end is the one place where their names stand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from featherlight.meter import Meter
from featherlight.optim import (
    AGZO,
    LOZO,
    CentredRanks,
    ConMeZO,
    MeZO,
    MeZOSVRG,
    OneSided,
    Prodigy,
    RankOneSigns,
    SpreadNormalized,
    StandardDeviation,
    WholeBatchSigns,
    ZerothOrderSGD,
    muon_with_adamw,
    schedule_free_adamw,
)
from featherlight.optim.zeroth_order import Journal
from featherlight.optim.zeroth_order.update import MAX_DIRECTIONS
from featherlight.recipes.optimizer_config import OptimizerConfig

_DEFAULT_SIGMA = 1e-3


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an optimizer is made of.

    Attributes:
        model: whose parameters that require a gradient are trained.
        head: the linear layer of it that is scaled by `head_scale`, if it has one.
        lr: learning rate.
        settings: all else that the config says.
        batch: examples of a step.
        seed: of the directions.
        journal: is handed the steps of a method that can replay them.
        meter: counts the work done.
    """

    model: nn.Module
    head: nn.Linear | None
    lr: float
    settings: OptimizerConfig
    batch: int
    seed: int
    journal: Journal | None
    meter: Meter

    @property
    def sigma(self) -> float:
        """Scale of the perturbation."""
        return _DEFAULT_SIGMA if self.settings.sigma is None else self.settings.sigma

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a method is set up.

    Attributes:
        build: makes the optimizer.
        default_lr: learning rate of a pretrained text model where the config has none.
        dropout: whether steps run with dropout; forward-only methods compare evaluations of one function without it.
        replayable: whether a journal stands for the run; the others are saved.
        anchored: whether every `optimizer.anchor_every`-th step is handed a large batch.
        scheduled: whether the learning rate follows `optimizer.schedule`; else it is constant.
    """

    build: Callable[[Setup], Optimizer]
    default_lr: float
    dropout: bool
    replayable: bool
    anchored: bool = False
    scheduled: bool = True


def _zo(setup: Setup) -> Optimizer:
    settings = setup.settings
    return ZerothOrderSGD(
        setup.model,
        setup.lr,
        directions=RankOneSigns(settings.directions),
        shaping=CentredRanks() if settings.shaping == "ranks" else None,
        normalize=_normalize(settings),
        **_recorded(setup),
    )


def _svrg(setup: Setup) -> Optimizer:
    """An anchor carries as many directions as a small batch: with one for each of its examples it would be a full matrix."""
    settings = setup.settings
    assert settings.anchor_lr is not None, "the config is resolved"
    return MeZOSVRG(
        setup.model,
        setup.lr,
        settings.anchor_lr,
        settings.anchor_every,
        directions=RankOneSigns(settings.directions or min(setup.batch, MAX_DIRECTIONS)),
        normalize=_normalize(settings),
        **_recorded(setup),
    )


def _fzoo(setup: Setup) -> Optimizer:
    """`FZOO` at the rate `lr * sigma`, so that `lr` is a distance as it is for the others."""
    directions = WholeBatchSigns(setup.settings.directions or 8)
    parts = {"directions": directions, "difference": OneSided(), "normalize": StandardDeviation()}
    return ZerothOrderSGD(setup.model, setup.lr, **parts, **_recorded(setup))


def _lozo(setup: Setup) -> Optimizer:
    directions = RankOneSigns(setup.settings.directions)
    return LOZO(setup.model, setup.lr, directions=directions, normalize=_normalize(setup.settings), **_recorded(setup))


def _conmezo(setup: Setup) -> Optimizer:
    directions = RankOneSigns(setup.settings.directions)
    return ConMeZO(
        setup.model, setup.lr, directions=directions, normalize=_normalize(setup.settings), **_recorded(setup)
    )


def _agzo(setup: Setup) -> Optimizer:
    recorded = {name: value for name, value in _recorded(setup).items() if name != "journal"}
    return AGZO(setup.model, setup.lr, normalize=_normalize(setup.settings), **recorded)


def _normalize(settings: OptimizerConfig) -> SpreadNormalized | None:
    return SpreadNormalized() if settings.normalize else None


def _recorded(setup: Setup) -> dict[str, Any]:
    """What all methods are told that keep a journal."""
    return {
        "sigma": setup.sigma,
        "weight_decay": setup.settings.weight_decay,
        "params": _groups(setup),
        "seed": setup.seed,
        "journal": setup.journal,
        "meter": setup.meter,
    }


def _groups(setup: Setup) -> list[dict[str, Any]]:
    """The trained parameters, those of the head in a group of their own."""
    of_head = set() if setup.head is None else {id(parameter) for parameter in setup.head.parameters()}
    groups = [
        {"params": [p for p in setup.trained if id(p) not in of_head]},
        {"params": [p for p in setup.trained if id(p) in of_head], "scale": setup.settings.head_scale},
    ]
    return [group for group in groups if group["params"]]


def _mezo(setup: Setup) -> Optimizer:
    return MeZO(
        setup.model,
        setup.lr,
        sigma=setup.sigma,
        weight_decay=setup.settings.weight_decay,
        seed=setup.seed,
        meter=setup.meter,
    )


def _adamw(setup: Setup) -> Optimizer:
    return AdamW(setup.trained, lr=setup.lr, weight_decay=setup.settings.weight_decay, fused=True)


def _prodigy(setup: Setup) -> Optimizer:
    return Prodigy(setup.trained, lr=setup.lr, weight_decay=setup.settings.weight_decay, bias_correction=True)


def _muon(setup: Setup) -> Optimizer:
    return muon_with_adamw(setup.model, setup.lr, weight_decay=setup.settings.weight_decay, head=setup.head)


def _schedule_free(setup: Setup) -> Optimizer:
    return schedule_free_adamw(setup.trained, lr=setup.lr, weight_decay=setup.settings.weight_decay)


METHODS: dict[str, Method] = {
    "zo": Method(build=_zo, default_lr=1e-3, dropout=False, replayable=True),
    "svrg": Method(build=_svrg, default_lr=1e-3, dropout=False, replayable=True, anchored=True),
    "fzoo": Method(build=_fzoo, default_lr=1e-3, dropout=False, replayable=True),
    "lozo": Method(build=_lozo, default_lr=1e-3, dropout=False, replayable=True),
    "conmezo": Method(build=_conmezo, default_lr=1e-3, dropout=False, replayable=True),
    "agzo": Method(build=_agzo, default_lr=1e-3, dropout=False, replayable=False),
    "mezo": Method(build=_mezo, default_lr=1e-6, dropout=False, replayable=False),
    "adamw": Method(build=_adamw, default_lr=5e-5, dropout=True, replayable=False),
    "prodigy": Method(build=_prodigy, default_lr=1.0, dropout=True, replayable=False),
    "muon": Method(build=_muon, default_lr=5e-5, dropout=True, replayable=False),
    "schedule_free": Method(build=_schedule_free, default_lr=5e-5, dropout=True, replayable=False, scheduled=False),
}

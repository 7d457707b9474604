"""Stochastic gradient descent on slopes along rank-one sign directions, by forward passes alone."""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns
from featherlight.optim.zeroth_order.guards import (
    frozen_statistics,
    require_eager,
    require_finite_rates,
    require_objective,
)
from featherlight.optim.zeroth_order.targets import Target
from featherlight.optim.zeroth_order.update import StepRecord, apply_update, apply_updates, quantize_coefficients


class Journal(Protocol):
    """Keeps the records of a run. Called between the coefficients and the update."""

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        """Returns when the record is safe; the update is applied only then."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpreadNormalized:
    """Divides the step by the running root mean square of the slopes, so that `lr` is a distance in weight space.

    Args:
        decay: of the running mean square, in [0, 1).
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must be in [0, 1) (1 would never forget the first step); got {self.decay}.")


class ZerothOrderSGD(Optimizer):
    """Forward-only SGD at inference memory: the weights are perturbed inside the forward pass and never copied.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        sigma: scale of the perturbation.
        directions: how many rank-one sign directions a batch carries.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled, as in AdamW: weights shrink by `lr * weight_decay` a step.
        params: parameters or parameter groups, as for torch.optim; None takes all that require a gradient. The `scale` of a
            group (1 if it has none) is how much further its parameters are perturbed and moved than others.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update.
        meter: counts random words and weight passes.

    Attributes:
        evaluator: measures the slopes.
        targets: the trained parameters; those that take no part in the loss are left out after the first step.
        steps_done: steps so far; the number of the next one.
        mean_square: running mean square of the slopes, of `normalize`.

    `step(objective)` returns the mean loss of both evaluations. Cost: two forward passes and one pass over the trained
    weights; memory beyond inference of a few MB. Replayable: base weights and records give the same bits.
    Source: SPSA (Spall 1992) as MeZO uses it (Malladi et al. 2023, arXiv 2305.17333); directions, exact update and
    one direction per example are design.md, section 5.
    """

    replayable = True
    """Base weights and the records of its steps give the trained weights, bit for bit."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        sigma: float = 1e-3,
        directions: RankOneSigns | None = None,
        normalize: SpreadNormalized | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        meter: Meter | None = None,
    ) -> None:
        require_eager(model)
        check_positive("lr", lr, allow_zero=True)
        check_positive("sigma", sigma)
        check_positive("weight_decay", weight_decay, allow_zero=True)
        SignStream(seed=seed, step=0)
        chosen: Any = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
        super().__init__(chosen, {"lr": lr, "weight_decay": weight_decay, "scale": 1.0})
        self.model = model
        self.seed = seed
        self.normalize = normalize
        self.journal = journal
        self.meter = meter if meter is not None else Meter()
        self.evaluator = SlopeEvaluator(directions if directions is not None else RankOneSigns(), sigma)
        self.steps_done = 0
        self.mean_square = 0.0
        self.targets = targets_of(model, self.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on an Objective.

        Raises:
            ValueError: no Objective, or one that changes buffers or mixes examples.
            NonFiniteLossError: a loss is NaN or infinite; nothing was applied.
        """
        objective = require_objective(closure, type(self).__name__)
        stream = SignStream(seed=self.seed, step=self.steps_done)
        with frozen_statistics(self.model), self._constant_sharing():
            measured = self.evaluator.measure(objective, self.targets, stream)
        if self.steps_done == 0:
            self._leave_out_unused(measured)
        record = self._record(measured)
        if self.journal is not None:
            self.journal.append(record, self.targets)
        self.meter.random_words += measured.directions.num_words
        self._count_step(record)
        apply_update(self.targets, record, meter=self.meter, directions=measured.directions)
        return measured.loss

    def replay(self, records: Sequence[StepRecord]) -> None:
        """Applies recorded steps, and ends in the state that the run was in behind them.

        Raises:
            ValueError: they do not start at this optimizer's step or have other parameter groups.
        """
        for record in records:
            self._count_step(record)
        apply_updates(self.targets, records, meter=self.meter)

    @contextmanager
    def _constant_sharing(self) -> Iterator[None]:
        """After the first step no target starts to share its direction: the journal's header says which do."""
        before = {target: target.shared for target in self.targets}
        yield
        changed = [target for target in self.targets if target.shared != before[target]]
        if not changed or self.steps_done == 0:
            return
        for target in changed:
            target.shared = before[target]
        raise ValueError(
            f"{changed[0].name} is used in a way it was not when the run began (each example had a direction of it then), so "
            "the run's records would no longer fit. Keep model and batches alike, or use RankOneSigns(count=1)."
        )

    def _count_step(self, record: StepRecord) -> None:
        if record.step != self.steps_done or len(record.rates) != len(self.param_groups):
            raise ValueError(
                f"the record of step {record.step} with {len(record.rates)} parameter groups does not fit an optimizer at "
                f"step {self.steps_done} with {len(self.param_groups)}. Replay a journal from its start, in order."
            )
        self.mean_square = self._next_mean_square(record.coefficients, record.scale)
        self.steps_done += 1

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        spread = 1.0
        if self.normalize is not None:
            correction = 1 - self.normalize.decay ** (self.steps_done + 1)
            spread = (self._next_mean_square(coefficients, scale) / correction) ** 0.5
        per_unit = scale / spread if spread > 0 else 0.0
        rates = tuple(to_float32(group["lr"] * group["scale"] * per_unit) for group in self.param_groups)
        require_finite_rates(scale, rates, self.steps_done)
        return StepRecord(
            step=self.steps_done,
            seed=self.seed,
            scale=scale,
            rates=rates,
            decays=tuple(to_float32(1 - group["lr"] * group["weight_decay"]) for group in self.param_groups),
            coefficients=coefficients,
        )

    def _next_mean_square(self, coefficients: Tensor, scale: float) -> float:
        """From the recorded integers, so that a replay arrives at the same bits."""
        if self.normalize is None:
            return 0.0
        count = len(coefficients)
        mean_square = int((coefficients * coefficients).sum()) * (scale * count) ** 2 / count
        return self.normalize.decay * self.mean_square + (1 - self.normalize.decay) * mean_square

    def _leave_out_unused(self, measured: Slopes) -> None:
        unused = [target.name for target in self.targets if target.index not in measured.touched]
        if not unused:
            return
        self.targets = [target for target in self.targets if target.index in measured.touched]
        if not self.targets:
            raise ValueError("no trained parameter takes part in the loss. Check which parameters require a gradient.")
        names = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if unused[4:] else "")
        warnings.warn(f"{names} take no part in the loss and are left as they are.", UserWarning, stacklevel=4)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError once the optimizer is made: the journal names the groups once."""
        if "targets" in vars(self):
            raise ValueError(
                "the parameter groups of ZerothOrderSGD are fixed when it is made, since its journal names them once. Pass "
                "all groups as `params`, with `lr` 0 for those that are to start later."
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of a torch optimizer, with the seed, the number of steps and which targets are trained."""
        state = super().state_dict()
        state["zeroth_order"] = {
            "seed": self.seed,
            "steps_done": self.steps_done,
            "mean_square": self.mean_square,
            "targets": [target.index for target in self.targets],
            "shared": [target.index for target in self.targets if target.shared],
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; raises ValueError for another optimizer's."""
        own = own_state(state_dict, type(self).__name__)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zeroth_order"})
        self.seed, self.steps_done, self.mean_square = own["seed"], own["steps_done"], own["mean_square"]
        self.keep_targets(own["targets"], own["shared"])

    def keep_targets(self, kept: Collection[int], shared: Collection[int]) -> None:
        """Takes over from an earlier part of the run which targets (by index) are trained, and which share directions."""
        targets = {target.index: target for target in targets_of(self.model, self.param_groups)}
        if missing := set(kept) - set(targets):
            raise ValueError(
                f"the run trained parameters that this optimizer does not have (numbers {sorted(missing)[:4]}), so it cannot "
                "go on. Choose the same trained parameters of the same model."
            )
        self.targets = [target for index, target in targets.items() if index in kept]
        for target in self.targets:
            target.shared = target.index in shared

    def __getstate__(self) -> dict[str, Any]:
        """A copy writes to no journal: two optimizers must not append to one."""
        return {name: value for name, value in self.__dict__.items() if name != "step"} | {"journal": None}


def targets_of(model: nn.Module, param_groups: list[dict[str, Any]]) -> list[Target]:
    """The parameters of the groups as targets, numbered in the model's own order.

    Raises:
        ValueError: a parameter is not the model's, is not real floating point, or lies on another device.
    """
    names = {id(parameter): (index, name) for index, (name, parameter) in enumerate(model.named_parameters())}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    targets = []
    for group, entry in enumerate(param_groups):
        scale = entry.get("scale", 1.0)
        check_positive("scale", scale)
        for parameter in entry["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} in `params` does not belong to the model, so it would "
                    "never be perturbed. Pass parameters of the module that the optimizer was given."
                )
            index, name = names[id(parameter)]
            if not parameter.dtype.is_floating_point or parameter.element_size() < 2:
                raise ValueError(
                    f"`{name}` has dtype {parameter.dtype}, which cannot be trained. Freeze it (requires_grad=False)."
                )
            targets.append(
                Target(
                    name=name,
                    parameter=parameter,
                    index=index,
                    group=group,
                    scale=scale,
                    is_table=id(parameter) in tables,
                )
            )
    devices = {target.parameter.device for target in targets}
    if len(devices) > 1:
        raise ValueError(f"the trained parameters lie on several devices ({devices}); put the model on one of them.")
    return sorted(targets, key=lambda target: target.index)


def own_state(state_dict: dict[str, Any], optimizer: str) -> dict[str, Any]:
    """The part of a state that torch's own optimizers do not have; raises ValueError where it is missing."""
    if "zeroth_order" not in state_dict:
        raise ValueError(
            f"this is not the state of a {optimizer}: it has {sorted(map(str, state_dict))} and no 'zeroth_order'. "
            "Load what its own `state_dict()` returned."
        )
    return state_dict["zeroth_order"]


def check_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raises ValueError unless `value` is a finite positive number."""
    if not (0 < value < float("inf") or (allow_zero and value == 0)):
        raise ValueError(f"`{name}` must be a finite positive number; got {value}.")


def to_float32(value: float) -> float:
    """The nearest float32."""
    return float(torch.tensor(value, dtype=torch.float32))

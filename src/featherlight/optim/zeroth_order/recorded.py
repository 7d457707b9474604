"""What forward-only optimizers share whose steps are seeds and whole numbers: records, journal, replay and state."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.evaluation import Slopes
from featherlight.optim.zeroth_order.gathering import Settled
from featherlight.optim.zeroth_order.guards import (
    check_positive,
    frozen_statistics,
    require_eager,
    require_finite_rates,
    require_objective,
    to_float32,
)
from featherlight.optim.zeroth_order.normalization import Normalization
from featherlight.optim.zeroth_order.targets import Target, targets_of
from featherlight.optim.zeroth_order.update import Echo, StepRecord, apply_update, apply_updates


class Journal(Protocol):
    """Keeps the records of a run. Called between the coefficients and the update."""

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        """Returns when the record is safe; the update is applied only then."""
        ...


class RecordedOptimizer(Optimizer, ABC):
    """A forward-only optimizer that measures slopes, records them as whole numbers, and moves the weights by the record.

    A method is a class of its own that says how slopes are measured (`_measure`) and what is recorded of them
    (`_record`); what it carries from step to step it takes from the records alone (`_remember`), so that a replay ends in
    the state of the run.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        params: parameters or parameter groups; None takes all that require a gradient.
        lr: learning rate of groups that name none, 0 or above.
        weight_decay: decoupled, of groups that name none, 0 or above.
        seed: 64-bit key of all directions.
        normalize: divides the step by a size of the slopes; None leaves it as measured.
        journal: is handed a record of each step before the update.
        meter: counts random words and weight passes.

    Raises:
        ValueError: a rate or a decay that is negative or not finite, a compiled model, or a seed of more than 64 bits.

    Attributes:
        targets: the trained parameters; those that take no part in the loss are left out after the first step.
        steps_done: steps so far; the number of the next one.
        normalize: as given.
        mean_square: what it carries from step to step, such as the running mean square of the slopes.
        earlier: the records, by step, that later ones may echo.
    """

    replayable = True
    """Base weights and the records of its steps give the trained weights, bit for bit."""

    def __init__(
        self,
        model: nn.Module,
        params: ParamsT | None,
        lr: float,
        weight_decay: float,
        *,
        normalize: Normalization | None = None,
        seed: int,
        journal: Journal | None,
        meter: Meter | None,
    ) -> None:
        check_positive("lr", lr, allow_zero=True)
        check_positive("weight_decay", weight_decay, allow_zero=True)
        require_eager(model)
        SignStream(seed=seed, step=0)
        chosen: Any = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
        super().__init__(chosen, {"scale": 1.0, "lr": lr, "weight_decay": weight_decay})
        self.model = model
        self.seed = seed
        self.journal = journal
        self.meter = meter if meter is not None else Meter()
        self.steps_done = 0
        self.normalize = normalize
        self.mean_square = 0.0
        self.earlier: dict[int, StepRecord] = {}
        self.targets = self._make_targets()

    @abstractmethod
    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        """Evaluates the model around its weights; `stream` is that of the step."""

    @abstractmethod
    def _record(self, measured: Slopes) -> StepRecord:
        """What the step subtracts."""

    def _settle(self, measured: Slopes) -> Settled:
        """The record of the step, and its loss; a method that several processes measure together gathers here."""
        return Settled(self._record(measured), measured.loss)

    def _make_targets(self) -> list[Target]:
        """The trained parameters, as the method moves them."""
        return targets_of(self.model, self.param_groups)

    def _remember(self, record: StepRecord) -> None:
        """Carries on what the method keeps of its past, when a step is taken and when one is replayed."""
        if self.normalize is not None:
            self.mean_square = self._next_mean_square(self.normalize, record.coefficients, record.scale)

    def _next_mean_square(self, normalize: Normalization, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """What is carried to the next step of the size of the slopes."""
        return normalize.next(self.mean_square, coefficients, scale)

    def _spread(self, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """What the step is divided by; infinite where all slopes so far were zero."""
        if self.normalize is None:
            return 1.0
        mean_square = self._next_mean_square(self.normalize, coefficients, scale)
        return self.normalize.spread(mean_square, self.steps_done + 1) or float("inf")

    def _own_state(self) -> dict[str, Any]:
        """What the method keeps besides, as plain values."""
        return {}

    def _take_state(self, state: dict[str, Any]) -> None:
        """Takes over what `_own_state` returned."""

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on an Objective.

        Raises:
            ValueError: no Objective, or one that changes buffers or mixes examples.
            NonFiniteLossError: a loss is NaN or infinite; nothing was applied.
        """
        objective = require_objective(closure, type(self).__name__)
        stream = SignStream(seed=self.seed, step=self.steps_done)
        with frozen_statistics(self.model), self._constant_sharing():
            measured = self._measure(objective, stream)
        if self.steps_done == 0:
            self._leave_out_unused(measured)
        record, loss = self._settle(measured)
        if self.journal is not None:
            self.journal.append(record, self.targets)
        self.meter.random_words += measured.directions.num_words
        earlier = dict(self.earlier)
        self._count_step(record)
        apply_update(self.targets, record, meter=self.meter, directions=measured.directions, earlier=earlier)
        return loss

    def replay(self, records: Sequence[StepRecord]) -> None:
        """Applies recorded steps, and ends in the state that the run was in behind them.

        Raises:
            ValueError: they do not start at this optimizer's step or have other parameter groups, or the method cannot be
                replayed at all.
        """
        if not self.replayable:
            raise ValueError(
                f"the directions of {type(self).__name__} depend on the data, so records alone do not repeat its steps. "
                "Resume from a save."
            )
        earlier = dict(self.earlier)
        for record in records:
            self._count_step(record)
        apply_updates(self.targets, records, meter=self.meter, earlier=earlier)

    def _rates(self, per_unit: float) -> tuple[float, ...]:
        """What a unit of the coefficients is worth in the step, for each parameter group."""
        return tuple(to_float32(group["lr"] * group["scale"] * per_unit) for group in self.param_groups)

    def _new_record(
        self,
        coefficients: Int[Tensor, "K"],
        scale: float,
        rates: tuple[float, ...],
        *,
        echoes: tuple[Echo, ...] = (),
        decayed_steps: float = 1.0,
    ) -> StepRecord:
        """The next step, against its slopes.

        Args:
            coefficients: of the directions.
            scale: what one unit of them is worth as a slope.
            rates: what it is worth in the step.
            echoes: of earlier steps.
            decayed_steps: for how many steps of `lr` the weights decay.

        Raises:
            NonFiniteLossError: a rate is beyond float32.
        """
        for all_rates in (rates, *(echo.rates for echo in echoes)):
            require_finite_rates(scale, all_rates, self.steps_done)
        return StepRecord(
            step=self.steps_done,
            seed=self.seed,
            scale=scale,
            rates=rates,
            decays=tuple(to_float32(1 - g["lr"] * decayed_steps * g["weight_decay"]) for g in self.param_groups),
            coefficients=coefficients,
            echoes=echoes,
        )

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
        self._remember(record)
        self.steps_done += 1

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
                f"the parameter groups of {type(self).__name__} are fixed when it is made, since its journal names them once. "
                "Pass all groups as `params`, with `lr` 0 for those that are to start later."
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of a torch optimizer, with the seed, the number of steps and which targets are trained."""
        state = super().state_dict()
        state["zeroth_order"] = {
            "seed": self.seed,
            "steps_done": self.steps_done,
            "targets": [target.index for target in self.targets],
            "shared": [target.index for target in self.targets if target.shared],
            "earlier": [record.as_dict() for record in self.earlier.values()],
            "mean_square": self.mean_square,
            **self._own_state(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; raises ValueError for another optimizer's."""
        own = own_state(state_dict, type(self).__name__)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zeroth_order"})
        self.seed, self.steps_done = own["seed"], own["steps_done"]
        self.mean_square = own["mean_square"]
        self.earlier = {values["step"]: StepRecord.from_dict(values) for values in own["earlier"]}
        self.keep_targets(own["targets"], own["shared"])
        self._take_state(own)

    def keep_targets(self, kept: Collection[int], shared: Collection[int]) -> None:
        """Takes over from an earlier part of the run which targets (by index) are trained, and which share directions."""
        targets = {target.index: target for target in self._make_targets()}
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


def own_state(state_dict: dict[str, Any], optimizer: str) -> dict[str, Any]:
    """The part of a state that torch's own optimizers do not have; raises ValueError where it is missing."""
    if "zeroth_order" not in state_dict:
        raise ValueError(
            f"this is not the state of a {optimizer}: it has {sorted(map(str, state_dict))} and no 'zeroth_order'. "
            "Load what its own `state_dict()` returned."
        )
    return state_dict["zeroth_order"]

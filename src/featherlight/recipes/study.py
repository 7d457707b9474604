"""Optuna's side of a search: its storage in the study's directory, what it proposes and what it is told."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featherlight.recipes.search_space import Parameter

if TYPE_CHECKING:
    import optuna

_NAME = "search"
_NO_PRUNING_BEFORE_TRIALS = 5
_TENTHS = 10
_NO_PRUNING_BEFORE_TENTH = 2
_MOST_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as it is kept.

    Attributes:
        number: from 0.
        values: of the keys that are searched over; as Optuna keeps them.
        stopped: "finished", "pruned", "not finite", "failed", or "under way".
        metric: at the end; None where the trial did not come to one.
        same_as: number of an earlier trial with the same values, whose outcome it takes.
        note: a sentence, where something went wrong.
    """

    number: int
    values: Mapping[str, Any]
    stopped: str
    metric: float | None
    same_as: int | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; `stopped` and `note` as in `Trial`, or "interrupted".

    Attributes:
        stopped: why it ended.
        metric: at the end.
        note: a sentence, where something went wrong.
        same_as: number of the trial whose outcome this is.
    """

    stopped: str
    metric: float | None = None
    note: str = ""
    same_as: int | None = None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial that is to be run, or gone on with.

    Attributes:
        number: from 0.
        values: of the keys that are searched over, as in a config.
        starts: how often it was begun and then killed.
    """

    number: int
    values: Mapping[str, Any]
    starts: int
    handle: optuna.Trial

    @property
    def killed_too_often(self) -> bool:
        """Whether it would only be killed again."""
        return self.starts >= _MOST_STARTS


def load_optuna() -> None:
    """Raises ValueError if Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            f"a search needs Optuna, which is not installed ({error}). Run: pip install 'featherlight[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """A study in a directory that this process has locked.

    Args:
        journal: file of Optuna's storage; made if it is not there.
        space: what is searched over.
        seed: of the proposals.
        lower_is_better: of the runs' metric; asked for a new study only.
        start: values by key of the first trial, where the space holds them.

    Raises:
        ValueError: the journal is damaged.
    """

    def __init__(
        self,
        journal: Path,
        space: Sequence[Parameter],
        *,
        seed: int,
        lower_is_better: Callable[[], bool],
        start: Mapping[str, Any],
    ) -> None:
        import optuna

        self._space, self._seed = space, seed
        self._storage = _storage(journal)
        if not self._storage.get_all_studies():
            directions = optuna.study.StudyDirection
            direction = directions.MINIMIZE if lower_is_better() else directions.MAXIMIZE
            self._storage.create_new_study([direction], _NAME)
        pruner = optuna.pruners.MedianPruner(_NO_PRUNING_BEFORE_TRIALS, _NO_PRUNING_BEFORE_TENTH)
        self._study = optuna.load_study(study_name=_NAME, storage=self._storage, pruner=pruner)
        first = {one.key: one.stored(start.get(one.key)) for one in space}
        if not self._study.trials and all(value is not None for value in first.values()):
            self._study.enqueue_trial(first)

    @property
    def lower_is_better(self) -> bool:
        """Whether small values of the metric are good."""
        return self._study.direction.name == "MINIMIZE"

    def num_left(self, trials: int, *, failed_now: int) -> int:
        """How many of so many trials are to be run; failures before count only once a trial has worked."""
        ended = self.trials()
        worked = sum(one.stopped in ("finished", "pruned", "not finite") for one in ended)
        failed = sum(one.stopped == "failed" for one in ended)
        return trials - worked - (failed if worked else failed_now)

    def propose(self) -> Proposal:
        """The trial that was stopped, or else a new one."""
        import optuna

        states = optuna.trial.TrialState
        stopped = self._study.get_trials(deepcopy=False, states=(states.RUNNING,))
        if stopped:
            number = stopped[0].number
            study_id = self._storage.get_study_id_from_name(_NAME)
            handle = optuna.Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        else:
            number = len(self._study.get_trials(deepcopy=False, states=tuple(s for s in states if s != states.WAITING)))
            seed = random.Random(f"{self._seed}/{number}").getrandbits(32)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed)
            handle = self._study.ask()
        values = {one.key: one.suggest(handle) for one in self._space}
        return Proposal(number=handle.number, values=values, starts=handle.user_attrs.get("starts", 0), handle=handle)

    def begin(self, proposal: Proposal) -> None:
        """Takes down that the trial was begun."""
        proposal.handle.set_user_attr("starts", proposal.starts + 1)

    def pause(self, proposal: Proposal) -> None:
        """The trial was left on purpose and is gone on with the next time."""
        proposal.handle.set_user_attr("starts", 0)

    def judge(self, proposal: Proposal) -> Callable[[float, float], bool]:
        """Reports the metric at each tenth of the budget, and says whether the trial is worth going on with."""
        reported = set(self._study.get_trials(deepcopy=False)[proposal.number].intermediate_values)

        def go_on(used: float, metric: float) -> bool:
            tenth = round(_TENTHS * used)
            if tenth in reported or not math.isfinite(metric):
                return True
            reported.add(tenth)
            proposal.handle.report(metric, tenth)
            return not proposal.handle.should_prune()

        return go_on

    def twin(self, proposal: Proposal) -> Trial | None:
        """An earlier trial with the same values, which would come to the same; None if there is none."""
        values = proposal.handle.params
        return next(
            (
                one
                for one in self.trials()
                if one.number != proposal.number
                and one.values == values
                and one.same_as is None
                and one.stopped in ("finished", "pruned", "not finite")
            ),
            None,
        )

    def end(self, proposal: Proposal, outcome: Outcome) -> None:
        """Takes down how the trial ended. A loss that was not finite counts as pruned: a place to keep away from."""
        import optuna

        states, handle = optuna.trial.TrialState, proposal.handle
        finite = outcome.metric is not None and math.isfinite(outcome.metric)
        for name, value in (("stopped", outcome.stopped), ("note", outcome.note), ("same_as", outcome.same_as)):
            handle.set_user_attr(name, value)
        if outcome.stopped == "finished" and finite:
            self._study.tell(handle, outcome.metric)
        else:
            failed = outcome.stopped == "failed"
            self._study.tell(handle, state=states.FAIL if failed else states.PRUNED)

    def trials(self) -> list[Trial]:
        """All trials that were begun, in order."""
        import optuna

        states = optuna.trial.TrialState
        return [
            Trial(
                number=one.number,
                values=one.params,
                stopped=one.user_attrs.get("stopped", "failed") if one.state.is_finished() else "under way",
                metric=one.value if one.state == states.COMPLETE else None,
                same_as=one.user_attrs.get("same_as"),
                note=one.user_attrs.get("note", ""),
            )
            for one in self._study.get_trials(deepcopy=False)
            if one.state != states.WAITING
        ]


class _NoLock:
    """The study's directory is locked as a whole, and that lock ends with the process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _storage(journal: Path) -> optuna.storages.JournalStorage:
    """Opens or makes the storage; a last line that a killed process left torn is cut off."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if journal.is_file():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            with journal.open("rb+") as file:
                file.truncate(data.rfind(b"\n") + 1)
    try:
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=cast(Any, _NoLock())))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{journal} is damaged ({error}), so the search cannot go on. The runs beside it are intact: compare them with "
            "`featherlight report`, or start a new search with another `--out`."
        ) from None

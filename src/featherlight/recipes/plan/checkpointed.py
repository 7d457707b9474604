"""The way of activation checkpointing: the same steps, with what does not fit computed again. For models in memory."""

from dataclasses import replace

from featherlight.planner.activation_checkpoint import least_budget
from featherlight.planner.memory import CATEGORIES, StepMemory
from featherlight.planner.process import predict_process, room_for_steps
from featherlight.planner.training_chain import TrainingPlan, measured_chain, plan_measured
from featherlight.recipes.plan.choice import Row
from featherlight.recipes.plan.subject import Subject
from featherlight.recipes.plan.ways import CHECKPOINTED

_MEASURED = "stages of the model were run one at a time"
_REPEATS = 2
_ASIDE = 16 * 1024
"""Bytes that an objective sets aside, random states above all."""


def checkpointed(subject: Subject, full: Row, memory: int | None) -> Row:
    """Full training with the schedule of least time that fits, by measuring the stages of the model.

    Args:
        subject: whose model is in memory.
        full: the plain way. Where it fits, or nothing does, the schedule is for half of what its passes take, or the least.
        memory: bytes that the process may take; None is no limit.

    Raises:
        ValueError: the model has no chain of stages, or one that cannot be run twice or is not worth it; says why.

    Cost: about four steps of the plain way.
    """
    case = subject.case(full.way, full.rows)
    case.model.train()
    chain = measured_chain(case.model, case.batch, case.loss, repeats=_REPEATS)
    state = full.step.categories["optimizer"]
    room = (full.step.above_start - state) // 2
    if memory is not None and not full.fits:
        room = room_for_steps(memory, full.process.baseline) - state - _ASIDE
    planned = plan_measured(chain, max(min(room, chain.full.peak_bytes), least_budget(chain.chain)))
    step = _step(full.step, state, planned)
    if step.peak >= full.step.peak:
        raise ValueError(
            f"what need not be kept between the {len(chain.stages)} stages of this model is less than running them twice takes."
        )
    process = predict_process(step, loaded=case.loaded, baseline=full.process.baseline)
    fits = memory is None or process.total <= memory
    seconds = full.seconds * planned.plan.seconds / planned.full_seconds
    way = replace(CHECKPOINTED, activation_bytes=planned.plan.peak_bytes)
    return Row(way=way, rows=full.rows, step=step, process=process, seconds=seconds, fits=fits)


def _step(full: StepMemory, state: int, planned: TrainingPlan) -> StepMemory:
    """What steps by the schedule take: passes above the optimizer's state, or the optimizer's own step if that is more."""
    stepping = max((one.num_bytes for one in full.timeline if one.phase == "optimizer"), default=0)
    above = max(stepping, state + planned.plan.peak_bytes + _ASIDE)
    there = {name: full.categories[name] for name in ("weights", "inputs", "optimizer")}
    peak = full.peak - full.above_start + above
    rest = {"activations": peak - sum(there.values())}
    categories = dict.fromkeys(CATEGORIES, 0) | there | rest
    flops = round(full.flops * planned.plan.seconds / planned.full_seconds)
    return StepMemory(peak=peak, above_start=above, categories=categories, timeline=(), flops=flops, measured=_MEASURED)

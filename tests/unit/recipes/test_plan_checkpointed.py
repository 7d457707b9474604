"""The way of activation checkpointing takes what the plan says, and is chosen to fit."""

import pytest
import torch
from torch import nn

from featherlight.meter import allocation_peak
from featherlight.objective import BatchObjective
from featherlight.planner.training_chain import plan_for
from featherlight.recipes.plan.checkpointed import checkpointed
from featherlight.recipes.plan.choice import predict
from featherlight.recipes.plan.subject import ReadySubject, optimizer_of
from featherlight.recipes.plan.ways import FULL


def loss(model, batch):
    return model(batch["x"]).square().mean(1)


def deep() -> ReadySubject:
    layers = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.GELU())]
    return ReadySubject(
        name="deep", model=nn.Sequential(*layers), batch={"x": torch.rand(2000, 32)}, loss=loss, rows=2000
    )


def test_steps_by_the_schedule_take_what_the_row_says():
    subject = deep()
    full = predict(subject, FULL, subject.rows, memory=None, rate=1e9, baseline=0)
    row = checkpointed(subject, full, None)
    assert row.way.activation_bytes is not None
    case = subject.case(row.way, subject.rows)
    plan_for(case.model, case.batch, loss, row.way.activation_bytes).transform().prepare(case.model)
    optimizer = optimizer_of(row.way, case, subject.rows)(case.model)
    with allocation_peak() as peak:
        for _ in range(2):
            optimizer.step(BatchObjective(case.model, case.batch, loss))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert 0.95 * row.step.above_start <= peak.bytes <= row.step.above_start
    assert row.step.above_start < 0.75 * full.step.above_start
    assert row.seconds > full.seconds


def test_a_chain_that_saves_nothing_is_told():
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
    subject = ReadySubject(name="tiny", model=model, batch={"x": torch.rand(2000, 32)}, loss=loss, rows=2000)
    with pytest.raises(ValueError, match="the 2 stages of this model is less than running them twice takes"):
        checkpointed(subject, predict(subject, FULL, 2000, memory=None, rate=1e9, baseline=0), None)


def test_a_memory_that_the_plain_way_does_not_fit_into_is_used_up():
    subject = deep()
    full = predict(subject, FULL, subject.rows, memory=None, rate=1e9, baseline=0)
    memory = int(full.process.total - 0.3 * full.step.above_start)
    tight = predict(subject, FULL, subject.rows, memory=memory, rate=1e9, baseline=0)
    row = checkpointed(subject, tight, memory)
    assert not tight.fits
    assert row.fits
    assert row.step.above_start > checkpointed(subject, full, None).step.above_start

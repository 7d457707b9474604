"""Forward-only training in two processes that send whole numbers alone: the bits of one process that does the work of both."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.optim import ZerothOrderSGD
from featherlight.optim.zeroth_order import Part, Slot, apply_update, combine
from featherlight.optim.zeroth_order.update import quantize_coefficients
from featherlight.trainer import read_journal, replay_journal
from tests.e2e.command_line import Ended
from tests.e2e.commands_in_processes import run_pair
from tests.e2e.shared_regression import Config

STEPS = 18
ZO = ("run", "tests.e2e.shared_regression:make", "--set", "method=zo", "--set", "dtype=float32")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def one_process(config: Config, slots: int) -> dict[str, torch.Tensor]:
    """The weights that one process comes to which measures every part of every step in turn."""
    experiment = config.experiment(SimpleNamespace(display=None, scratch=None))  # pyright: ignore[reportArgumentType]
    (stage,) = experiment.stages
    optimizer: Any = stage.optimizer(None, Meter())
    assert isinstance(optimizer, ZerothOrderSGD)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * stage.schedule(step / STEPS)
        optimizer.steps_done = step
        parts = []
        for number in range(slots):
            slot, objective = Slot(number=number, count=slots), stage.objective(slots * step + number, Meter())
            stream = SignStream(seed=optimizer.seed, step=step)
            slopes = optimizer.evaluator.measure(objective, optimizer.targets, stream, slot=slot)
            coefficients, scale = quantize_coefficients(slopes.slopes)
            parts.append(Part(coefficients=coefficients, scale=scale, loss=float(slopes.loss)))
        record = optimizer._record_of(*combine(parts))
        optimizer._count_step(record)
        apply_update(optimizer.targets, record, meter=Meter())
    return {name: tensor.detach() for name, tensor in experiment.model.state_dict().items()}


def assert_same_bits(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended, Ended]]:
    """Many commands in two processes: where each wrote, and how it ended on both."""
    folder = tmp_path_factory.mktemp("scalars")
    stopped = (*ZO, "--set", "happen=signal")
    commands: dict[str, Sequence[str]] = {
        "whole": ZO,
        "stopped": stopped,
        "lozo": ("run", "tests.e2e.shared_regression:make", "--set", "method=lozo"),
        "nan": (*ZO, "--set", "happen='not finite'"),
        "alter": (*ZO, "--set", "happen=alter"),
        "clock": (*ZO, "--set", "minutes=0.005", "--set", "steps=none"),
        "kill": (*ZO, "--set", "happen=kill"),
    }
    places = {name: folder / name for name in commands} | {"again": folder / "stopped"}
    order = {}
    for name, one in commands.items():
        order[name] = (*one, "--out", str(places[name]))
        if name == "stopped":
            order["again"] = order[name]
    ended = run_pair(order, folder, ENVIRONMENT)
    assert "Traceback" not in "".join(one.err for both in ended.values() for one in both)
    return {name: (places[name], *both) for name, both in ended.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return one_process(Config(method="zo", dtype="float32"), 2)


def test_two_processes_come_to_the_bits_of_one_that_does_the_work_of_both(pair, expected):
    out, first, second = pair["whole"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.err == second.out == ""
    assert_same_bits(out, expected)
    records = read_journal(out / "journal").records
    assert [(one.world, one.epoch, len(one.coefficients)) for one in records] == [(2, 0, 8)] * STEPS


def test_the_journal_of_process_0_replays_to_the_same_bits(pair):
    out, _, _ = pair["whole"]
    model = Config(method="zo").experiment(SimpleNamespace()).model  # pyright: ignore[reportArgumentType]
    replay_journal(read_journal(out / "journal"), model)
    assert_same_bits(out, {name: tensor.detach() for name, tensor in model.state_dict().items()})


def test_a_stopped_run_goes_on_to_the_same_bits_in_a_later_epoch(pair, expected):
    out, first, second = pair["stopped"]
    assert (first.code, second.code) == (130, 0), first.err + second.err
    out, first, second = pair["again"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "resumed at step 5" in first.err
    assert_same_bits(out, expected)
    assert [one.epoch for one in read_journal(out / "journal").records] == [0] * 5 + [1] * 13


def test_a_method_that_cannot_be_shared_leaves_no_trace(pair):
    out, *ended = pair["lozo"]
    assert {one.code for one in ended} <= {1, 2}, "the second is told of the first, unless that is gone already"
    assert any("forward-only method LOZO runs in one process" in one.err for one in ended if one.code == 2), ended
    assert not out.exists()


def test_a_loss_that_is_not_finite_on_one_process_ends_all_before_the_step(pair):
    out, first, second = pair["nan"]
    assert (first.code, second.code) == (3, 0), first.err + second.err
    assert "the loss of step 7 is not finite" in first.err
    assert len(read_journal(out / "journal").records) == 3


def test_weights_that_differ_are_found_at_the_next_comparison(pair):
    _, *ended = pair["alter"]
    assert sorted(one.code for one in ended) == [1, 2]
    said = "".join(one.err for one in ended)
    assert said.count("between step 0 and step 4") == 1
    assert "no majority" in said


def test_the_clock_of_process_0_ends_a_budget_of_minutes(pair):
    out, first, second = pair["clock"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert len(read_journal(out / "journal").records) > 1


def test_a_process_that_is_lost_ends_the_other_with_the_steps_that_were_made(pair):
    out, first, second = pair["kill"]
    assert (first.code, second.code) == (2, -9)
    assert "error: another process of this run was lost" in first.err
    assert len(read_journal(out / "journal").records) == 3

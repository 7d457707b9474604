"""The campaigns of `make faults` in a short form."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from featherlight.optim import ZerothOrderSGD
from featherlight.trainer import loop, take_up
from tests.faults import campaigns, power, system_calls
from tests.faults.processes import forked
from tests.faults.tiny_run import TinyConfig, go, is_over, result, saved_weights

STRETCH = 100


def check(outcome: campaigns.Outcome, at_least: int) -> None:
    assert outcome.failures == []
    assert outcome.tries >= at_least


@pytest.mark.parametrize("method", campaigns.METHODS)
def test_kills_at_random_times(tmp_path: Path, method: str) -> None:
    check(campaigns.kills(tmp_path, method, 6), 6)


def test_a_run_that_is_killed_faster_than_it_replays_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With saves on the way each start replays one stretch more than the last; the weights are those of a whole run."""
    config = TinyConfig(steps=5 * STRETCH)
    go(tmp_path / "whole", config)
    kept = STRETCH * 5 - 2
    with monkeypatch.context() as patch:
        patch.setattr(loop.Clock, "progress", property(lambda clock: 1.0 if clock.step >= kept else 0.0))
        go(tmp_path / "run", replace(config, steps=kept))
    for name in ("config.toml", "asked.toml"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "run" / name)
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(take_up, "REPLAY_SECONDS", 0.0)
    replayed: list[int] = []
    replay = ZerothOrderSGD.replay

    def dies_after_two(optimizer, records):
        replayed.append(records[0].step)
        if len(replayed) % 2 == 0:
            raise KeyboardInterrupt
        replay(optimizer, records)

    with monkeypatch.context() as patch:
        patch.setattr(ZerothOrderSGD, "replay", dies_after_two)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                go(tmp_path / "run", config)
    assert replayed == [0, 100, 100, 200, 200, 300, 300, 400]
    go(tmp_path / "run", config)
    assert result(tmp_path / "run").weights == result(tmp_path / "whole").weights


def test_signals(tmp_path: Path) -> None:
    check(campaigns.signals(tmp_path), 8)


@pytest.mark.parametrize(("method", "stride"), [("zo", 5201), ("adamw", 7001)])
def test_short_writes(tmp_path: Path, method: str, stride: int) -> None:
    check(campaigns.short_writes(tmp_path, method, stride), 3)


def test_changed_runs_are_refused(tmp_path: Path) -> None:
    check(campaigns.changed_runs(tmp_path), 8)


def test_cuts_and_flips(tmp_path: Path) -> None:
    check(campaigns.flips(tmp_path, 200), 1000)


def test_altered_saves(tmp_path: Path) -> None:
    check(campaigns.altered_saves(tmp_path, "adamw", 3), 3)


def test_the_rival_runs_and_is_taken_up(tmp_path: Path) -> None:
    """What the comparison rests on: undisturbed it comes to the same weights twice, and stops in between do not change them."""
    expected, seconds = campaigns.reference(tmp_path, "trainer")
    path, config = tmp_path / "run", TinyConfig(method="trainer")
    for _ in range(30):
        forked(partial(campaigns.take_part, path, config), kill_after=0.7 * seconds)
        save = saved_weights(path, config)
        if not is_over(path, config) and save is not None and (save.parent / "trainer_state.json").is_file():
            break  # one that was whole when it was killed, since it is written last
        shutil.rmtree(path, ignore_errors=True)
    go(path, config)
    assert result(path).is_as(expected)


def test_mutants(tmp_path: Path) -> None:
    check(campaigns.mutations(tmp_path, 3000), 3000)


@pytest.mark.skipif(not system_calls.is_possible(), reason="strace is absent or may not attach to a process")
def test_faults_of_system_calls(tmp_path: Path) -> None:
    check(system_calls.kill_at_every_call(tmp_path / "kill", "adamw", 43), 2)
    check(system_calls.refuse_from_every_call(tmp_path / "refuse", "zo", "ENOSPC", 43), 2)
    check(system_calls.network(tmp_path / "network"), 1)


@pytest.mark.skipif(not power.is_possible(), reason="this process may not mount a disk of its own")
def test_power_cuts(tmp_path: Path) -> None:
    check(power.power_cuts(tmp_path, 2), 2)

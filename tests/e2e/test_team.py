"""Teams of real processes: killed, late, stale, wrong, and without a host."""

import os
import signal
from pathlib import Path

import pytest

from featherlight.trainer import Meeting
from tests.e2e.shared_regression import Config
from tests.faults.team_runs import Process, free_port, until

CONFIG = Config(method="zo", steps=60, pause=0.03, train_unused=True)


def test_members_are_killed_come_late_and_come_again_and_all_end_with_the_same_weights(tmp_path: Path) -> None:
    port = free_port()
    host = Process.start(tmp_path / "host", CONFIG, f"{port}+2")
    assert until(lambda: "waiting for 2 members" in host.said)
    join = f"127.0.0.1:{port}"
    stays = Process.start(tmp_path / "stays", CONFIG, join)
    dies = Process.start(tmp_path / "dies", CONFIG, join)
    assert until(lambda: len(dies.records) >= 8)
    dies.kill()
    known = len(dies.records)
    assert until(lambda: len(host.records) >= known + 8)
    again = Process.start(tmp_path / "dies", CONFIG, join)
    late = Process.start(tmp_path / "late", CONFIG, join)
    wrong = Process.start(tmp_path / "wrong", Config(method="zo", steps=60, seed=5), join)
    assert wrong.wait() == 1
    assert "not let into the team: the member's base is" in wrong.said
    assert [one.wait() for one in (host, stays, again, late)] == [0, 0, 0, 0], host.said + stays.said + again.said
    assert "joined the team at step" in late.said
    assert len({one.weights for one in (host, stays, again, late)}) == 1
    histories = [[one.as_dict() for one in process.records] for process in (host, stays, again, late)]
    assert histories[0] == histories[1] == histories[2] == histories[3]
    worlds = [(record.epoch, record.world) for record in host.records]
    assert worlds == sorted(worlds, key=lambda seat: seat[0])
    sizes = [world for _, world in worlds]
    assert (sizes[0], min(sizes), max(sizes)) == (3, 2, 4)


def test_without_its_host_a_team_stops_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    names = ("host", "one", "two")
    teams = {"host": f"{port}+2", "one": f"127.0.0.1:{port}", "two": f"127.0.0.1:{port}"}

    def start() -> list[Process]:
        first = Process.start(tmp_path / "host", CONFIG, teams["host"])
        assert until(lambda: first.said.count("waiting for 2 members") == starts)
        return [first, *(Process.start(tmp_path / name, CONFIG, teams[name]) for name in names[1:])]

    starts = 1
    host, *members = start()
    assert until(lambda: len(host.records) >= 10)
    host.kill()
    assert [one.wait() for one in members] == [130, 130]
    assert all("the host of the team is gone" in one.said for one in members)
    kept = host.records
    assert all(len(one.records) <= len(kept) for one in members)
    starts = 2
    everyone = start()
    assert [one.wait() for one in everyone] == [0, 0, 0], "".join(one.said for one in everyone)
    assert len({one.weights for one in everyone}) == 1
    records = everyone[0].records
    assert [one.as_dict() for one in records[: len(kept)]] == [one.as_dict() for one in kept]
    assert records[len(kept)].epoch > kept[-1].epoch


@pytest.mark.parametrize("text", ["", "29400x", "host", "host:0", "host:29400+2", "70000", ":"])
def test_a_team_that_says_no_place_is_refused(text):
    with pytest.raises(ValueError, match="says neither where to wait nor where to join"):
        Meeting.parse(text)


def test_places_of_teams_are_read():
    assert Meeting.parse("29400") == Meeting(host="", port=29400, hosts=True)
    assert Meeting.parse(":29400+2") == Meeting(host="", port=29400, hosts=True, members=2)
    assert Meeting.parse("[::1]:29400") == Meeting(host="::1", port=29400, hosts=False)


def test_the_odd_one_of_three_is_named_and_all_stop(tmp_path: Path) -> None:
    port = free_port()
    config = Config(method="zo", digest_every=10)
    host = Process.start(tmp_path / "host", config, f"{port}+2")
    assert until(lambda: "waiting for 2 members" in host.said)
    join = f"127.0.0.1:{port}"
    sound = Process.start(tmp_path / "sound", config, join)
    odd = Process.start(tmp_path / "odd", Config(method="zo", digest_every=10, happen="alter"), join)
    assert host.wait() == 1
    assert [one.wait() for one in (sound, odd)] == [130, 130]
    assert "came to other weights than the 2 that agree, between step 0 and step 10" in host.said
    assert all("than the 2 that agree" in one.said for one in (sound, odd))
    assert len(host.records) == 10


def test_who_is_asked_to_stop_leaves_and_the_host_takes_all_along(tmp_path: Path) -> None:
    port = free_port()
    host = Process.start(tmp_path / "host", CONFIG, f"{port}+2")
    assert until(lambda: "waiting for 2 members" in host.said)
    leaves, stays = (Process.start(tmp_path / name, CONFIG, f"127.0.0.1:{port}") for name in ("leaves", "stays"))
    assert until(lambda: len(leaves.records) >= 4)
    os.kill(leaves.pid, signal.SIGTERM)
    assert leaves.wait() == 130
    known = len(host.records)
    assert until(lambda: len(host.records) >= known + 4)
    os.kill(host.pid, signal.SIGTERM)
    assert [host.wait(), stays.wait()] == [130, 130]
    assert "the team was interrupted" in stays.said
    assert [one.as_dict() for one in stays.records] == [one.as_dict() for one in host.records]
    assert host.records[-1].world == 2


def test_a_loss_that_is_not_finite_ends_the_team(tmp_path: Path) -> None:
    port = free_port()
    config = Config(method="zo")
    host = Process.start(tmp_path / "host", config, f"{port}+1")
    assert until(lambda: "waiting for 1 members" in host.said)
    member = Process.start(tmp_path / "member", Config(method="zo", happen="not finite"), f"127.0.0.1:{port}")
    assert [host.wait(), member.wait()] == [130, 130]
    assert len(host.records) == len(member.records) == 3
    for path in (host.path, member.path):
        assert "the loss of step 7 is not finite" in (path / "summary.json").read_text()

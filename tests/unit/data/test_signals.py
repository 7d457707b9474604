"""Measured signals: records by name, parts, and sentences for what is wrong."""

import numpy as np
import pytest
import torch

from featherlight.data import SIGNAL_RECORDS, SignalRecord, load_signals


def test_all_records_are_read_whole(real_data):
    records = {name: load_signals(name) for name in SIGNAL_RECORDS}
    assert {name: len(one) for name, one in records.items()} == {
        "silverbox": 131_072,
        "silverbox-arrow": 131_072,
        "cascaded-tanks": 1_024,
        "cascaded-tanks-validation": 1_024,
        "heat-exchanger": 4_000,
        "robot-arm": 1_024,
        "ball-and-beam": 1_000,
    }
    part = records["robot-arm"].part(0.5, 1.0)
    assert torch.equal(part.outputs, records["robot-arm"].outputs[512:])


def test_wrong_names_and_damaged_files_get_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no record 'robotarm'.*Did you mean 'robot-arm'"):
        load_signals("robotarm")
    monkeypatch.setenv("FEATHERLIGHT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="there is no file"):
        load_signals("robot-arm")
    (tmp_path / "system-id").mkdir()
    np.savez(tmp_path / "system-id" / "system_id.npz", robot_arm_u=np.zeros(4))
    with pytest.raises(ValueError, match="lacks the arrays 'robot_arm_y'"):
        load_signals("robot-arm")


def test_records_must_be_pairs_of_finite_samples():
    with pytest.raises(ValueError, match="one output for each input"):
        SignalRecord(name="own", inputs=torch.zeros(3), outputs=torch.zeros(4))
    with pytest.raises(ValueError, match="outputs of the record own are not finite at sample 1"):
        SignalRecord(name="own", inputs=torch.zeros(3), outputs=torch.tensor([0.0, torch.nan, 0.0]))

"""Forecasters: records, the linear rival, and a run from end to end by the command line's own procedure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.forecast.config import ForecastConfig
from featherlight.recipes.forecast.linear import LinearModel, fit_linear, root_mean_square
from featherlight.recipes.forecast.network import read_forecaster
from featherlight.recipes.forecast.records import Record, Records, load_records
from featherlight.recipes.runner import run_one
from featherlight.report import read_run
from featherlight.trainer import Display

TINY = {"steps": 6, "batch": 4, "window": 20, "washout": 4, "width": 8, "device": "cpu", "evaluations": 2}


def system(length: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two inputs, two outputs, each output leaning on the last of both, and on the inputs one and two samples before."""
    u = np.random.default_rng(0).normal(size=(length, 2))
    y = np.zeros((length, 2))
    for t in range(length):
        past = y[t - 1] if t else np.zeros(2)
        one, two = u[max(0, t - 1)], u[max(0, t - 2)]
        y[t] = [0.7 * past[0] - 0.2 * past[1] + one[0] + 0.5, 0.3 * past[0] + 0.4 * past[1] - 0.5 * two[1]]
    return u, y


def test_the_linear_rival_finds_a_linear_system_and_runs_on_its_own_outputs():
    u, y = (torch.from_numpy(one).float() for one in system())
    whole = Record(inputs=u, outputs=y)
    found = fit_linear(Records(train=whole.part(0, 0.6), valid=whole.part(0.6, 0.8), test=whole), washout=30)
    told = found.simulate(whole.inputs)
    assert root_mean_square(told, whole, 0) < 1e-4
    assert found.past


def test_orders_that_a_short_record_cannot_tell_are_left_out():
    u, y = (torch.from_numpy(one).float() for one in system(24))
    whole = Record(inputs=u, outputs=y)
    found = fit_linear(Records(train=whole.part(0, 0.6), valid=whole.part(0.6, 1.0), test=whole), washout=2)
    assert (found.past, found.inputs) in {(0, 2), (0, 4), (1, 2), (2, 2)}
    assert root_mean_square(found.simulate(whole.inputs), whole, 2) < root_mean_square(torch.zeros(24, 2), whole, 2)
    tiny = Records(train=whole.part(0, 0.2), valid=whole.part(0.6, 1.0), test=whole)
    assert (fit_linear(tiny, washout=2).past, fit_linear(tiny, washout=2).inputs) == (0, 2)


def test_a_rival_that_runs_off_is_not_taken():
    growing = LinearModel(past=1, inputs=1, weights=torch.tensor([[3.0], [1.0], [0.0]], dtype=torch.float64))
    told = growing.simulate(torch.ones(3, 1))
    assert told[:, 0].tolist() == [1.0, 4.0, 13.0]


def test_records_are_split_in_time(real_data, tmp_path):
    silverbox, tanks = load_records("silverbox"), load_records("tanks")
    assert (len(silverbox.test), len(silverbox.train), len(silverbox.valid)) == (40_000, 72_858, 18_214)
    assert (len(tanks.train), len(tanks.valid), len(tanks.test)) == (819, 205, 1024)
    np.savez(tmp_path / "own.npz", u=np.arange(10.0), y=np.arange(10.0) + 1)
    own = load_records(str(tmp_path / "own.npz"))
    assert own.valid.inputs.squeeze().tolist() == [6.0, 7.0]
    assert own.test.outputs.squeeze().tolist() == [9.0, 10.0]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"u": np.ones(5)}, "lacks the arrays y"),
        ({"u": np.ones(5), "y": np.ones(6)}, "as many rows each"),
        ({"u": np.ones(5), "y": np.full(5, np.nan)}, "must be finite numbers"),
    ],
)
def test_wrong_records_get_a_sentence(arrays, sentence, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        load_records(str(tmp_path / "x.npz"))


def test_wrong_choices_get_a_sentence(tmp_path):
    for settings, sentence in [
        ({"washout": 20, "window": 20}, "below `window`"),
        ({"layers": 0}, "`layers` must be at least 1"),
        ({"data": "nowhere"}, "neither a system that is known by name"),
        ({"data": str(written(tmp_path)), "method": "zo"}, "must be one of .*adamw.*; got 'zo'"),
        ({"data": str(written(tmp_path)), "window": 300}, "has 80 samples, fewer than `window`, 300"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            run_one(
                find_recipe("forecast/tanks"), ForecastConfig(**settings), tmp_path / "r", command="", display=Display()
            )


def written(folder: Path) -> Path:
    u, y = system()
    np.savez(folder / "system.npz", u=u, y=y)
    return folder / "system.npz"


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_a_run_leaves_a_model_and_stands_beside_the_linear_model(kind, tmp_path):
    config = ForecastConfig(data=str(written(tmp_path)), kind=kind, norm="layer", dropout=0.1, **TINY)
    done = run_one(find_recipe("forecast/tanks"), config, tmp_path / "run", command="", display=Display())
    assert done.stopped == "finished"
    record = read_run(tmp_path / "run")
    assert record.summary is not None
    assert record.summary.metric is not None
    assert record.summary.metric.last < record.summary.metric.start
    (section,) = json.loads((tmp_path / "run" / "sections.json").read_text())["sections"]
    rows = section["blocks"][0]["rows"]
    assert [row[0] for row in rows] == ["validation", "validation", "test", "test"]
    assert rows[3][2] < 0.2 < rows[2][2]
    assert set(section["blocks"][1]["lines"]) == {"measured", rows[0][1], rows[1][1]}
    again, u = read_forecaster(tmp_path / "run"), torch.from_numpy(system()[0]).float()
    told = again.simulate(u)
    assert told.shape == (400, 2)
    test = Record(inputs=u[320:], outputs=torch.from_numpy(system()[1]).float()[320:])
    assert root_mean_square(again.simulate(test.inputs), test, 4) == pytest.approx(rows[2][2])
    torch.testing.assert_close(again.simulate(u[:100]), told[:100])
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a forecaster"):
        read_forecaster(tmp_path / "run")
    with pytest.raises(ValueError, match="there is no forecaster at"):
        read_forecaster(tmp_path)

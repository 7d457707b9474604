"""Reading a run directory."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from featherlight.report import RunRecord, read_run
from tests.unit.report.conftest import WriteRun
from tests.unit.report.samples import CONFIG, make_metrics, make_summary


def test_a_whole_run_is_read_as_written(write_run: WriteRun) -> None:
    metrics = make_metrics(80)
    record = read_run(write_run(summary=make_summary(), metrics=metrics))
    assert isinstance(record, RunRecord)
    assert record.config["optimizer"] == {"lr": 3e-7, "sigma": 1e-3}
    assert record.config_text == CONFIG
    steps = [line for line in metrics if line["kind"] == "step"]
    assert [{"kind": "step", **dataclasses.asdict(point)} for point in record.steps] == steps
    evals = [line for line in metrics if line["kind"] == "eval"]
    assert [{"kind": "eval", **dataclasses.asdict(point)} for point in record.evals] == evals
    assert record.head_start is not None
    assert {"kind": "head_start", **dataclasses.asdict(record.head_start)} == metrics[0]
    assert record.summary is not None
    assert json.loads(json.dumps(dataclasses.asdict(record.summary))) == make_summary()
    assert not record.torn


def test_a_record_cannot_be_changed(write_run: WriteRun) -> None:
    record = read_run(write_run())
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.torn = True  # type: ignore[misc]


def test_an_unfinished_run_has_no_summary(write_run: WriteRun) -> None:
    assert read_run(write_run()).summary is None


def test_the_path_may_be_text(write_run: WriteRun) -> None:
    path = write_run()
    assert read_run(str(path)).path == path


@pytest.mark.parametrize(
    "tail", ['{"kind": "st', "{", '{"kind": "step", "step": 81}'[:-1], "\0\0\0\0", '{"kind": "st\n']
)
def test_an_incomplete_last_line_is_left_out(write_run: WriteRun, tail: str) -> None:
    record = read_run(write_run(metrics=make_metrics(80), tail=tail))
    assert record.torn
    assert len(record.steps) == 80


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_file_cut_anywhere_in_its_last_line_is_read(write_run: WriteRun, cut: int) -> None:
    path = write_run(metrics=make_metrics(5))
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    record = read_run(path)
    assert len(record.steps) == (5 if cut == 1 else 4)
    assert record.torn == (cut != 1)


def test_a_broken_line_elsewhere_is_named(write_run: WriteRun) -> None:
    path = write_run(metrics=make_metrics(3))
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[1] = '{"kind": "st\n'
    file.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: this line is not valid JSON"):
        read_run(path)


def test_an_unknown_kind_is_named(write_run: WriteRun) -> None:
    path = write_run(metrics=[{"kind": "banana", "step": 1}])
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: `kind` is 'banana'.*step, eval, head_start"):
        read_run(path)


@pytest.mark.parametrize("line", [3, "text", [1, 2], {"kind": ["step"]}, None])
def test_a_line_that_is_no_record_is_refused(write_run: WriteRun, line: object) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: `kind` is "):
        read_run(write_run(metrics=[line]))


@pytest.mark.parametrize("name", ["step", "loss", "lr", "forwards", "seconds"])
def test_a_missing_field_of_a_step_is_named_with_its_line(write_run: WriteRun, name: str) -> None:
    metrics = make_metrics(3)
    del metrics[2][name]
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:3: `{name}` is missing"):
        read_run(write_run(metrics=metrics))


def test_a_field_of_the_wrong_type_is_shown(write_run: WriteRun) -> None:
    metrics = make_metrics(3)
    metrics[1]["loss"] = "small"
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: `loss` is 'small' \(.*restore the file"):
        read_run(write_run(metrics=metrics))


@pytest.mark.parametrize(
    "name", ["method", "title", "command", "model", "train", "metric", "loss", "memory", "counters", "stopped"]
)
def test_a_missing_field_of_the_summary_is_named(write_run: WriteRun, name: str) -> None:
    summary = make_summary()
    del summary[name]
    with pytest.raises(ValueError, match=rf"summary\.json: `{name}` is missing"):
        read_run(write_run(summary=summary))


@pytest.mark.parametrize("name", ["metric.start", "loss.last", "memory.training_peak", "counters.weight_passes"])
def test_a_missing_figure_of_the_summary_is_named(write_run: WriteRun, name: str) -> None:
    summary = make_summary()
    group, field = name.split(".")
    del summary[group][field]
    with pytest.raises(ValueError, match=rf"summary\.json: `{name}` is missing, and the report will not guess"):
        read_run(write_run(summary=summary))


def test_negative_bytes_are_refused(write_run: WriteRun) -> None:
    summary = make_summary()
    summary["memory"]["weights"] = -5
    with pytest.raises(ValueError, match=r"`memory\.weights` is -5 \("):
        read_run(write_run(summary=summary))


def test_a_confusion_table_must_be_square(write_run: WriteRun) -> None:
    summary = make_summary(confusion={"labels": ["a", "b"], "counts": [[1, 2], [3]]})
    with pytest.raises(ValueError, match=r"summary\.json: `confusion` is .*rows of lengths \[2, 1\] for 2 labels"):
        read_run(write_run(summary=summary))


def test_what_may_be_absent_is_none(write_run: WriteRun) -> None:
    summary = make_summary(resume_command=None, confusion=None, journal_bytes=None)
    summary["metric"]["head_start"] = summary["memory"]["adamw_estimate"] = summary["memory"]["process_peak"] = None
    read = read_run(write_run(summary=summary)).summary
    assert read is not None
    assert (read.resume_command, read.confusion, read.journal_bytes) == (None, None, None)
    assert (read.metric.head_start, read.memory.adamw_estimate, read.memory.process_peak) == (None, None, None)


def test_losses_that_are_not_finite_are_kept(write_run: WriteRun) -> None:
    metrics = make_metrics(4)[1:]
    for line, loss in zip(metrics, (math.nan, math.inf, -math.inf, None), strict=True):
        line["loss"] = loss
    losses = [point.loss for point in read_run(write_run(metrics=metrics)).steps]
    assert math.isnan(losses[0])
    assert losses[1:3] == [math.inf, -math.inf]
    assert math.isnan(losses[3])


def test_a_resumed_run_keeps_its_later_attempt(write_run: WriteRun) -> None:
    first, second = make_metrics(100, every=20), make_metrics(120, seed=1, every=30)
    again = [line for line in second if line.get("step", 0) > 50]
    record = read_run(write_run(metrics=first + again))
    assert [point.step for point in record.steps] == list(range(1, 121))
    assert record.steps[60].loss == next(line["loss"] for line in again if line["step"] == 61)
    assert [point.step for point in record.evals] == [20, 40, 60, 90, 120]


def test_an_empty_run_is_read(write_run: WriteRun) -> None:
    record = read_run(write_run(metrics=[], config=""))
    assert (record.steps, record.evals, record.head_start, record.torn) == ((), (), None, False)


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing here.*give the folder"):
        read_run(tmp_path / "absent")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="there is a file here"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("present", "missing"),
    [((), "config.toml and metrics.jsonl are missing"), (("config.toml",), "metrics.jsonl is missing")],
)
def test_a_folder_that_is_no_run_is_told_what_it_lacks(tmp_path: Path, present: tuple[str, ...], missing: str) -> None:
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"not a run directory, because {missing}"):
        read_run(tmp_path)


def test_a_damaged_configuration_is_refused(write_run: WriteRun) -> None:
    with pytest.raises(ValueError, match=r"config\.toml: this is not valid TOML"):
        read_run(write_run(config="a = = 1"))


@pytest.mark.parametrize("text", ["{", "", "[1, 2]"])
def test_a_damaged_summary_is_refused(write_run: WriteRun, text: str) -> None:
    path = write_run()
    (path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json: "):
        read_run(path)

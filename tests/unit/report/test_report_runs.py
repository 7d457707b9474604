"""Reading a run directory, whole, unfinished, still going on and damaged."""

import dataclasses
import fcntl
import json
import math
import random
from pathlib import Path

import pytest

from featherlight.report import RunRecord, headline, read_run, render_report
from tests.unit.report.conftest import WriteRun
from tests.unit.report.samples import CONFIG, bare_summary, make_metrics, make_sections, make_summary


def test_a_whole_run_is_read_as_written(write_run: WriteRun) -> None:
    metrics = make_metrics(80)
    record = read_run(write_run(summary=make_summary(), metrics=metrics, sections=make_sections()))
    assert isinstance(record, RunRecord)
    assert record.config["optimizer"] == {"lr": 3e-7, "sigma": 1e-3}
    assert record.config_text == CONFIG
    for kind, points in (("event", record.events), ("step", record.steps), ("eval", record.evals)):
        lines = [line for line in metrics if line["kind"] == kind]
        assert [{"kind": kind, **dataclasses.asdict(point)} for point in points] == lines
    assert record.summary is not None
    assert json.loads(json.dumps(dataclasses.asdict(record.summary))) == make_summary()
    assert [section.title for section in record.sections] == [section.title for section in make_sections()]
    assert (record.torn, record.going_on, record.damage) == (False, False, ())


def test_a_record_cannot_be_changed(write_run: WriteRun) -> None:
    record = read_run(write_run())
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.torn = True  # type: ignore[misc]


def test_an_unfinished_run_has_no_summary(write_run: WriteRun) -> None:
    record = read_run(write_run())
    assert (record.summary, record.damage) == (None, ())


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
    assert record.damage == ()


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_file_cut_anywhere_in_its_last_line_is_read(write_run: WriteRun, cut: int) -> None:
    path = write_run(metrics=make_metrics(5))
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    record = read_run(path)
    assert len(record.steps) == (5 if cut == 1 else 4)
    assert record.torn == (cut != 1)


def test_a_broken_line_elsewhere_is_named_and_the_rest_is_read(write_run: WriteRun) -> None:
    path = write_run(metrics=make_metrics(4))
    file = path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = b'{"kind": "\xff\n'
    file.write_bytes(b"".join(lines))
    record = read_run(path)
    assert [point.step for point in record.steps] == [1, 3, 4]
    (sentence,) = record.damage
    assert sentence.startswith(f"{file}:3: this line is not valid JSON")
    assert not record.torn


def test_many_broken_lines_are_counted(write_run: WriteRun) -> None:
    record = read_run(write_run(metrics=[{"kind": "banana"}] * 12 + make_metrics(3)))
    assert len(record.steps) == 3
    assert len(record.damage) == 6
    assert "`kind` is 'banana', and this version draws step, eval, event" in record.damage[0]
    assert record.damage[-1].endswith("metrics.jsonl: 7 further lines cannot be used and are left out.")


@pytest.mark.parametrize("line", [3, "text", [1, 2], {"kind": ["step"]}, None, {"kind": "head_start"}])
def test_a_line_that_is_no_record_is_named(write_run: WriteRun, line: object) -> None:
    record = read_run(write_run(metrics=[line, *make_metrics(2)]))
    assert "metrics.jsonl:1: `kind` is " in record.damage[0]
    assert len(record.steps) == 2


@pytest.mark.parametrize("name", ["step", "loss", "lr", "forwards", "seconds"])
def test_a_missing_field_of_a_step_is_named_with_its_line(write_run: WriteRun, name: str) -> None:
    metrics = make_metrics(3)
    del metrics[2][name]
    record = read_run(write_run(metrics=metrics))
    assert f"metrics.jsonl:3: `{name}` is missing" in record.damage[0]
    assert [point.step for point in record.steps] == [1, 3]


def test_a_field_of_the_wrong_type_is_shown(write_run: WriteRun) -> None:
    metrics = make_metrics(3)
    metrics[1]["loss"] = "small"
    (sentence,) = read_run(write_run(metrics=metrics)).damage
    assert "metrics.jsonl:2: `loss` is 'small' (" in sentence


@pytest.mark.parametrize("name", ["version", "title", "command", "counters", "stopped"])
def test_a_missing_field_of_the_summary_is_named(write_run: WriteRun, name: str) -> None:
    summary = make_summary()
    del summary[name]
    record = read_run(write_run(summary=summary))
    assert record.damage == (f"{record.path / 'summary.json'}: `{name}` is missing, and the report will not guess it.",)
    assert record.summary is not None
    assert record.summary.metric is not None


@pytest.mark.parametrize("name", ["metric.start", "loss.last", "memory.weights", "counters.steps"])
def test_a_damaged_part_of_the_summary_is_left_out_alone(write_run: WriteRun, name: str) -> None:
    summary = make_summary()
    group, field = name.split(".")
    del summary[group][field]
    record = read_run(write_run(summary=summary))
    assert f"summary.json: `{name}` is missing. `{group}` is left out; the rest is shown." in record.damage[0]
    assert record.summary is not None
    assert getattr(record.summary, group) is None
    assert record.summary.title == "MiniLM on SST-2"
    assert f"`{name}` is missing" in render_report([record])


def test_negative_bytes_are_not_shown(write_run: WriteRun) -> None:
    summary = make_summary()
    summary["memory"]["weights"] = -5
    assert "`memory.weights` is -5 (" in read_run(write_run(summary=summary)).damage[0]


def test_a_newer_summary_is_read_with_a_caution(write_run: WriteRun) -> None:
    record = read_run(write_run(summary=make_summary(version=2, colour="green")))
    assert "its version is 2 and this featherlight reads 1" in record.damage[0]
    assert record.summary is not None
    assert record.summary.counters is not None


def test_what_may_be_absent_is_none(write_run: WriteRun) -> None:
    summary = bare_summary()
    read = read_run(write_run(summary=summary)).summary
    assert read is not None
    assert {read.method, read.metric, read.loss, read.memory, read.journal_bytes, read.resume_command} == {None}


def test_losses_that_are_not_finite_are_kept(write_run: WriteRun) -> None:
    metrics = make_metrics(4)[1:]
    for line, loss in zip(metrics, (math.nan, math.inf, -math.inf, None), strict=True):
        line["loss"] = loss
    losses = [point.loss for point in read_run(write_run(metrics=metrics)).steps]
    assert math.isnan(losses[0])
    assert losses[1:3] == [math.inf, -math.inf]
    assert math.isnan(losses[3])


def test_a_value_that_is_null_is_not_a_number(write_run: WriteRun) -> None:
    line = {
        "kind": "eval",
        "step": 1,
        "split": "test",
        "loss": None,
        "values": {"f1": None},
        "forwards": 1,
        "seconds": 1,
    }
    (point,) = read_run(write_run(metrics=[line])).evals
    assert math.isnan(point.values["f1"])
    assert math.isnan(point.loss)


def test_a_resumed_run_keeps_its_later_attempt(write_run: WriteRun) -> None:
    first, second = make_metrics(100, every=20), make_metrics(120, seed=1, every=30)
    first.append({"kind": "event", "step": 90, "name": "second stage", "seconds": 1.0})
    again = [line for line in second if line.get("step", 0) > 50]
    record = read_run(write_run(metrics=first + again))
    assert [point.step for point in record.steps] == list(range(1, 121))
    assert record.steps[60].loss == next(line["loss"] for line in again if line["step"] == 61)
    assert [point.step for point in record.evals] == [20, 40, 60, 90, 120]
    assert [event.name for event in record.events] == ["head start"]


def test_an_empty_run_is_read(write_run: WriteRun) -> None:
    record = read_run(write_run(metrics=[], config=""))
    assert (record.steps, record.evals, record.events, record.torn, record.damage) == ((), (), (), False, ())


def test_a_run_whose_lock_is_held_is_still_going_on(write_run: WriteRun) -> None:
    path = write_run(tail='{"kind"')
    with (path / ".lock").open("w") as lock:
        assert not read_run(path).going_on
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = read_run(path)
    assert record.still_going
    assert headline(record).startswith("Still going on at step 400: accuracy was last ")
    assert "it was being written" in render_report([record])


def test_a_run_that_reports_on_itself_at_its_end_has_ended(write_run: WriteRun) -> None:
    path = write_run(summary=make_summary())
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = read_run(path)
    assert record.going_on
    assert not record.still_going
    assert record.outcome is not None


def test_a_run_resumed_beyond_its_summary_has_not_ended(write_run: WriteRun) -> None:
    summary = make_summary(stopped="interrupted")
    summary["counters"]["steps"] = 300
    path = write_run(summary=summary)
    record = read_run(path)
    assert record.summary is not None
    assert record.outcome is None
    assert headline(record).startswith("Unfinished at step 400:")
    assert "resumed after its summary was written" in render_report([record])
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert read_run(path).still_going


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing here.*give the folder"):
        read_run(tmp_path / "absent")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="there is a file here"):
        read_run(tmp_path / "file")


def test_a_folder_that_is_no_run_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    with pytest.raises(
        ValueError, match=r"not a run directory, because config\.toml and metrics\.jsonl are both missing"
    ):
        read_run(tmp_path)


def test_a_missing_configuration_is_a_damage(write_run: WriteRun) -> None:
    record = read_run(write_run(config=None, summary=make_summary()))
    assert record.damage == (
        f"{record.path / 'config.toml'}: this file is missing, so the page cannot say what was run.",
    )
    assert record.config == {}


def test_missing_metrics_are_a_damage_only_where_there_were_some(write_run: WriteRun) -> None:
    whole = write_run("whole", summary=make_summary())
    (whole / "metrics.jsonl").unlink()
    assert "metrics.jsonl: this file is missing" in read_run(whole).damage[0]
    summary = bare_summary()
    summary["counters"]["steps"] = 0
    stepless = write_run("stepless", summary=summary)
    (stepless / "metrics.jsonl").unlink()
    assert read_run(stepless).damage == ()


@pytest.mark.parametrize("text", ["a = = 1", "a = 1\n\0"])
def test_a_damaged_configuration_is_shown_as_it_stands(write_run: WriteRun, text: str) -> None:
    record = read_run(write_run(config=text))
    assert "config.toml: this is not valid TOML" in record.damage[0]
    assert record.config_text == text
    assert record.config == {}


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '"text"', "[" * 100_000])
def test_a_damaged_summary_leaves_the_outcome_open(write_run: WriteRun, text: str) -> None:
    path = write_run(sections=make_sections()[:1])
    (path / "summary.json").write_text(text)
    record = read_run(path)
    assert record.summary is None
    assert record.summary_lost
    assert f"{path / 'summary.json'}: this " in record.damage[0]
    assert headline(record).startswith("Outcome lost; recorded to step 400")
    page = render_report([record])
    assert "how it ended is not known" in page
    assert "Which label for which" in page


def test_a_file_that_cannot_be_read_is_a_damage(write_run: WriteRun) -> None:
    path = write_run(summary=make_summary())
    (path / "sections.json").mkdir()
    assert "sections.json: this file cannot be read (Is a directory)" in read_run(path).damage[0]


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_keeps_a_page_from_being_made(write_run: WriteRun, seed: int) -> None:
    path = write_run(summary=make_summary(), metrics=make_metrics(20, every=5), sections=make_sections()[:3])
    rng = random.Random(seed)
    for name in ("config.toml", "metrics.jsonl", "summary.json", "sections.json"):
        data = bytearray((path / name).read_bytes())
        for _ in range(rng.randrange(4)):
            i = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[i] = rng.randrange(256)
                case 1:
                    del data[i : i + rng.randrange(1, 60)]
                case 2:
                    data[i:i] = rng.randbytes(rng.randrange(1, 9))
                case _:
                    data[i : i + 1] = rng.choice([b"null", b"-1", b"[]", b"{}", b'"', b"1e999", b"\n", b"NaN"])
        (path / name).write_bytes(data)
    record = read_run(path)
    page = render_report([record, read_run(path)])
    assert all(sentence.split(":")[0] in page for sentence in record.damage)
    assert headline(record)
    assert render_report([record])


def test_a_run_that_has_only_begun_lacks_nothing(write_run: WriteRun) -> None:
    path = write_run(config=None, metrics=[])
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = read_run(path)
    assert record.damage == ()
    assert headline(record) == "This run has recorded nothing yet."

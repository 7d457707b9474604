"""The page, read back with a parser."""

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from featherlight.report import ConfusionTable, Section, headline, read_run, render_report, write_report
from tests.unit.report.conftest import WriteRun, three_runs
from tests.unit.report.html_reading import machine_values, page_of, read_html, section, table_rows
from tests.unit.report.samples import CONFIG, bare_summary, figures_of, make_metrics, make_sections, make_summary

LIMIT = 1_500_000
NASTY = "<script>alert('&\"')</script>"


def test_every_figure_of_the_summary_is_on_the_page(write_run: WriteRun) -> None:
    summary = make_summary()
    values = machine_values(page_of(write_run(summary=summary)))
    missing = [figure for figure in figures_of(summary) if figure not in values]
    assert not missing


def test_every_word_of_the_summary_is_on_the_page(write_run: WriteRun) -> None:
    summary = make_summary()
    text = page_of(write_run(summary=summary)).text
    words = [summary[key] for key in ("title", "command", "resume_command", "recipe")]
    words += [*summary["notes"], *summary["facts"].values(), summary["memory"]["measured_by"]]
    words += [*summary["environment"], *map(str, summary["environment"].values())]
    assert not [word for word in words if word not in text]
    assert "accuracy" in text.lower()
    assert "Finished" in text
    assert "2,048,017" in text


def test_the_headline_says_what_came_of_it(write_run: WriteRun) -> None:
    page = page_of(write_run(summary=make_summary()))
    (heading,) = page.all("h1")
    assert (
        heading.text
        == "Accuracy rose from 50.9 % to 82.3 %; the head start reached 75.2 %, and training added 7.1 points."
    )


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (
            {"name": "accuracy", "start": 0.9, "best": 0.9, "last": 0.8},
            "Training did not help: accuracy fell from 90.0 % to 80.0 %.",
        ),
        (
            {"name": "accuracy", "start": 0.9, "best": 0.9, "last": 0.9},
            "Training did not help: accuracy stayed at 90.0 %.",
        ),
        (
            {"name": "perplexity", "start": 20.0, "best": 10.0, "last": 11.0, "lower_is_better": True},
            "Perplexity fell from 20 to 11.",
        ),
        (
            {"name": "perplexity", "start": 20.0, "best": 20.0, "last": 31.0, "lower_is_better": True},
            "Training did not help: perplexity rose from 20 to 31.",
        ),
        (
            {"name": "accuracy", "start": 0.5, "best": 0.8, "last": 0.7},
            "Accuracy rose from 50.0 % to 70.0 %; the head start reached 75.2 %, and training lost 5.2 points.",
        ),
        (
            {"name": "accuracy", "start": 0.5, "best": 0.8, "last": 0.7521},
            "Accuracy rose from 50.0 % to 75.2 %; the head start reached 75.2 % and training kept it there.",
        ),
        ({"name": "mcc", "start": None, "best": 0.3, "last": 0.2}, "Mcc went from not a number to 0.2."),
        (None, "The loss fell from 0.6931 to 0.4127."),
    ],
)
def test_headlines_do_not_flatter(write_run: WriteRun, metric: dict[str, Any] | None, expected: str) -> None:
    record = read_run(write_run(summary=make_summary(metric=metric)))
    assert headline(record).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_a_run_without_metric_loss_and_memory_has_a_page(write_run: WriteRun) -> None:
    path = write_run(summary=bare_summary(title="Compressed LeNet"), metrics=[], sections=make_sections())
    page = page_of(path)
    assert page.all("h1")[0].text == "Compressed LeNet: finished."
    heads = [head.text for head in page.all("h2")]
    assert heads == [*(one.title for one in make_sections()), "In figures", "Notes", "Do it again"]
    assert "None" not in page.text


@pytest.mark.parametrize(
    ("stopped", "badge", "words"),
    [
        ("finished", "Finished", "The run finished after"),
        ("interrupted", "Interrupted", "The run was interrupted after"),
        ("failed", "Failed", "The run failed after"),
        ("not finite", "Loss not finite", "The loss stopped being a number at step 400"),
        ("disk full", "Stopped: disk full", "The run stopped (disk full) after"),
    ],
)
def test_the_page_says_how_the_run_ended(write_run: WriteRun, stopped: str, badge: str, words: str) -> None:
    page = page_of(write_run(summary=make_summary(stopped=stopped)))
    assert [span.text for span in page.all("span") if "badge" in span.css_class] == [badge]
    assert words in page.text


def test_the_page_loads_nothing(write_run: WriteRun) -> None:
    for paths in ([write_run(summary=make_summary(), sections=make_sections())], three_runs(write_run)):
        html = render_report([read_run(path) for path in paths])
        assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[^\"]*", "", html))
        assert "url(" not in html
        assert "@import" not in html
        page = read_html(html)
        assert all((image.attributes["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
        for tag in ("script", "iframe", "object", "embed", "base", "form", "a"):
            assert not page.all(tag), tag
        assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]


def test_text_from_outside_is_escaped(write_run: WriteRun) -> None:
    summary = make_summary(title=NASTY, command=NASTY, resume_command=NASTY, stopped=NASTY, method=NASTY, recipe=NASTY)
    summary |= {"notes": [NASTY], "facts": {f"data {NASTY}": NASTY}, "environment": {NASTY: NASTY}}
    summary["memory"]["measured_by"] = summary["metric"]["name"] = NASTY
    metrics = make_metrics(80)
    for line in metrics:
        if "values" in line:
            line["values"] = {NASTY: 0.5}
    events = [{"kind": "event", "step": 20, "name": NASTY, "seconds": 1.0}]
    other = [line | {"split": NASTY} for line in metrics if line["kind"] == "eval"]
    config = f"name = {json.dumps(NASTY)}\n"
    path = write_run("a<b>&c", summary=summary, metrics=metrics + other + events, config=config, tail="[]\n{}")
    for page in (page_of(path), page_of(path, write_run("plain", summary=make_summary()))):
        assert not page.all("script")
        assert page.text.count("<script>") >= 10


def test_the_memory_bars_tell_measured_from_estimated(write_run: WriteRun) -> None:
    memory = section(page_of(write_run(summary=make_summary())), "Memory")
    rows = [row for row in table_rows(memory.all("table")[0]) if row[0] != "What"]
    assert [row[:2] for row in rows] == [
        ["Weights measured", "86.7 MiB"],
        ["Running the model measured", "151 MiB"],
        ["This run, Forward-only measured", "153 MiB"],
        ["Training with AdamW estimated", "658 MiB"],
    ]
    widths = [float(bar.attributes["width"] or "nan") for bar in memory.all("rect")]
    assert widths == pytest.approx(
        [100 * size / 689_963_008 for size in (90_866_688, 158_334_976, 160_432_128, 689_963_008)], abs=0.01
    )


def test_a_confusion_table_shows_every_pair(write_run: WriteRun) -> None:
    labels = tuple(f"label {i}" for i in range(30))
    counts = tuple(tuple(100 * (i == j) + (3 * i + j) % 7 for j in range(30)) for i in range(30))
    sections = [Section(title="Labels", blocks=(ConfusionTable(labels=labels, counts=counts),))]
    page = page_of(write_run(summary=make_summary(), sections=sections))
    (table,) = [table for table in page.all("table") if "confusion" in table.css_class]
    head, *body = table_rows(table)
    assert head == ["", *labels]
    assert body == [[label, *map(str, row)] for label, row in zip(labels, counts, strict=True)]


def test_many_labels_leave_the_commonest_mistakes(write_run: WriteRun) -> None:
    size = 77
    counts = [[50 if i == j else 0 for j in range(size)] for i in range(size)]
    counts[3][5], counts[9][2] = 25, 40
    block = ConfusionTable(labels=tuple(f"intent {i}" for i in range(size)), counts=tuple(map(tuple, counts)))
    page = page_of(write_run(summary=make_summary(), sections=[Section(title="Labels", blocks=(block,))]))
    table = section(page, "Labels").all("table")[0]
    assert table_rows(table)[1:] == [["intent 9", "intent 2", "40", "44.4 %"], ["intent 3", "intent 5", "25", "33.3 %"]]


def test_the_command_and_the_configuration_are_kept_to_the_letter(write_run: WriteRun) -> None:
    page = page_of(write_run(summary=make_summary()))
    blocks = ["".join(map(str, block.all("code")[0].children)) for block in page.all("pre")]
    assert blocks == [make_summary()["command"], make_summary()["resume_command"], CONFIG]
    assert page.all("details")[0].all("summary")[0].text == "Configuration"


def test_each_figure_has_two_panels_and_a_description(write_run: WriteRun) -> None:
    page = page_of(write_run(summary=make_summary()))
    charts = [div for div in page.all("div") if div.attributes.get("role") == "img"]
    labels = [chart.attributes["aria-label"] or "" for chart in charts]
    assert [label.split(":")[0] for label in labels] == [
        "Loss against example-forwards",
        "Loss against seconds",
        "Accuracy against example-forwards",
        "Accuracy against seconds",
    ]
    assert all(re.search(r": .* from .* to .*\.$", label) for label in labels)
    looks = {(path.css_class.split()[0]) for path in charts[0].all("path")}
    assert {"cloud", "line", "dashed", "dots", "grid"} <= looks


def test_the_page_is_accessible(write_run: WriteRun) -> None:
    for page in (page_of(write_run(summary=make_summary())), page_of(*three_runs(write_run))):
        assert page.all("html")[0].attributes["lang"] == "en"
        assert all(
            svg.attributes.get("aria-hidden") == "true" or svg.attributes.get("aria-label") for svg in page.all("svg")
        )
        assert all(header.attributes.get("scope") in ("row", "col") for header in page.all("th"))
        assert len(page.all("h1")) == 1
        identifiers = [
            found.attributes["id"] for tag in ("h2", "section") for found in page.all(tag) if "id" in found.attributes
        ]
        assert len(identifiers) == len(set(identifiers))
        named = [found.attributes["aria-labelledby"] for found in page.all("section")]
        assert set(named) <= set(identifiers)


def test_an_unfinished_run_has_a_page(write_run: WriteRun) -> None:
    page = page_of(write_run("going", metrics=make_metrics(130), tail='{"kind"'))
    assert page.all("h1")[0].text.startswith("Unfinished at step 130: accuracy was last 8")
    assert "incomplete (a killed process leaves it so)" in page.text


@pytest.mark.parametrize("metrics", [[], make_metrics(1)[:1]])
def test_a_run_that_recorded_nothing_has_a_page(write_run: WriteRun, metrics: list[dict[str, Any]]) -> None:
    page = page_of(write_run(metrics=metrics))
    assert page.all("h1")[0].text == "This run has recorded nothing yet."
    assert "Nothing has been recorded that could be drawn." in page.text


def test_losses_that_are_not_finite_are_gaps_and_said_to_be(write_run: WriteRun) -> None:
    metrics = make_metrics(100)
    steps = [line for line in metrics if line["kind"] == "step"]
    for line, loss in zip(steps[40:60], [math.nan, math.inf] * 10, strict=True):
        line["loss"] = loss
    page = page_of(write_run(summary=make_summary(loss={"start": 0.7, "last": math.nan}), metrics=metrics))
    assert "not finite, or too large to draw, at 20 steps (from step 41 to step 60)" in page.text
    chart = next(div for div in page.all("div") if div.attributes.get("role") == "img")
    (line,) = [path.attributes["d"] or "" for path in chart.all("path") if path.css_class == "line s0"]
    assert line.count("M") == 2
    assert "Loss at the end not a number" in page.text


def test_losses_that_no_one_evaluated_have_no_rows(write_run: WriteRun) -> None:
    page = page_of(write_run(summary=make_summary(loss={"start": None, "last": None})))
    assert "Loss at the" not in page.text


def test_a_run_without_one_finite_loss_has_a_page(write_run: WriteRun) -> None:
    metrics = [line | {"loss": math.nan} for line in make_metrics(30) if line["kind"] == "step"]
    page = page_of(write_run(summary=make_summary(stopped="not finite"), metrics=metrics))
    assert "Nothing has been recorded that could be drawn." in page.text


def test_huge_runs_stay_small(write_run: WriteRun, tmp_path: Path) -> None:
    size = 30
    block = ConfusionTable(labels=tuple(f"label {i}" for i in range(size)), counts=((1234,) * size,) * size)
    summary, sections = make_summary(), [Section(title="Labels", blocks=(block,))]
    record = read_run(write_run("long", summary=summary, metrics=make_metrics(50_000, every=5), sections=sections))
    assert len(record.steps) == 50_000
    assert write_report([record], tmp_path / "one.html").stat().st_size < LIMIT / 5
    assert write_report([record] * 3, tmp_path / "three.html").stat().st_size < LIMIT / 5
    shorter = read_run(write_run("shorter", summary=summary, metrics=make_metrics(4_000, every=2), sections=sections))
    assert write_report([shorter] * 24, tmp_path / "many.html").stat().st_size < LIMIT


def test_the_page_is_written_in_one_step(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_run(write_run(summary=make_summary()))
    target = tmp_path / "new" / "report.html"
    assert write_report([record], str(target)) == target
    before = target.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((record.path / "config.toml").stat().st_mode)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report([record, record], target)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_the_same_runs_give_the_same_bytes(write_run: WriteRun) -> None:
    runs = [read_run(path) for path in three_runs(write_run)]
    assert render_report(runs) == render_report(runs)


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`runs` is empty, so there is nothing to report"):
        write_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    record = read_run(write_run())
    with pytest.raises(ValueError, match=r"this is a folder.*report\.html"):
        write_report([record], tmp_path)


def test_events_on_the_way_are_moments_of_a_chart_and_rows_of_a_table(write_run: WriteRun) -> None:
    stage = {"kind": "event", "step": 30, "name": "second stage", "seconds": 65.0, "values": {"accuracy": 0.8}}
    page = page_of(write_run(summary=make_summary(), metrics=[*make_metrics(80), stage]))
    names = [span for span in page.all("span") if span.css_class.startswith("moment-name")]
    assert [name.text for name in names] == ["second stage"] * 4
    assert names[0].attributes["style"] == f"left:{round(100 * 30 / (80 * 1.02), 2)}%"
    assert "Accuracy after the second stage in 1 min 5 s, at step 30 80.0 %" in page.text.replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_runs_that_count_no_examples_are_drawn_against_steps(write_run: WriteRun) -> None:
    page = page_of(write_run(metrics=[line | {"forwards": 0} for line in make_metrics(50) if line["kind"] == "step"]))
    charts = [div.attributes["aria-label"] or "" for div in page.all("div") if div.attributes.get("role") == "img"]
    assert [label.split(":")[0] for label in charts] == ["Loss against steps", "Loss against seconds"]

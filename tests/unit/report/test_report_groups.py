"""Seeds as bands, and tables and charts of what the settings made of the final metric."""

import math
import random
from pathlib import Path
from statistics import median

import pytest

from featherlight.report import read_run
from featherlight.report.curves import Track, spread
from featherlight.report.groups import differing_keys, group_runs
from tests.unit.report.conftest import WriteRun
from tests.unit.report.html_reading import page_of, table_rows
from tests.unit.report.samples import make_config, make_metrics, make_summary


def seeded(write_run: WriteRun, lr: float, lasts: dict[int, float]) -> list[Path]:
    """Write a run for each seed, with its last accuracy, at a learning rate."""
    paths = []
    for seed, last in lasts.items():
        summary = make_summary(seed=seed)
        summary["metric"]["last"] = last
        metrics = make_metrics(120, seed=seed, every=20)
        name = f"lr{lr}-seed{seed}"
        paths.append(write_run(name, summary=summary, metrics=metrics, config=make_config(seed, lr)))
    return paths


def test_runs_that_differ_in_seed_alone_are_a_group(write_run: WriteRun) -> None:
    paths = [*seeded(write_run, 1e-3, {0: 0.8, 1: 0.9}), *seeded(write_run, 1e-2, {0: 0.7}), write_run("x", config="")]
    groups = group_runs([read_run(path) for path in (*paths, paths[0])])
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0], [None], [0]]
    assert differing_keys(groups[:2]) == ["optimizer.lr"]


def test_seeds_are_one_line_with_a_band(write_run: WriteRun) -> None:
    page = page_of(*seeded(write_run, 1e-3, {0: 0.80, 1: 0.83, 2: 0.81}))
    assert page.all("h1")[0].text == "Over 3 seeds, accuracy ended at 81.0 % in the median (80.0 % to 83.0 %)."
    charts = [div for div in page.all("div") if div.attributes.get("role") == "img"]
    looks = [[path.css_class for path in chart.all("path")] for chart in charts]
    assert all(classes.count("band s0") == 1 and classes.count("line s0") == 1 for classes in looks)
    assert not any("cloud" in name for classes in looks for name in classes)
    assert "the band goes from the lowest to the highest" in page.text
    (row,) = table_rows(page.all("table")[0])[1:]
    assert row[0] == "MiniLM on SST-2 Forward-only, 3 seeds, accuracy"
    assert "81.0 % 80.0 % to 83.0 %" in row


def test_each_seed_keeps_its_own_figures(write_run: WriteRun) -> None:
    text = page_of(*seeded(write_run, 1e-3, {0: 0.80, 7: 0.83})).text
    assert "MiniLM on SST-2, seed 0" in text
    assert "MiniLM on SST-2, seed 7" in text
    assert "Accuracy at the end 83.0 %" in text


def test_a_sweep_is_listed_best_first_and_drawn(write_run: WriteRun) -> None:
    ends = {1e-4: 0.7, 1e-3: 0.85, 1e-2: 0.8}
    paths = [path for lr, end in ends.items() for path in seeded(write_run, lr, {0: end, 1: end + 0.02})]
    page = page_of(*paths)
    part = next(one for one in page.all("section") if one.attributes["aria-labelledby"] == "settings")
    assert table_rows(part.all("table")[0]) == [
        ["Run", "Accuracy", "optimizer.lr", "Seeds"],
        ["lr 0.001", "86.0 % 85.0 % to 87.0 %", "0.001", "2"],
        ["lr 0.01", "81.0 % 80.0 % to 82.0 %", "0.01", "2"],
        ["lr 0.0001", "71.0 % 70.0 % to 72.0 %", "0.0001", "2"],
    ]
    (chart,) = [div for div in part.all("div") if div.attributes.get("role") == "img"]
    assert (chart.attributes["aria-label"] or "").replace("\N{NO-BREAK SPACE}", " ") == (
        "Accuracy at the end against optimizer.lr: 0.0001: 71.0 %; 0.001: 86.0 %; 0.01: 81.0 %."
    )
    assert "optimizer.lr (logarithmic)" in part.text
    dots = next(path.attributes["d"] or "" for path in chart.all("path") if path.css_class.startswith("dots"))
    assert dots.count("M") == 6
    assert page.all("h1")[0].text == "lr 0.001 ended best, at 86.0 % accuracy in the median over seeds."


def test_a_sweep_of_two_values_is_not_drawn(write_run: WriteRun) -> None:
    paths = [path for lr in (1e-4, 1e-3) for path in seeded(write_run, lr, {0: 0.8})]
    part = next(one for one in page_of(*paths).all("section") if one.attributes["aria-labelledby"] == "settings")
    assert not part.all("svg") or not [div for div in part.all("div") if div.attributes.get("role") == "img"]
    assert table_rows(part.all("table")[0])[0] == ["Run", "Accuracy", "optimizer.lr"]


def test_an_unfinished_run_stands_last_in_a_sweep(write_run: WriteRun) -> None:
    paths = [write_run("going", config=make_config(0, 0.5)), *seeded(write_run, 1e-3, {0: 0.8})]
    paths += seeded(write_run, 1e-4, {0: 0.9})
    part = next(one for one in page_of(*paths).all("section") if one.attributes["aria-labelledby"] == "settings")
    assert [row[2] for row in table_rows(part.all("table")[0])[1:]] == ["0.0001", "0.001", "0.5"]
    assert "One run is not finished (unfinished)" in page_of(*paths).text


@pytest.mark.parametrize("max_points", [10, 1000])
def test_a_spread_is_the_median_and_the_range(max_points: int) -> None:
    rng = random.Random(0)
    tracks = [Track(steps=range(1, 41), xs=range(1, 41), ys=[rng.random() for _ in range(40)]) for _ in range(5)]
    found = spread(tracks, max_points)
    assert len(found.xs) <= max_points + 1
    for x, low, middle, high in zip(found.xs, found.lows, found.middles, found.highs, strict=True):
        there = [track.ys[int(x) - 1] for track in tracks]
        assert (low, middle, high) == (min(there), median(there), max(there))


def test_a_spread_joins_runs_that_recorded_different_steps() -> None:
    first = Track(steps=[0, 10, 20], xs=[0.0, 10.0, 20.0], ys=[0.0, 10.0, math.nan])
    second = Track(steps=[5, 15], xs=[5.0, 15.0], ys=[1.0, 1.0])
    found = spread([first, second, Track(steps=[], xs=[], ys=[])], 100)
    assert list(found.xs) == [0, 5, 10, 15, 20]
    assert found.lows[:4] == (0.0, 1.0, 1.0, 1.0)
    assert found.highs[:4] == (0.0, 5.0, 10.0, 1.0)
    assert math.isnan(found.middles[4])


def test_many_runs_show_one_bar_each(write_run: WriteRun) -> None:
    paths = [path for i in range(6) for path in seeded(write_run, 10.0 ** -(i + 1), {0: 0.8})]
    memory = next(one for one in page_of(*paths).all("section") if one.attributes["aria-labelledby"] == "memory")
    assert [bar.css_class for bar in memory.all("rect")] == [f"training s{i}" for i in range(6)]

"""Several runs on one page, read back with a parser."""

from tests.unit.report.conftest import WriteRun, three_runs
from tests.unit.report.html_reading import machine_values, page_of, section, table_rows
from tests.unit.report.samples import bare_summary, figures_of, make_metrics, make_summary


def test_several_runs_are_laid_over_each_other(write_run: WriteRun) -> None:
    page = page_of(*three_runs(write_run))
    legends = [[item.text for item in legend.all("li")] for legend in page.all("ul") if legend.css_class == "legend"]
    assert legends == [["Forward-only", "MeZO", "AdamW"]] * 2
    chart = next(div for div in page.all("div") if div.attributes.get("role") == "img")
    lines = [path.css_class for path in chart.all("path") if path.css_class.startswith("line")]
    assert lines == ["line s0", "line s1", "line s2"]


def test_the_table_of_outcomes_has_a_row_for_each_run(write_run: WriteRun) -> None:
    table = section(page_of(*three_runs(write_run)), "Outcomes").all("table")[0]
    head, *body = table_rows(table)
    assert [row[0] for row in body] == ["Forward-only accuracy", "MeZO accuracy", "AdamW accuracy"]
    assert dict(zip(head, body[0], strict=True)) == {
        "Run": "Forward-only accuracy",
        "Metric at the start": "50.9 %",
        "Head start": "75.2 %",
        "Best": "82.9 %",
        "Last": "82.3 %",
        "Loss": "0.4127",
        "Memory above inference": "2.00 MiB",
        "Time": "12 min 5 s",
        "Example-forwards": "2,048,017",
        "Journal": "61.0 KiB",
    }


def test_the_table_of_outcomes_leaves_out_what_no_run_has(write_run: WriteRun) -> None:
    runs = [write_run(name, summary=bare_summary(title=name)) for name in ("a", "b")]
    head, *body = table_rows(section(page_of(*runs), "Outcomes").all("table")[0])
    assert head == ["Run", "Time", "Example-forwards"]
    assert body == [["a", "12 min 5 s", "2,048,017"], ["b", "12 min 5 s", "2,048,017"]]


def test_every_figure_of_every_run_is_on_a_comparison(write_run: WriteRun) -> None:
    values = machine_values(page_of(*three_runs(write_run)))
    for method in ("zo", "mezo", "adamw"):
        assert not [figure for figure in figures_of(make_summary(method)) if figure not in values]


def test_a_comparison_says_what_each_method_is_for(write_run: WriteRun) -> None:
    page = page_of(*three_runs(write_run))
    terms = [term.text for term in section(page, "What each method is for").all("dt")]
    assert terms == ["Forward-only", "MeZO", "AdamW"]
    heading = page.all("h1")[0].text
    assert heading == (
        "AdamW ended best, at 88.8 % accuracy; "
        "Forward-only took the least memory, 2.00 MiB above what running the model takes."
    )


def test_an_unfair_comparison_is_said_to_be_one(write_run: WriteRun) -> None:
    facts = {"model": "gpt2", "training data": "sst2.parquet"}
    page = page_of(
        write_run("a", summary=make_summary("zo")), write_run("b", summary=make_summary("adamw", facts=facts))
    )
    assert "The runs differ in their model (gpt2 and minilm-l6): compare with care." in page.text
    assert page.all("h1")[0].text == "AdamW ended best, at 88.8 % accuracy."


def test_runs_on_different_data_name_no_best_over_all(write_run: WriteRun) -> None:
    facts = {"model": "minilm-l6", "training data": "trec.parquet"}
    runs = [
        write_run("a", summary=make_summary("zo")),
        write_run("b", summary=make_summary("mezo")),
        write_run("c", summary=make_summary("adamw", facts=facts)),
    ]
    page = page_of(*runs)
    assert page.all("h1")[0].text == (
        "The runs were made on different data, so none is called best over all. "
        "On sst2.parquet, Forward-only ended best, at 82.3 % accuracy."
    )
    assert "The runs differ in their training data (sst2.parquet and trec.parquet)" in page.text


def test_runs_on_different_machines_do_not_compare_in_time(write_run: WriteRun) -> None:
    other = make_summary("adamw", environment={"device": "cuda", "threads": 2})
    page = page_of(write_run("a", summary=make_summary("zo")), write_run("b", summary=other))
    assert "The runs were not made alike (device differ), so their times do not compare." in page.text


def test_runs_without_a_common_metric_name_no_best(write_run: WriteRun) -> None:
    other = make_summary("adamw", metric={"name": "mcc", "start": 0.0, "best": 0.4, "last": 0.4})
    page = page_of(write_run("a", summary=make_summary("zo")), write_run("b", summary=other))
    assert "none is called best" in page.all("h1")[0].text


def test_the_lowest_is_best_where_lower_is_better(write_run: WriteRun) -> None:
    runs = []
    for name, last in (("a", 11.0), ("b", 9.0)):
        metric = {"name": "perplexity", "start": 20.0, "best": last, "last": last, "lower_is_better": True}
        runs.append(write_run(name, summary=make_summary(title=name, metric=metric)))
    assert page_of(*runs).all("h1")[0].text == "b ended best, at 9 perplexity."


def test_twins_are_told_apart(write_run: WriteRun) -> None:
    page = page_of(write_run("first", summary=make_summary()), write_run("second", summary=make_summary()))
    assert [item.text for item in page.all("ul")[0].all("li")] == ["first", "second"]
    assert page.all("h1")[0].text == "first and second ended level, both at 82.3 % accuracy."


def test_unfinished_runs_can_be_compared(write_run: WriteRun) -> None:
    page = page_of(write_run("done", summary=make_summary()), write_run("going", metrics=make_metrics(30)))
    assert page.all("h1")[0].text == "2 runs side by side; 1 of them left a summary."
    assert "Unfinished at step 30, not evaluated yet." in section(page, "Outcomes").text


def test_adamw_run_beside_others_replaces_their_estimate(write_run: WriteRun) -> None:
    memory = section(page_of(*three_runs(write_run)), "Memory")
    assert "estimated" not in memory.text
    assert [table.all("caption")[0].text for table in memory.all("table")] == ["Forward-only", "MeZO", "AdamW"]


def test_a_run_evaluated_elsewhere_is_said_to_be_missing_from_a_chart(write_run: WriteRun) -> None:
    metrics = make_metrics(80)
    tested = [line | {"split": "test"} if line["kind"] == "eval" else line for line in metrics]
    page = page_of(write_run("a", metrics=metrics), write_run("b", metrics=tested))
    assert "evaluated on other splits alone are not drawn" in page.text
    alone = page_of(write_run("c", metrics=metrics + [line for line in tested if line["kind"] == "eval"]))
    legends = [[item.text for item in legend.all("li")] for legend in alone.all("ul") if legend.css_class == "legend"]
    assert legends == [["training, mean", "validation", "test"], ["validation", "test"]]

"""Sections: what they accept, their file, and how the page draws them."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from featherlight.report import (
    BarChart,
    Block,
    ConfusionTable,
    Heatmap,
    Images,
    LineChart,
    Section,
    Table,
    read_run,
    read_sections,
    render_report,
    write_sections,
)
from tests.unit.report.conftest import WriteRun
from tests.unit.report.html_reading import Element, read_html, table_rows
from tests.unit.report.samples import bare_summary, make_config, make_sections, make_summary

GREY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def same(a: Any, b: Any) -> bool:
    """Tell whether two values are equal, taking NaN to equal NaN and infinities to be gaps alike."""
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b)) and a.dtype == b.dtype
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def drawn(write_run: WriteRun, *blocks: Block, text: str = "") -> Element:
    """Return the section that a page draws of some blocks."""
    section = Section(title="Own", text=text, blocks=blocks)
    page = read_html(render_report([read_run(write_run(summary=bare_summary(), sections=[section], metrics=[]))]))
    return next(found for found in page.all("section") if found.all("h2")[0].text == "Own")


def test_sections_come_back_as_they_were_written(tmp_path: Path) -> None:
    sections = make_sections()
    path = write_sections(tmp_path, sections)
    assert path == tmp_path / "sections.json"
    assert same(read_sections(tmp_path), sections)
    assert same(read_sections(path), sections)
    assert [file.name for file in tmp_path.iterdir()] == ["sections.json"]


def test_a_run_directory_that_is_not_there_is_not_made_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_sections(tmp_path / "absent", [])
    assert not list(tmp_path.iterdir())


numbers = st.floats() | st.integers(-(10**12), 10**12)
cells = st.none() | numbers | st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=6))
def test_any_table_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any]]) -> None:
    path = tmp_path_factory.mktemp("sections")
    sections = (Section(title="T", blocks=(Table(columns=("a", "b"), rows=tuple(rows)),)),)
    write_sections(path, sections)
    assert same(read_sections(path), sections)


@given(stn.arrays(np.uint8, stn.array_shapes(min_dims=3, max_dims=3, max_side=6)), st.booleans())
def test_any_images_come_back(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray, colour: bool) -> None:
    path = tmp_path_factory.mktemp("sections")
    images = np.stack([images] * 3, axis=-1) if colour else images
    write_sections(path, [Section(title="I", blocks=(Images(images=images, columns=2),))])
    (block,) = read_sections(path)[0].blocks
    assert isinstance(block, Images)
    assert np.array_equal(block.images, images)


def test_numpy_numbers_are_taken_as_plain_ones() -> None:
    table = Table(columns=("a", "b", "c"), rows=((np.int64(3), np.float32(0.5), np.bool_(True)),))
    assert table.rows == ((3, 0.5, "yes"),)
    assert BarChart(labels=["a"], values=np.array([2.0])).values == (2.0,)
    chart = LineChart(x_label="x", y_label="y", lines={"a": (np.arange(3), [1, None, 10**400])})
    assert same(chart.lines["a"], ((0.0, 1.0, 2.0), (1.0, math.nan, math.inf)))


def test_images_are_a_copy_that_stays() -> None:
    pixels = GREY.copy()
    block = Images(images=pixels, columns=1)
    pixels[:] = 0
    assert np.array_equal(block.images, GREY)
    with pytest.raises(ValueError, match="read-only"):
        block.images[0] = 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(columns=(), rows=()), "`columns` is empty"),
        (lambda: Table(columns=("a", "b"), rows=((1, 2), (3,))), "row 1 of `rows` has 1 cells and there are 2 columns"),
        (lambda: Table(columns=("a",), rows=(([1],),)), r"a cell of `rows` is \[1\]"),
        (lambda: Table(columns="ab", rows=()), "`columns` must be a sequence of texts; got 'ab'"),
        (lambda: LineChart(x_label="x", y_label="y", lines={}), "`lines` is empty"),
        (lambda: LineChart(x_label="x", y_label="y", lines={"a": ([1, 2], [1])}), "2 xs and 1 ys"),
        (lambda: LineChart(x_label="x", y_label="y", lines={"a": ([1], ["1"])}), "must hold numbers; got '1'"),
        (lambda: BarChart(labels=("a",), values=(1.0, 2.0)), "`labels` has 1 names and `values` 2 numbers"),
        (lambda: BarChart(labels=(), values=()), "at least one"),
        (
            lambda: Heatmap(values=[[1], [2, 3]], row_labels=("a", "b"), column_labels=("c",)),
            "2 rows of 1 or 2 numbers",
        ),
        (lambda: ConfusionTable(labels=("a", "b"), counts=((1, 2), (3,))), r"rows of lengths \[2, 1\] for 2 labels"),
        (lambda: ConfusionTable(labels=("a",), counts=((-1,),)), "whole numbers from 0; got -1"),
        (lambda: Images(images=GREY.astype(np.float32), columns=1), "`images` is of float32"),
        (lambda: Images(images=GREY[0], columns=1), r"`images` has the shape \(3, 4\)"),
        (lambda: Images(images=np.zeros((2, 3, 4, 2), np.uint8), columns=1), r"the shape \(2, 3, 4, 2\)"),
        (lambda: Images(images=np.zeros((5, 4000, 1000), np.uint8), columns=1), "20,000,000 pixels"),
        (lambda: Images(images=GREY, columns=0), "`columns` must be a whole number of at least 1; got 0"),
        (lambda: Images(images=GREY, columns=1, labels=("a",)), "`labels` has 1 names for 2 images"),
        (lambda: Section(title=" "), "`title` is empty"),
        (lambda: Section(title="a", blocks=("text",)), "`blocks` holds a str"),
    ],
)
def test_bad_blocks_get_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path: Path, write_run: WriteRun) -> None:
    path = write_run(sections=make_sections())
    file = path / "sections.json"
    whole = file.read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", whole)]
    for cut in range(0, len(whole) - 3, 2503):
        file.write_bytes(whole[:cut])
        record = read_run(path)
        assert len(record.sections) >= sum(end <= cut for end in ends[1:])
        assert len(record.sections) <= sum(end <= cut for end in ends[1:]) + 1
        assert "sections.json: this is not valid JSON" in record.damage[0]
    with pytest.raises(ValueError, match=r"sections\.json: this is not valid JSON"):
        read_sections(path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"kind": "film"}, "`kind` is 'film', and the kinds known are table"),
        ({"kind": "table", "columns": ["a"]}, "'caption' is missing|'rows' is missing"),
        ({"kind": "bar_chart", "labels": ["a"], "values": [1, 2], "unit": "", "caption": ""}, "`labels` has 1 names"),
        ({"kind": "images", "num": 1, "png": "AAAA", "columns": 1}, "cannot identify image"),
        ({"kind": "images", "num": 1, "png": "?", "columns": 1}, "not base64"),
        ({"kind": "bar_chart", "colour": "red"}, "colour"),
        ("text", "cannot be drawn"),
    ],
)
def test_a_damaged_section_is_named_and_the_others_are_read(write_run: WriteRun, block: Any, message: str) -> None:
    path = write_run(sections=make_sections())
    file = path / "sections.json"
    document = json.loads(file.read_text())
    document["sections"][1]["blocks"] = [block]
    file.write_text(json.dumps(document))
    record = read_run(path)
    assert len(record.sections) == len(make_sections()) - 1
    (sentence,) = record.damage
    assert "sections.json, section 2: this section cannot be drawn" in sentence
    assert re.search(message, sentence)


def test_a_newer_file_gets_a_sentence(write_run: WriteRun) -> None:
    path = write_run(sections=make_sections()[:1])
    file = path / "sections.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 7'))
    record = read_run(path)
    assert len(record.sections) == 1
    assert "its version is 7 and this featherlight reads 1" in record.damage[0]


def test_a_table_shows_its_cells(write_run: WriteRun) -> None:
    rows = (("a", 1234, 0.5), ("b", None, math.nan))
    section = drawn(write_run, Table(columns=("name", "n", "x"), rows=rows, caption="Told."), text="One.\n\nTwo.")
    assert [text.text for text in section.all("p")] == ["One.", "Two."]
    assert table_rows(section.all("table")[0]) == [
        ["name", "n", "x"],
        ["a", "1,234", "0.5"],
        ["b", "none", "not a number"],
    ]
    assert section.all("figcaption")[0].text == "Told."


def test_a_long_table_is_cut_and_said_to_be(write_run: WriteRun) -> None:
    section = drawn(write_run, Table(columns=("i",), rows=tuple((i,) for i in range(5000))))
    assert len(section.all("tr")) == 201
    assert "The first 200 of 5,000 rows." in section.text


def test_a_line_chart_draws_its_lines_with_gaps(write_run: WriteRun) -> None:
    lines = {"a": ([1, 10, 100, 1000, 2000], [1.0, 2.0, math.nan, 3.0, 4.0]), "b": ([1, 1000], [2.0, 2.0])}
    section = drawn(write_run, LineChart(x_label="Length", y_label="Time", lines=lines, log_x=True))
    paths = {path.css_class: path.attributes["d"] or "" for path in section.all("path") if path.attributes.get("d")}
    assert paths["line s0"].count("M") == 2
    assert [item.text for item in section.all("li")] == ["a", "b"]
    assert "Length (logarithmic)" in section.text
    (chart,) = [div for div in section.all("div") if div.attributes.get("role") == "img"]
    assert chart.attributes["aria-label"] == "Time against length: a from 1 to 4; b from 2 to 2."


def test_what_has_no_place_is_no_error(write_run: WriteRun) -> None:
    nothing = [math.nan, math.inf, -math.inf]
    blocks = (
        LineChart(x_label="x", y_label="y", lines={"a": ([1, 2, 3], nothing), "b": ([], [])}),
        LineChart(x_label="x", y_label="y", lines={"a": ([-1, 0, 3], [0.0, 0.0, 0.0])}, log_x=True, log_y=True),
        BarChart(labels=("a", "b", "c"), values=tuple(nothing)),
        BarChart(labels=tuple(map(str, range(99))), values=(math.nan,) * 99),
        BarChart(labels=tuple(map(str, range(3000))), values=(1e300,) * 3000),
        Heatmap(values=[nothing], row_labels=("r",), column_labels=("a", "b", "c")),
        Heatmap(values=[nothing * 10], row_labels=("r",), column_labels=tuple("abcdefghij" * 3)),
        Table(columns=("a",), rows=()),
        ConfusionTable(labels=("a",), counts=((0,),)),
    )
    html = " ".join(path.attributes.get("d") or "" for path in drawn(write_run, *blocks).all("path"))
    assert not re.search("nan|inf", html)


def test_bars_start_from_zero(write_run: WriteRun) -> None:
    section = drawn(write_run, BarChart(labels=("up", "down"), values=(30.0, -10.0), unit="dB"))
    rects = [(float(r.attributes["x"] or ""), float(r.attributes["width"] or "")) for r in section.all("rect")]
    assert rects == [(25.0, 75.0), (0.0, 25.0)]
    assert "30 dB" in section.text


def test_many_bars_are_columns(write_run: WriteRun) -> None:
    section = drawn(write_run, BarChart(labels=tuple(f"c{i}" for i in range(512)), values=tuple(range(512))))
    (columns,) = [path for path in section.all("path") if "columns" in path.css_class]
    assert (columns.attributes["d"] or "").count("M") == 512
    assert "512 values from 0 to 511." in section.text


def test_a_large_heatmap_is_a_picture(write_run: WriteRun) -> None:
    values = np.random.default_rng(0).normal(size=(300, 2000)).tolist()
    labels = (tuple(map(str, range(300))), tuple(map(str, range(2000))))
    section = drawn(write_run, Heatmap(values=values, row_labels=labels[0], column_labels=labels[1]))
    (image,) = section.all("img")
    assert (image.attributes["src"] or "").startswith("data:image/png;base64,")
    assert "300 rows, 2,000 columns" in section.text
    assert "Of each side, 256 evenly spaced at most are shown." in section.text
    assert len(image.attributes["src"] or "") < 200_000


def test_images_keep_within_the_page(write_run: WriteRun) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), dtype=np.uint8)
    record = read_run(
        write_run(summary=make_summary(), sections=[Section(title="I", blocks=(Images(images=noise, columns=8),))])
    )
    html = render_report([record])
    assert len(html) < 2_000_000
    assert re.search(r"The first \d\d of 64 are shown", html)
    assert len(render_report([record] * 3)) < 2_000_000


def test_small_images_are_enlarged_with_their_labels(write_run: WriteRun) -> None:
    section = drawn(write_run, Images(images=GREY, columns=2, scale=8, labels=("x", "y"), caption="Two."))
    assert [image.attributes["width"] for image in section.all("img")] == ["32", "32"]
    assert [label.text for label in section.all("small")] == ["x", "y"]
    assert any("enlarged" in div.css_class for div in section.all("div"))


def test_sections_of_several_runs_stand_together_by_title(write_run: WriteRun) -> None:
    first, second = make_sections(0), make_sections(1)
    records = [
        read_run(write_run("a", summary=make_summary("zo"), config=make_config(method="zo"), sections=first[:2])),
        read_run(write_run("b", summary=make_summary("mezo"), config=make_config(method="mezo"), sections=second[1:3])),
    ]
    page = read_html(render_report(records))
    own = [found for found in page.all("section") if (found.attributes["aria-labelledby"] or "").startswith("own")]
    heads = [[head.text for head in found.all("h3") if head.text in ("Forward-only", "MeZO")] for found in own]
    assert [found.all("h2")[0].text for found in own] == ["Which label for which", "Solver", "Codebook"]
    assert heads == [["Forward-only"], ["Forward-only", "MeZO"], ["MeZO"]]


def test_text_in_sections_is_escaped(write_run: WriteRun) -> None:
    nasty = "<script>alert('&\"')</script>"
    blocks = (
        Table(columns=(nasty,), rows=((nasty,),), caption=nasty),
        LineChart(x_label=nasty, y_label=nasty, lines={nasty: ([1], [1]), "b": ([1], [1])}, caption=nasty),
        BarChart(labels=(nasty,), values=(1,), unit=nasty, caption=nasty),
        Heatmap(values=[[1]], row_labels=(nasty,), column_labels=(nasty,), caption=nasty),
        ConfusionTable(labels=(nasty,), counts=((1,),), caption=nasty),
        Images(images=GREY, columns=1, labels=(nasty, nasty), caption=nasty),
    )
    section = drawn(write_run, *blocks, text=nasty)
    assert not section.all("script")
    assert section.text.count("<script>") >= 14

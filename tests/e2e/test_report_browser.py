"""The report in headless Chromium: no word on the console, charts with boxes, nothing wider than a phone, light and dark.

A page is measured in a copy whose policy lets one script of the test run, inside a frame of the width asked for, since
a headless window does not get as narrow as a phone. What the script finds it writes into the frame's parent, whose
elements `--dump-dom` prints.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featherlight.report import read_run, render_report, write_sections
from tests.unit.report.samples import bare_summary, make_config, make_metrics, make_sections, make_summary

PHONE, DESK = 360, 1100
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is on PATH")

_MEASURE = """
const boxes = found => [...found].map(one => {
  const box = one.getBoundingClientRect();
  return {name: one.getAttribute("class"), width: box.width, height: box.height};
});
addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const root = document.documentElement;
  const seen = {
    inner: innerWidth, scroll: root.scrollWidth, text: document.body.innerText.length,
    lines: boxes(document.querySelectorAll(".plot path.line, .plot path.band, .plot path.columns")),
    bars: boxes(document.querySelectorAll(".bars rect")),
    plots: boxes(document.querySelectorAll(".plot")),
    images: [...document.images].map(one => ({loaded: one.complete && one.naturalWidth > 0, ...boxes([one])[0]})),
    ticks: [...document.querySelectorAll(".chart .x")].map(axis => {
      const ends = [...axis.children].map(one => one.getBoundingClientRect()).sort((a, b) => a.left - b.left);
      return Math.min(...ends.slice(1).map((box, i) => box.left - ends[i].right), 99);
    }),
  };
  const told = parent.document.createElement("pre");
  told.id = "seen";
  told.textContent = JSON.stringify(seen);
  parent.document.body.append(told);
});
"""


@dataclass(frozen=True)
class Browser:
    """Chromium in a folder of its own."""

    folder: Path

    def call(self, page: Path, *options: str, width: int = DESK, height: int = 1400, dark: bool = False) -> str:
        """Open a page, insist that nothing came on the console, and return what was printed."""
        done = subprocess.run(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                "--v=0",
                "--hide-scrollbars",
                f"--user-data-dir={self.folder / 'profile'}",
                f"--window-size={width},{height}",
                f"--blink-settings=preferredColorScheme={int(not dark)}",
                *options,
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        spoken = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert spoken == []
        return done.stdout

    def measure(self, html: str, width: int) -> dict[str, Any]:
        """Return what the measuring script sees of a page laid out at a width."""
        html = html.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
        html = html.replace("</head>", f"<script>{_MEASURE}</script></head>")
        frame = self.folder / "frame.html"
        style = f"width:{width}px;height:9000px;border:0"
        frame.write_text(f'<!DOCTYPE html><body><iframe style="{style}" srcdoc="{escape(html)}"></iframe></body>')
        found = re.search(r'<pre id="seen">(.*?)</pre>', self.call(frame, "--dump-dom"), re.DOTALL)
        assert found, "the measuring script did not run"
        return json.loads(unescape(found[1]))

    def shoot(self, html: str, *, width: int, dark: bool) -> np.ndarray:
        """Return a screenshot of a page at a width, (H, W, 3)."""
        page, shot = self.folder / "page.html", self.folder / f"shot-{width}-{dark}.png"
        page.write_text(html, encoding="utf-8")
        if width < DESK:
            frame = self.folder / "narrow.html"
            frame.write_text(
                f'<!DOCTYPE html><body style="margin:0"><iframe src="{page.name}" '
                f'style="width:{width}px;height:1400px;border:0"></iframe></body>'
            )
            page = frame
        self.call(page, f"--screenshot={shot}", dark=dark)
        return np.asarray(Image.open(shot).convert("RGB"))[:, :width]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A browser."""
    folder = tmp_path / "browser"
    folder.mkdir()
    return Browser(folder)


def write_run(path: Path, summary: Mapping[str, Any] | None, metrics: list[dict[str, Any]], config: str) -> Path:
    """Write a run directory with the sections of every kind."""
    path.mkdir()
    (path / "config.toml").write_text(config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    write_sections(path, make_sections())
    return path


def one_run(folder: Path) -> str:
    """Return the page of a run with a stage on the way and a block of every kind."""
    stage = {"kind": "event", "step": 190, "name": "second stage", "seconds": 12.0}
    run = write_run(folder / "one", make_summary(), [*make_metrics(400), stage], make_config())
    return render_report([read_run(run)])


def many_runs(folder: Path) -> str:
    """Return the page of three settings under two seeds each, and of a run that is not like them."""
    paths = []
    for i, lr in enumerate((1e-5, 1e-4, 1e-3)):
        for seed in (0, 1):
            summary = make_summary(seed=seed)
            summary["metric"]["last"] = 0.7 + 0.03 * i + 0.01 * seed
            metrics = make_metrics(200, seed=7 * i + seed)
            paths.append(write_run(folder / f"run {i} {seed}", summary, metrics, make_config(seed, lr)))
    return render_report([read_run(path) for path in paths])


def damaged_run(folder: Path) -> str:
    """Return the page of a run without a configuration, with a broken summary and a torn line."""
    run = write_run(folder / "damaged", None, make_metrics(90), "")
    (run / "summary.json").write_text('{"version": 1, "tit')
    (run / "config.toml").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    return render_report([read_run(run)])


def bare_run(folder: Path) -> str:
    """Return the page of a run that has nothing but its sections."""
    return render_report([read_run(write_run(folder / "bare", bare_summary(title="A"), [], 'recipe = "compress"\n'))])


PAGES = {"one": one_run, "many": many_runs, "damaged": damaged_run, "bare": bare_run}


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_charts_are_rendered_and_fit(browser: Browser, tmp_path: Path, make: Callable[[Path], str], width: int) -> None:
    html = make(tmp_path)
    assert len(html.encode()) < 2_000_000
    seen = browser.measure(html, width)
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["text"] > 500
    assert len(seen["lines"]) == len(re.findall(r'<path class="(?:line|band|columns)[^"]*" d="M(?!2 5L24)\d', html)) > 0
    assert all(line["width"] > 40 and line["height"] > 2 for line in seen["lines"])
    assert all(plot["width"] > 150 and plot["height"] > 150 for plot in seen["plots"])
    assert all(bar["height"] > 5 for bar in seen["bars"])
    assert any(bar["width"] > 100 for bar in seen["bars"])
    assert all(image["loaded"] and image["width"] > 4 and image["height"] > 4 for image in seen["images"])
    assert len(seen["images"]) == html.count("<img ")
    assert min(seen["ticks"], default=1) > 0, "texts under an axis overlap"


@pytest.mark.parametrize(("width", "dark"), [(DESK, False), (DESK, True), (PHONE, False), (PHONE, True)])
def test_screenshots_are_not_blank(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    pixels = browser.shoot(one_run(tmp_path), width=width, dark=dark)
    paper = pixels[2, 2].astype(int)
    assert (paper.max() < 60) if dark else (paper.min() > 200)
    inked = (np.abs(pixels.astype(int) - paper) > 60).any(axis=2)
    assert 0.01 < inked.mean() < 0.5
    bands = inked.reshape(inked.shape[0] // 100, 100, -1).any(axis=(1, 2))
    assert bands.mean() > 0.9, "a stretch of the page is blank"
    coloured = pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 60
    assert coloured.mean() > 0.001, "no curve has its colour"


def test_the_page_prints(browser: Browser, tmp_path: Path) -> None:
    page, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(one_run(tmp_path), encoding="utf-8")
    browser.call(page, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 20_000

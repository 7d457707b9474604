"""Studies of what regularizes, tiny, by the command line: a table of all variants, curves, and resuming."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from featherlight.recipes.regularize import experiment as module
from featherlight.recipes.regularize.config import StylizeConfig
from featherlight.recipes.regularize.stylize import drawing, with_contrast

TINY = ("data=digits", "images=64", "epochs=1", "batch=32", "evaluations=2", "device=cpu")
STUDIES = {
    "dropout": (("shares=[0.0,0.5]",), ["dropout 0", "dropout 0.5"], ["error"]),
    "norms": (
        ("norms=['batch','group']", "batches=[16,32]"),
        ["batch norm", "group norm"],
        ["batch 16", "batch 32"],
    ),
    "decay": (
        ("rates=[0.01]", "decays=[0.0,0.1]"),
        ["AdamW, decay 0", "AdamW, decay 0.1", "Adam, penalty 0", "Adam, penalty 0.001"],
        ["rate 0.01"],
    ),
    "prodigy": (("rates=[0.001]",), ["AdamW 0.001", "Prodigy"], ["stationary", "shifting"]),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_compares_all_its_variants_and_resumes(run, tmp_path, monkeypatch, study):
    pytest.importorskip("sklearn")
    changes, rows, columns = STUDIES[study]
    command = ("run", f"regularize/{study}", *[part for change in (*TINY, *changes) for part in ("--set", change)])
    done = run(*command, "--out", tmp_path / "whole")
    assert done.code == 0, done.err
    found = sections(tmp_path / "whole")
    table = found["Errors"][0]
    assert table["columns"] == ["", *columns]
    assert [row[0] for row in table["rows"]] == rows
    assert all(0 <= value <= 100 for row in table["rows"] for value in row[1:])
    assert [chart["caption"] for chart in found["On the way"]] == columns
    if study != "prodigy":
        return
    with monkeypatch.context() as patch:
        real = module._Running._objective

        def interrupting(self, number, step, meter):
            if (number, step) == (2, 1):
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, number, step, meter)

        patch.setattr(module._Running, "_objective", interrupting)
        assert run(*command, "--out", tmp_path / "parts").code == 130
    assert run(*command, "--out", tmp_path / "parts").code == 0
    assert sections(tmp_path / "parts")["Errors"] == found["Errors"]


def test_drawings_need_the_contrast_of_each_photograph(run, tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for number in range(5):
        small = draw.integers(0, 255, (5, 6 + number, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 32)).save(tmp_path / "photographs" / f"{number}.png")
    changes = (f"data={tmp_path / 'photographs'}", "side=16", "width=4", "steps=3", "valid_fraction=0.4", "device=cpu")
    done = run("run", "regularize/stylize", *[p for c in changes for p in ("--set", c)], "--out", tmp_path / "run")
    assert done.code == 0, done.err
    found = sections(tmp_path / "run")
    assert [row[0] for row in found["Errors"][0]["rows"]] == [f"{n} norm" for n in StylizeConfig().norms]
    assert found["Drawings"][0]["num"] == 7 * 2
    photographs = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    faint = with_contrast(photographs, 0.2, torch.Generator().manual_seed(0))
    assert (faint.std((1, 2, 3)) < photographs.std((1, 2, 3))).all()
    torch.testing.assert_close(drawing(faint), drawing(photographs), rtol=0, atol=0.05)


def sections(path):
    return {one["title"]: one["blocks"] for one in json.loads((path / "sections.json").read_text())["sections"]}


def test_bad_settings_get_a_sentence(run, tmp_path):
    for study, change, match in (
        ("dropout", "shares=[1.0]", "`shares` must be"),
        ("norms", "batches=[1]", "2 images or more"),
        ("decay", "rates=[0]", "`rates` must be finite positive"),
        ("prodigy", "images=0", "`images` must be at least 1"),
        ("stylize", "lowest_contrast=1", "`lowest_contrast` must lie"),
        ("stylize", "width=6", "a `width` that 4 divides"),
    ):
        assert match in run("run", f"regularize/{study}", "--set", change, "--out", tmp_path / "run").err

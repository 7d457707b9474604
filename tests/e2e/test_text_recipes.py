"""Models of text from end to end, by the command line: report, resuming, and the trained model again."""

import json
import os
import signal

import pytest
import torch

from featherlight.nn.models import generate
from featherlight.recipes.text import language, translation
from featherlight.recipes.text.networks import read_language_model
from featherlight.report import read_run

TINY = ("network.width=16", "network.heads=2", "network.blocks=1", "steps=8", "evaluations=2", "batch=4", "device=cpu")
LANGUAGE = ("context=16", "sample=30", "network.dropout=0.1")
KINDS = {
    "text/shakespeare": (
        language._Writer,
        "perplexity",
        {"The whole validation text", "Sample"},
        (*LANGUAGE, "micro_batch=3"),
    ),
    "text/shakespeare_lstm": (language._Writer, "perplexity", {"Sample"}, (*LANGUAGE, "tokens=bytes")),
    "text/copy": (translation._Translator, "exact match", {"Exact matches"}, ("tested=20", "evaluated=8")),
}


@pytest.mark.parametrize("recipe", KINDS)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_leaves_a_report(run, tmp_path, monkeypatch, recipe):
    kind, metric, titles, own = KINDS[recipe]
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} sheep, and then another.\n" for number in range(60)))
    own = own if recipe == "text/copy" else (*own, f"data={text}")
    command = ("run", recipe, *(part for change in (*TINY, *own) for part in ("--set", change)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*command, "--out", whole)
    assert done.code == 0, done.err
    real = kind.objective

    def objective(self, step, meter):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "objective", objective)
        assert run(*command, "--out", parts).code == 130
    again = run(*command, "--out", parts)
    assert again.code == 0, again.err
    files = [folder / "model" / "model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    record = read_run(whole)
    assert record.summary is not None
    assert record.summary.metric is not None
    assert record.summary.metric.name == metric
    found = json.loads((whole / "sections.json").read_text())["sections"]
    assert titles <= {one["title"] for one in found}
    if recipe != "text/copy":
        known = read_language_model(whole)
        written = generate(
            known.model, known.vocabulary.encode("1 ")[None], 5, generator=torch.Generator().manual_seed(0)
        )
        assert len(known.vocabulary.decode(written[0])) <= 5
        assert record.summary.metric.last < record.summary.metric.start

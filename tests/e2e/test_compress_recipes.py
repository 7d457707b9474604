"""Deep compression by the command line, tiny: three stages, taken up in any of them to the same bits, and what is left."""

import json
import os
import signal

import pytest
from safetensors.torch import load_file

from featherlight.recipes.compress import experiment as module
from featherlight.recipes.compress.files import FEATHER

TINY = (
    "classify.data=digits",
    "classify.valid_fraction=0.3",
    "classify.epochs=2",
    "classify.evaluations=2",
    "classify.device=cpu",
    "prune.epochs=3",
    "prune.sparsity=0.8",
    "prune.updates=5",
    "share.epochs=3",
    "share.updates=4",
    "share.penalty=0.01",
)
COMMAND = ("run", "compress/lenet300", *[part for change in TINY for part in ("--set", change)])


def test_a_network_is_pruned_shared_and_written_and_taken_up_to_the_same_bits(run, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*COMMAND, "--out", whole)
    assert done.code == 0, done.err
    model = load_file(whole / "model" / "model.safetensors")
    weights = {name: tensor for name, tensor in model.items() if name.endswith("weight")}
    kept = sum(int((tensor != 0).sum()) for tensor in weights.values())
    assert kept <= 0.2 * sum(tensor.numel() for tensor in weights.values()) + 1
    assert all(len(tensor[tensor != 0].unique()) <= 10 for tensor in weights.values())
    assert all((tensor.bfloat16().float() == tensor).all() for tensor in model.values())
    file = whole / "model" / FEATHER
    dense = 4 * sum(tensor.numel() for tensor in model.values())
    assert 0 < file.stat().st_size < dense / 8
    (section,) = [
        one for one in json.loads((whole / "sections.json").read_text())["sections"] if one["title"] == "Compression"
    ]
    assert f"{file.stat().st_size:,} bytes" in section["text"]
    real, seen = module._Compression._batch, []

    def interrupting(self, step, meter):
        seen.append(step)
        if len(seen) == 40:  # in the last stage, while codes are chosen anew
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    with monkeypatch.context() as patch:
        patch.setattr(module._Compression, "_batch", interrupting)
        assert run(*COMMAND, "--out", parts).code == 130
    state = json.loads((parts / "summary.json").read_text())
    assert state["stopped"] == "interrupted"
    assert run(*COMMAND, "--out", parts).code == 0
    again = load_file(parts / "model" / "model.safetensors")
    assert all((model[name] == again[name]).all() for name in model)
    assert file.read_bytes() == (parts / "model" / FEATHER).read_bytes()
    from_run = run(*COMMAND, "--set", f"classify.initial={whole}", "--out", tmp_path / "again", "--dry-run")
    assert from_run.code == 0, from_run.err

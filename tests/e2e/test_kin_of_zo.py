"""`featherlight finetune --method fzoo|lozo|conmezo|agzo`: interrupted, taken up again, and replayed to the same bits."""

import os
import signal

import pytest

from featherlight.recipes.finetune import experiment as module
from featherlight.recipes.methods import METHODS
from tests.e2e.test_finetune import all_weights, renamed, same

COMMON = ("--text", "sentence", "--label", "feeling", "--steps", 6, "--batch", 8)
KIN = ("fzoo", "lozo", "conmezo", "agzo")


@pytest.mark.parametrize("method", KIN)
def test_an_interrupted_run_ends_in_the_same_bits_and_replays(run, models, reviews, tmp_path, method, monkeypatch):
    asked = ("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--method", method)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*asked, "--out", whole)
    assert done.code == 0, done.err
    real = module._Finetune.objective

    def interrupting(self, number, meter):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number, meter)

    with monkeypatch.context() as patched:
        patched.setattr(module._Finetune, "objective", interrupting)
        assert run(*asked, "--out", parts).code == 130
    resumed = run("finetune", "--resume", parts)
    assert resumed.code == 0, resumed.err
    assert same(all_weights(whole / "model"), all_weights(parts / "model"))
    assert (whole / "journal").exists() == METHODS[method].replayable
    if METHODS[method].replayable:
        replayed = run("replay", models / "bert", whole / "journal", "--out", tmp_path / "again")
        assert replayed.code == 0, replayed.err
        assert same(all_weights(whole / "model"), renamed(all_weights(tmp_path / "again"), "again"))


def test_weights_held_in_eight_bits_are_trained(run, models, reviews, tmp_path):
    asked = ("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--base", "int8")
    found = {}
    for method, lr in ((KIN[0], 1e-9), *((method, 0.05) for method in KIN[:3])):
        out = tmp_path / f"{method}-{lr}"
        done = run(*asked, "--method", method, "--lr", lr, "--out", out)
        assert done.code == 0, done.err
        found[method, lr] = all_weights(out / "model")
    still = found.pop((KIN[0], 1e-9))
    assert not any(same(trained, still) for trained in found.values())

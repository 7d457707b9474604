"""Short runs of the digits, for tests of `featherlight run`."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.classify import experiment as module

DIGITS = (
    *("run", "classify/digits", "--set", "epochs=2", "--set", "evaluations=3", "--set", "batch=128"),
    *("--set", "channels=[8,16]"),
)
STEPS = 24


def weights(run_directory: Path) -> dict[str, torch.Tensor]:
    return load_file(run_directory / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Sends Ctrl-C during a step."""
    real = module._Classifier.objective

    def objective(self, step, meter):
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    monkeypatch.setattr(module._Classifier, "objective", objective)

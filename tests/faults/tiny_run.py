"""A run of a fraction of a second, for campaigns that kill thousands: with a journal (`zo`), with saves (`adamw`), or a rival."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, Objective, seeded_random
from featherlight.optim import ZerothOrderSGD
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.config import to_toml
from featherlight.recipes.runner import is_done, run_one
from featherlight.trainer import (
    Budget,
    Display,
    Evaluation,
    Experiment,
    Replay,
    RunDirectory,
    Stage,
    Workspace,
    file_digest,
    read_journal,
    read_progress,
    weights_digest,
)
from featherlight.trainer.saves import newest_save
from tests.faults import rival

STEPS = 24
_WIDTH = 4


def squared_error(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Of each row, (B,)."""
    return (model(batch["x"]) - batch["y"]).square().mean(-1)


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """A regression of a few numbers."""

    method: Literal["zo", "adamw", "trainer"] = "zo"
    steps: int = STEPS
    data_seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def experiment(self, workspace: Workspace) -> Experiment:
        """The model, its data and one stage."""
        with seeded_random(self.seed, torch.device("cpu")):
            model = nn.Sequential(nn.Linear(_WIDTH, 6), nn.Tanh(), nn.Linear(6, 2)).to(getattr(torch, self.dtype))
        digests = {"base": weights_digest(dict(model.named_parameters())), "data": f"seed {self.data_seed}"}

        def objective(step: int, meter: Meter) -> Objective:
            draw = torch.Generator().manual_seed(1000 * self.data_seed + step)
            x = torch.randn(5, _WIDTH, generator=draw).to(getattr(torch, self.dtype))
            return BatchObjective(model, {"x": x, "y": x[:, :2].sin()}, squared_error, meter=meter)

        def evaluate() -> Sequence[Evaluation]:
            return [Evaluation(values={"error": objective(10**6, Meter()).value().item()})]

        def optimizer(journal: Any, meter: Meter) -> torch.optim.Optimizer:
            if self.method == "zo":
                return ZerothOrderSGD(model, 1e-2, journal=journal, meter=meter, seed=self.seed)
            return torch.optim.AdamW(model.parameters(), lr=1e-2)

        def write_model(path: Path) -> None:
            path.mkdir(exist_ok=True)
            save_file(model.state_dict(), path / "model.safetensors")

        return Experiment(
            model=model,
            stages=[
                Stage(
                    optimizer=optimizer, objective=objective, budget=Budget(steps=self.steps), measured=lambda _: False
                )
            ],
            evaluate=evaluate,
            title="tiny",
            lower_is_better=True,
            evaluations=6,
            write_model=write_model,
            replay=Replay(header={**digests, "seed": self.seed}, fitted=dict) if self.method == "zo" else None,
            origin=digests,
        )


def make() -> TinyConfig:
    """A tiny run."""
    return TinyConfig()


def go(path: Path, config: TinyConfig, acknowledged: int | None = None) -> None:
    """Runs or takes up; each step that is done is told to a file descriptor, 4 bytes each."""
    if config.method == "trainer":
        rival.go(path, config, acknowledged)
        return
    recipe = find_recipe("tests.faults.tiny_run:make")

    def tell(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and acknowledged is not None:
            os.write(acknowledged, int(line["step"]).to_bytes(4, "little"))

    run_one(recipe, config, path, command="tiny", display=Display(), listeners=lambda _: [tell])


def is_over(path: Path, config: TinyConfig) -> bool:
    """Whether the run is finished."""
    return rival.is_over(path) if config.method == "trainer" else is_done(path, _asked(config))


def steps_on_disk(path: Path, config: TinyConfig) -> int:
    """From which step the run would go on."""
    if config.method == "zo":
        journal = RunDirectory(path=path).journal
        return len(read_journal(journal).records) if journal.is_file() else 0
    if config.method == "trainer":
        return save[0] if (save := rival.newest_save(path)) else 0
    save = saved_weights(path, config)
    return 0 if save is None else read_progress(save)["step"]


def saved_weights(path: Path, config: TinyConfig) -> Path | None:
    """The file with the weights of the save that the run would go on from."""
    if config.method == "trainer":
        return save[1] if (save := rival.newest_save(path)) else None
    return newest_save(RunDirectory(path=path).saves, lambda sentence: None)


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Attributes:
        weights: SHA-256 of the trained model's file.
        losses: by step. A kill between a step and its line of the metrics leaves that line out.
    """

    weights: str
    losses: Mapping[int, float]

    def is_as(self, whole: "Result") -> bool:
        """Whether an undisturbed run came to the same bits and measured the same."""
        return self.weights == whole.weights and self.losses.items() <= whole.losses.items()


def result(path: Path) -> Result:
    """What a finished run came to."""
    if rival.is_over(path):
        return Result(weights=rival.weights(path), losses={})
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return Result(
        weights=file_digest(path / "model" / "model.safetensors"),
        losses={line["step"]: line["loss"] for line in lines if line["kind"] == "step"},
    )


def _asked(config: TinyConfig) -> str:
    return to_toml(config, recipe="tests.faults.tiny_run:make")

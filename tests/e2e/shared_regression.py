"""A recipe for runs of several processes: a regression whose last batch is odd, with tied, frozen and unused weights.

It has no BatchNorm, whose statistics would be those of each process's own rows, and no dropout.
"""

import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, ClipGradient, Objective, finite, seeded_random
from featherlight.optim import LOZO, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import Journal
from featherlight.trainer import Budget, Evaluation, Experiment, Replay, Stage, Workspace, weights_digest

ROWS, BATCH, WIDTH = 57, 10, 6
_EPS = 0.1
"""Of AdamW: of the size of gradients, so that those of the wrong scale show."""


class Net(nn.Module):
    """Blocks with LayerNorm between a linear layer and the same one again."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 11), nn.Tanh(), nn.Linear(11, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(3)
        )
        self.leave = nn.Linear(WIDTH, WIDTH)
        self.leave.weight = self.enter.weight
        self.unused = nn.Linear(2, 2)
        self.blocks[1].requires_grad_(False)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = self.enter(x_BD)
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        return self.leave(x_BD)


def squared_error(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Of each row, (B,)."""
    return (model(batch["x"]) - batch["y"]).square().mean(-1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Args: `happen` is what goes wrong on the last process at batch 7: "signal", "not finite", "error", "alter" or "kill"; or on
    the first one: "no room"."""

    dtype: Literal["float32", "float64"] = "float32"
    steps: int | None = 18
    minutes: float | None = None
    micro_batch: int | None = None
    clip: float | None = None
    happen: str | None = None
    weights_differ: bool = False
    method: Literal["adamw", "zo", "lozo"] = "adamw"
    digest_every: int = 4
    pause: float = 0.0
    train_unused: bool = False
    seed: int = 0

    def experiment(self, workspace: Workspace) -> Experiment:
        regression = _Regression(self)
        stage = Stage(
            optimizer=regression.optimizer,
            digest_every=self.digest_every,
            objective=regression.objective,
            budget=Budget(steps=self.steps, minutes=self.minutes),
            schedule=lambda progress: 1 - progress / 2,
        )
        return Experiment(
            model=regression.model,
            stages=[stage],
            evaluate=regression.evaluate,
            title="a regression",
            lower_is_better=True,
            evaluations=3,
            write_model=regression.write_model,
            replay=None if self.method == "adamw" else Replay(header=regression.header(), fitted=dict),
        )


def make() -> Config:
    """A regression."""
    return Config()


def _fill_disk_once() -> None:
    """The next time that somebody asks, the disk has no room."""
    before = shutil.disk_usage

    def ask(path: Path) -> Any:
        shutil.disk_usage = before
        return before(path)._replace(free=0)

    shutil.disk_usage = ask


class _Regression:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.rank = int(os.environ.get("RANK", 0))
        is_last = self.rank == int(os.environ.get("WORLD_SIZE", 1)) - 1
        self.happen = config.happen if (self.rank == 0 if config.happen == "no room" else is_last) else None
        dtype = getattr(torch, config.dtype)
        with seeded_random(config.seed + config.weights_differ * self.rank, torch.device("cpu")):
            self.model = Net().to(dtype)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.y = self.x.sin() @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64).to(dtype)

    def optimizer(self, journal: Journal | None, meter: Meter) -> torch.optim.Optimizer:
        if self.config.method == "adamw":
            return torch.optim.AdamW(self.model.parameters(), lr=3e-3, eps=_EPS)
        unused = set() if self.config.train_unused else set(self.model.unused.parameters())
        trained = [one for one in self.model.parameters() if one.requires_grad and one not in unused]
        given = {"params": trained, "journal": journal, "meter": meter, "directions": RankOneSigns(4)}
        made = {"zo": ZerothOrderSGD, "lozo": LOZO}[self.config.method]
        return made(self.model, 1e-2, normalize=SpreadNormalized(), **given)

    def header(self) -> dict[str, Any]:
        base = weights_digest(dict([*self.model.named_parameters(), *self.model.named_buffers()]))
        return {"base": base, "data": "rows", "seed": self.config.seed}

    def objective(self, step: int, meter: Meter) -> Objective:
        time.sleep(self.config.pause)
        start = step % 6 * BATCH
        rows = range(start, min(start + BATCH, ROWS))
        x = self.x[rows.start : rows.stop].clone()
        if step == 7 or (step > 7 and self.happen == "alter"):
            self._happen(x)
        objective: Any = BatchObjective(
            self.model,
            {"x": x, "y": self.y[rows.start : rows.stop]},
            finite(squared_error, step, rows),
            micro_batch=self.config.micro_batch,
            meter=meter,
        )
        clip = self.config.clip
        return objective if clip is None else ClipGradient(objective, self.model.parameters(), clip)

    def _happen(self, x: Tensor) -> None:
        if self.happen == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        elif self.happen == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.happen == "no room":
            _fill_disk_once()
        elif self.happen == "alter":
            self.happen = None
            with torch.no_grad():
                self.model.leave.weight[0, 0] += 1
        elif self.happen == "error":
            raise ValueError(f"process {self.rank} cannot read its rows.")
        elif self.happen == "not finite":
            x[-1] = float("nan")

    @torch.no_grad()
    def evaluate(self) -> Sequence[Evaluation]:
        error = float(squared_error(self.model, {"x": self.x, "y": self.y}).mean())
        return [Evaluation(values={"mse": error}, loss=error)]

    def write_model(self, path: Path) -> None:
        path.mkdir(parents=True)
        tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        assert self.model.leave.weight is self.model.enter.weight
        save_file(tensors, path / "model.safetensors")

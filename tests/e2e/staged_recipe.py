"""A recipe of two stages: the first trains what the second freezes, so a save of the second must hold both.

The second is put through a transform that hides more and more of a weight, by what it counted in a buffer.
"""

import os
import signal
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from featherlight.objective import BatchObjective
from featherlight.trainer import Budget, Evaluation, Experiment, Stage


def loss(model, batch):
    return (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean(1)


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, weight):
        return weight * (torch.arange(weight.shape[1]) >= self.updates / 3)


class Hide:
    def prepare(self, model):
        parametrize.register_parametrization(model[1], "weight", Mask())

    def update(self, model, progress):
        assert 0 <= progress < 1, progress
        model[1].parametrizations.weight[0].updates += 1

    def convert(self, model):
        parametrize.remove_parametrizations(model[1], "weight")


@dataclass(frozen=True)
class Two:
    seed: int = 0

    def experiment(self, workspace):
        generator = torch.Generator().manual_seed(self.seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=generator)

        def stage(number):
            def prepare():
                for index, part in enumerate(model):
                    part.requires_grad_(index == number)

            def objective(step, meter):
                assert step < 4 + 4 * number, "never asked for a step beyond the budget"
                if 4 * number + step + 1 == int(os.environ.get("INTERRUPT_AT", 0)):
                    os.kill(os.getpid(), signal.SIGINT)
                x = torch.randn(8, 3, generator=torch.Generator().manual_seed(100 * number + step))
                return BatchObjective(model, {"x": x}, loss, meter=meter)

            return Stage(
                name=f"part {number}",
                prepare=prepare,
                objective=objective,
                budget=Budget(steps=4 + 4 * number),
                transforms=[Hide()] * number,
                optimizer=lambda journal, meter: torch.optim.AdamW(model[number].parameters(), lr=0.1),
            )

        def evaluate():
            x = torch.eye(3)
            return [Evaluation(values={"error": float(loss(model, {"x": x}).mean())})]

        def write_model(path):
            path.mkdir()
            save_file(model.state_dict(), path / "w.safetensors")

        return Experiment(
            model=model,
            stages=[stage(0), stage(1)],
            evaluate=evaluate,
            title="two parts",
            lower_is_better=True,
            write_model=write_model,
        )


def two():
    return Two()

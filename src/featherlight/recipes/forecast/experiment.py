"""A forecaster, ready to run: records, network, loss, and what the report shows of it.

Legend of shapes: B sequences, T samples, F inputs, K outputs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.nn.models import (
    BatchNorm,
    GroupNorm,
    LayerNorm,
    LstmCell,
    NoNorm,
    PlainCell,
    RecurrentForecaster,
    RecurrentShape,
    default_device,
)
from featherlight.objective import BatchObjective, ClipGradient, Objective, finite, seeded_random
from featherlight.recipes.forecast.config import ForecastConfig
from featherlight.recipes.forecast.linear import LinearModel, fit_linear, root_mean_square
from featherlight.recipes.forecast.records import Record, Records, load_records
from featherlight.recipes.methods import METHODS, Setup
from featherlight.report import LineChart, Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace, weights_digest
from featherlight.trainer.loop import Budget

_NORMS = {None: NoNorm(), "batch": BatchNorm(), "layer": LayerNorm(), "group": GroupNorm()}
_CELLS = {"lstm": LstmCell(), "rnn": PlainCell()}
_SHOWN = 400


def build_experiment(config: ForecastConfig, workspace: Workspace) -> Experiment:
    """Reads the records and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    known = [name for name, method in METHODS.items() if not method.replayable]
    if config.method not in known:
        raise ValueError(f"`method` must be one of {', '.join(known)} for forecasters; got {config.method!r}.")
    records = load_records(config.data)
    if (least := min(map(len, (records.train, records.valid, records.test)))) < config.window:
        raise ValueError(
            f"a record of {config.data} has {least} samples, fewer than `window`, {config.window}. Lower it."
        )
    given, method = config.optimizer, METHODS[config.method]
    lr = method.default_lr if given.lr is None else given.lr
    schedule = given.schedule if method.scheduled else "constant"
    resolved = replace(config, optimizer=replace(given, lr=lr, schedule=schedule))
    forecaster = _Forecaster(resolved, records)
    return Experiment(
        model=forecaster.model,
        stages=[
            Stage(
                optimizer=lambda journal, meter: forecaster.optimizer(meter),
                objective=forecaster.objective,
                budget=Budget(steps=config.steps),
                schedule=SCHEDULES[schedule],
                training=method.dropout,
            )
        ],
        evaluate=forecaster.evaluate,
        title=f"{config.kind} on {Path(config.data).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        method=config.method,
        facts=forecaster.facts(),
        write_model=forecaster.write,
        sections=forecaster.sections,
        origin={"data": weights_digest({"inputs": records.train.inputs, "outputs": records.train.outputs})},
        config=resolved,
    )


class _Forecaster:
    """Network and records, and what the run procedure asks of them. The network sees standardized values."""

    def __init__(self, config: ForecastConfig, records: Records) -> None:
        self.config = config
        self.records = records
        self.device = default_device(config.device)
        train = records.train
        self.shift = (train.inputs.mean(0), train.outputs.mean(0))
        self.scale = tuple(one.std(0).clamp(min=1e-12) for one in (train.inputs, train.outputs))
        shape = RecurrentShape(
            width=config.width,
            num_layers=config.layers,
            cell=_CELLS[config.kind],
            norm=_NORMS[config.norm],
            dropout=config.dropout,
        )
        self._sizes = {"num_outputs": train.outputs.shape[1], "num_features": train.inputs.shape[1]}
        with seeded_random(config.seed, torch.device("cpu")):
            self.model = RecurrentForecaster(**self._sizes, shape=shape)
        self.model.to(self.device)
        self._inputs_TF = ((train.inputs - self.shift[0]) / self.scale[0]).to(self.device)
        self._outputs_TK = ((train.outputs - self.shift[1]) / self.scale[1]).to(self.device)

    def optimizer(self, meter: Meter) -> Optimizer:
        config = self.config
        assert config.optimizer.lr is not None, "the config is resolved"
        setup = Setup(
            model=self.model,
            head=self.model.head,
            lr=config.optimizer.lr,
            settings=config.optimizer,
            batch=config.batch,
            seed=config.seed,
            journal=None,
            meter=meter,
        )
        return METHODS[config.method].build(setup)

    def objective(self, step: int, meter: Meter) -> Objective:
        config = self.config
        draw = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        starts = draw.integers(0, len(self._inputs_TF) - config.window + 1, config.batch)
        rows_BT = (torch.from_numpy(starts)[:, None] + torch.arange(config.window)).to(self.device)
        objective = BatchObjective(
            self.model,
            {"inputs": self._inputs_TF[rows_BT], "outputs": self._outputs_TK[rows_BT]},
            finite(self._losses, step, starts.tolist()),
            dropout_seed=config.seed + step,
            meter=meter,
        )
        clip = config.optimizer.clip
        return objective if clip is None else ClipGradient(objective, self.model.parameters(), clip)

    def _losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        error_BTK = model(batch["inputs"]) - batch["outputs"]
        return error_BTK[:, self.config.washout :].square().mean((1, 2))

    @torch.no_grad()
    def simulate(self, record: Record) -> Float[Tensor, "T K"]:
        """Outputs of a record from its inputs alone."""
        inputs_1TF = ((record.inputs - self.shift[0]) / self.scale[0])[None].to(self.device)
        return self.model(inputs_1TF)[0].cpu() * self.scale[1] + self.shift[1]

    def evaluate(self) -> Sequence[Evaluation]:
        error = root_mean_square(self.simulate(self.records.valid), self.records.valid, self.config.washout)
        return [Evaluation(values={"rms error": error})]

    @cached_property
    def linear(self) -> LinearModel:
        """The rival."""
        return fit_linear(self.records, washout=self.config.washout)

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        return {
            "data": self.config.data,
            "training samples": f"{len(self.records.train):,}",
            "network": self.config.kind,
            "parameters": f"{sum(parameter.numel() for parameter in self.model.parameters()):,}",
            "learning rate": f"{self.config.optimizer.lr:g}",
        }

    def write(self, path: Path) -> None:
        path.mkdir(parents=True)
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        save_file(weights, path / "model.safetensors")
        names = ("kind", "width", "layers", "norm")
        about: dict[str, Any] = {name: getattr(self.config, name) for name in names} | self._sizes
        about |= {"shift": [one.tolist() for one in self.shift], "scale": [one.tolist() for one in self.scale]}
        (path / "config.json").write_text(json.dumps({"architecture": "RecurrentForecaster"} | about, indent=1) + "\n")

    def sections(self) -> Sequence[Section]:
        """Errors beside those of the linear rival, and a stretch of the test record."""
        training = self.model.training
        self.model.eval()
        order = f"linear, {self.linear.past} past outputs and {self.linear.inputs} inputs"
        washout, rows = self.config.washout, []
        told = {}
        for part, record in (("validation", self.records.valid), ("test", self.records.test)):
            told = {self.config.kind: self.simulate(record), order: self.linear.simulate(record.inputs)}
            spread = float(record.outputs[washout:].double().std(correction=0))
            for name, outputs in told.items():
                error = root_mean_square(outputs, record, washout)
                rows.append((part, name, error, error / max(spread, 1e-300)))
        self.model.train(training)
        return [
            Section(
                title="Beside a linear model",
                text="Outputs are told from the inputs alone. The order of the linear model is the best of 25 on the validation "
                "record.",
                blocks=(
                    Table(columns=("record", "model", "rms error", "share of the spread"), rows=tuple(rows)),
                    self._chart(told),
                ),
            )
        ]

    def _chart(self, told: Mapping[str, Tensor]) -> LineChart:
        """The last samples of the test record."""
        record = self.records.test
        places = list(range(max(0, len(record) - _SHOWN), len(record)))
        lines = {"measured": record.outputs, **told}
        return LineChart(
            x_label="sample",
            y_label="output",
            lines={name: (places, values[places[0] :, 0].tolist()) for name, values in lines.items()},
            caption="The end of the test record; of several outputs, the first.",
        )

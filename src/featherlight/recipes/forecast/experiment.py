"""A forecaster, ready to run: records, network, loss, and what the report shows of it.

Legend of shapes: B sequences, T samples, F inputs, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.nn.models import default_device
from featherlight.objective import BatchObjective, Objective, finite
from featherlight.recipes.by_gradients import build_optimizer, clipped, settled
from featherlight.recipes.forecast.config import ForecastConfig
from featherlight.recipes.forecast.linear import LinearModel, fit_linear, root_mean_square
from featherlight.recipes.forecast.network import Forecaster, build_forecaster, write_forecaster
from featherlight.recipes.forecast.records import Records, load_records
from featherlight.recipes.methods import METHODS
from featherlight.report import LineChart, Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace, weights_digest
from featherlight.trainer.loop import Budget

_SHOWN = 400


def build_experiment(config: ForecastConfig, workspace: Workspace) -> Experiment:
    """Reads the records and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    optimizer = settled(config, "forecasters")
    records = load_records(config.data)
    if (least := min(map(len, (records.train, records.valid, records.test)))) < config.window:
        raise ValueError(
            f"a record of {config.data} has {least} samples, fewer than `window`, {config.window}. Lower it."
        )
    resolved = replace(config, optimizer=optimizer)
    run = _Run(resolved, records)
    return Experiment(
        model=run.model,
        stages=[
            Stage(
                optimizer=lambda journal, meter: build_optimizer(
                    resolved, run.model, meter, head=run.model.network.head
                ),
                objective=run.objective,
                budget=Budget(steps=config.steps),
                schedule=SCHEDULES[optimizer.schedule],
                training=METHODS[config.method].dropout,
            )
        ],
        evaluate=run.evaluate,
        title=f"{config.kind} on {Path(config.data).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        method=config.method,
        facts=run.facts(),
        write_model=lambda path: write_forecaster(path, run.model),
        sections=run.sections,
        origin={"data": weights_digest({"inputs": records.train.inputs, "outputs": records.train.outputs})},
        config=resolved,
    )


class _Run:
    """Network and records, and what the run procedure asks of them."""

    def __init__(self, config: ForecastConfig, records: Records) -> None:
        self.config = config
        self.records = records
        self.device = default_device(config.device)
        self.model: Forecaster = build_forecaster(config, records.train).to(self.device)

    def objective(self, step: int, meter: Meter) -> Objective:
        config = self.config
        train = self.records.train
        draw = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        starts = draw.integers(0, len(train) - config.window + 1, config.batch)
        rows_BT = torch.from_numpy(starts)[:, None] + torch.arange(config.window)
        objective = BatchObjective(
            self.model,
            {"inputs": train.inputs[rows_BT].to(self.device), "outputs": train.outputs[rows_BT].to(self.device)},
            finite(self._losses, step, starts.tolist()),
            dropout_seed=config.seed + step,
            meter=meter,
        )
        return clipped(config, objective, self.model)

    def _losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        return self.model.relative_losses(batch["inputs"], batch["outputs"], washout=self.config.washout)

    def evaluate(self) -> Sequence[Evaluation]:
        error = root_mean_square(
            self.model.simulate(self.records.valid.inputs), self.records.valid, self.config.washout
        )
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

    def sections(self) -> Sequence[Section]:
        """Errors beside those of the linear rival, and a stretch of the test record."""
        training = self.model.training
        self.model.eval()
        order = f"linear, {self.linear.past} past outputs and {self.linear.inputs} inputs"
        washout, rows = self.config.washout, []
        told = {}
        for part, record in (("validation", self.records.valid), ("test", self.records.test)):
            told = {self.config.kind: self.model.simulate(record.inputs), order: self.linear.simulate(record.inputs)}
            spread = float(record.outputs[washout:].double().var(0, correction=0).mean().sqrt())
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

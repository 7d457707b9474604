"""An implicit model, ready to run: data, model, training, and how it is scored.

Legend of shapes: N rows, B rows of a batch, I inputs, Y outputs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from featherlight.data import IndexPermutation
from featherlight.meter import Meter
from featherlight.nn.implicit import ImplicitDifferentiation, ImplicitLayer, JacobianFree, StrictlyTriangular
from featherlight.nn.models import default_device
from featherlight.objective import BatchObjective, Objective, finite, seeded_random
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.implicit import data as sets
from featherlight.recipes.implicit import lift
from featherlight.recipes.implicit.blocks import Blocks
from featherlight.recipes.implicit.class_blocks import ClassBlocks, ClassSettings
from featherlight.recipes.implicit.config import ImplicitConfig
from featherlight.recipes.implicit.data import Learnable, Rows
from featherlight.recipes.implicit.growth import BlockByBlock
from featherlight.recipes.implicit.network import (
    ACTIVATIONS,
    WELL_POSED,
    GrowingModel,
    ImplicitModel,
    Units,
    write_model,
)
from featherlight.recipes.implicit.squared_blocks import SquaredBlocks, SquaredSettings
from featherlight.report import Section
from featherlight.solvers.hidden_layer import VariableProjection
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 4096


def build_experiment(config: ImplicitConfig, workspace: Workspace) -> Experiment:
    """Loads the data and builds the model.

    Raises:
        ValueError: bad data or choices.
    """
    workspace.display.say(f"loading {config.data}")
    data = load(config)
    digest = data.digest()
    run = ImplicitRun(config, data)
    return Experiment(
        model=run.model,
        stages=[run.stage()],
        evaluate=run.evaluate,
        title=f"{config.method} on {Path(config.data).name}",
        lower_is_better=not data.classes,
        evaluations=len(config.blocks) if config.method == "sequential" else config.evaluations,
        method=config.method,
        facts=run.facts(),
        write_model=lambda path: write_model(path, run.finished(), run.about()),
        sections=partial(_sections, run),
        origin={"data": digest},
        config=config,
    )


def load(config: ImplicitConfig) -> Learnable:
    """The data of a config; raises ValueError where there are none such."""
    if config.kind == "images":
        return sets.images(config.data, config.valid_fraction)
    if config.kind == "function":
        return sets.interpolation(config.data, num_points=config.points, seed=config.seed)
    return sets.tabular(
        config.data,
        target=config.target,
        split=config.split,
        valid_fraction=config.valid_fraction,
        seed=config.seed,
    )


def _sections(run: "ImplicitRun") -> Sequence[Section]:
    from featherlight.recipes.implicit.sections import sections

    return sections(run)


class ImplicitRun:
    """Model and data, and what the run procedure asks of them.

    Exact read-outs of numbers are computed in float64, which "mps" does not have; they run on the CPU there.

    Args:
        config: of the run.
        data: on the CPU.

    Attributes:
        config: as given.
        data: on the device of the config, in the dtype of the model.
        model: that is trained.
    """

    def __init__(self, config: ImplicitConfig, data: Learnable) -> None:
        self.config = config
        self._dtype = torch.float32 if data.classes or config.method != "sequential" else torch.float64
        device = default_device(config.device)
        if device.type == "mps" and self._dtype == torch.float64:
            device = torch.device("cpu")
        self.data = data.to(device, self._dtype)
        units = _units(data, self._dtype)
        with seeded_random(config.seed, torch.device("cpu")):
            self.model = self._model(units, data).to(device)
        self._sampler = IndexPermutation(len(data.train), config.seed)

    def _model(self, units: Units, data: Learnable) -> GrowingModel | ImplicitModel:
        config, num_inputs = self.config, data.train.inputs.shape[1] + 1
        activation = ACTIVATIONS[config.activation]
        if config.method == "sequential":
            lifted = lift.whole(num_inputs, dtype=self._dtype)
            if config.growth.directions is not None:
                generator = torch.Generator().manual_seed(config.seed)
                rows = torch.randperm(len(data.train), generator=generator)[: lift.ROWS]
                inputs = units.inward(data.train.inputs[rows])
                lifted = lift.whitened(inputs, config.growth.directions)
            return GrowingModel(lifted, config.blocks, data.num_outputs, activation, units)
        if config.method == "triangular":
            kind, gradient = StrictlyTriangular(block_sizes=config.blocks[::-1]), None
        else:
            kind = WELL_POSED[config.loop.well_posed]
            gradient = JacobianFree() if config.loop.gradient == "jacobian_free" else ImplicitDifferentiation()
        layer = ImplicitLayer(
            sum(config.blocks),
            num_inputs,
            data.num_outputs,
            activation=activation,
            gradient=gradient,
            well_posed=kind,
        )
        return ImplicitModel(layer, units)

    def stage(self) -> Stage:
        """All blocks in turn, or the usual loop."""
        loop = self.config.loop
        if self.config.method == "sequential":
            return Stage(
                name="blocks",
                optimizer=self._growing,
                objective=self._whole,
                budget=Budget(steps=len(self.config.blocks)),
                training=False,
                measured=lambda step: False,
            )
        return Stage(
            optimizer=self._adamw,
            objective=self._batch,
            budget=Budget(steps=loop.epochs * math.ceil(len(self.data.train) / loop.batch)),
            schedule=SCHEDULES["cosine"],
        )

    def _growing(self, journal: Journal | None, meter: Meter) -> Optimizer:
        assert isinstance(self.model, GrowingModel)
        config = self.config
        return BlockByBlock(
            self.model, self._blocks, self._valid_loss, seed=config.seed, patience=config.growth.patience
        )

    def _adamw(self, journal: Journal | None, meter: Meter) -> Optimizer:
        loop = self.config.loop
        return AdamW(self.model.parameters(), lr=loop.lr, weight_decay=loop.weight_decay, fused=True)

    def _blocks(self) -> Blocks:
        assert isinstance(self.model, GrowingModel)
        growth, train, units = self.config.growth, self.data.train, self.model.units
        features = units.inward(train.inputs) @ self.model.lift.mT
        activation = ACTIVATIONS[self.config.activation]
        if self.data.classes:
            settings = ClassSettings(
                activation=activation,
                ridge=growth.ridge,
                epochs=growth.epochs,
                later_epochs=growth.later_epochs,
                batch=growth.batch,
                lr=growth.lr,
                read_out_steps=growth.read_out_steps,
            )
            return ClassBlocks(features, train.targets, len(self.data.classes), settings)
        search = VariableProjection(
            decay=growth.decay, max_steps=growth.steps, curvature_rows=growth.curvature_rows, tolerance=1e-4
        )
        own = SquaredSettings(activation=activation, ridge=growth.ridge, search=search)
        return SquaredBlocks(features, (train.targets - units.out_shift) / units.out_scale, own)

    def _whole(self, step: int, meter: Meter) -> Objective:
        return self._of(self.data.train, step, meter, micro_batch=_EVALUATION_BATCH)

    def _batch(self, step: int, meter: Meter) -> Objective:
        count = min(self.config.loop.batch, len(self.data.train))
        rows = self._sampler.indices(step * count, count)
        return self._of(self.data.train.take(torch.tensor(rows, device=self.data.train.inputs.device)), step, meter)

    def _of(self, rows: Rows, step: int, meter: Meter, micro_batch: int | None = None) -> Objective:
        batch = {"inputs": rows.inputs, "targets": rows.targets}
        loss = finite(self._losses, step, range(len(rows)))
        return BatchObjective(self.model, batch, loss, micro_batch=micro_batch, meter=meter)

    def _losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each row: cross-entropy, or the squared error in units of the targets' spread."""
        outputs = model(batch["inputs"])
        if self.data.classes:
            return nn.functional.cross_entropy(outputs, batch["targets"], reduction="none")
        spread = self.model.units.out_scale
        return ((outputs - batch["targets"]) / spread).square().mean(-1).to(outputs.dtype)

    @torch.no_grad()
    def _valid_loss(self) -> float:
        return float(self._of(self.data.valid, 0, Meter(), micro_batch=_EVALUATION_BATCH).value())

    def evaluate(self) -> Sequence[Evaluation]:
        """Accuracy, or the root of the mean squared error, on the validation rows and on the test rows."""
        found = [self._score(self.data.valid, "valid")]
        return found if self.data.test is None else [*found, self._score(self.data.test, "test")]

    @torch.no_grad()
    def _score(self, rows: Rows, split: str) -> Evaluation:
        outputs = self.outputs(self.model, rows.inputs)
        loss = float(self._of(rows, 0, Meter(), micro_batch=_EVALUATION_BATCH).value())
        return Evaluation(values=self.values(outputs, rows.targets), loss=loss, split=split)

    def values(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The metric by name."""
        if self.data.classes:
            return {"accuracy": float((outputs.argmax(-1) == targets).double().mean())}
        return {"rmse": float((outputs - targets).double().square().mean().sqrt())}

    @torch.no_grad()
    def outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """(N, Y), some thousand rows at a time."""
        return torch.cat([model(part) for part in inputs.split(_EVALUATION_BATCH)])

    def finished(self) -> ImplicitModel:
        """The implicit model that was trained."""
        return self.model.finished() if isinstance(self.model, GrowingModel) else self.model

    def about(self) -> dict[str, object]:
        """What is written beside the weights."""
        return {
            "activation": self.config.activation,
            "well_posed": self.config.loop.well_posed,
            "classes": list(self.data.classes),
            "inputs": list(self.data.names),
        }

    def facts(self) -> Mapping[str, str]:
        """What is trained on what."""
        config, data = self.config, self.data
        blocks = " + ".join(map(str, config.blocks))
        return {
            "data": config.data,
            "rows": f"{len(data.train):,} to train on, {len(data.valid):,} to choose by"
            + ("" if data.test is None else f", {len(data.test):,} to report on"),
            "inputs": f"{data.train.inputs.shape[1]:,} and a constant",
            "states": f"{sum(config.blocks):,}" + ("" if config.method == "implicit" else f" in blocks of {blocks}"),
            "activation": config.activation,
            **({"learning rate": f"{config.loop.lr:g}"} if config.method != "sequential" else {}),
        }


def _units(data: Learnable, dtype: torch.dtype) -> Units:
    """Inputs and numbers to foretell with mean 0 and variance 1 on the training rows."""
    inputs, targets = data.train.inputs, data.train.targets
    shift, scale = torch.zeros(inputs.shape[1]), torch.ones(inputs.shape[1])
    if not data.is_even:
        shift, scale = inputs.mean(0), _spread(inputs)
    out_shift, out_scale = torch.zeros(data.num_outputs), torch.ones(data.num_outputs)
    if not data.classes:
        out_shift, out_scale = targets.mean(0), _spread(targets)
    return Units(*(one.to(dtype) for one in (shift, scale, out_shift, out_scale)))


def _spread(x: Tensor) -> Tensor:
    """The standard deviation of each column; 1 of one that is constant."""
    found = x.std(0, correction=0)
    return torch.where(found > 1e-12 * x.abs().amax(0).clamp(min=1e-300), found, torch.ones_like(found))

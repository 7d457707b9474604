"""A classifier for whole numbers, ready to run: a stage in float, one with everything rounded, and what the report shows.

Legend of shapes: B images, C channels.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.data import ImageSplits, IndexPermutation
from featherlight.recipes.by_gradients import build_optimizer
from featherlight.recipes.classify.experiment import build_experiment as build_classifier
from featherlight.recipes.classify.experiment import outputs
from featherlight.recipes.classify.splits import load_splits
from featherlight.recipes.int8.config import Int8Config
from featherlight.recipes.int8.sections import accuracy_of, sections_of
from featherlight.report import Section
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Workspace
from featherlight.trainer.loop import Budget
from featherlight.transforms.quantize import (
    Calibration,
    CalibrationRange,
    FakeQuantization,
    LearnedScale,
    LeastSquares,
    MinMax,
    MovingAverage,
    Percentile,
    Timetable,
    WeightGrid,
    calibrate,
    to_integer_program,
)
from featherlight.transforms.quantize.graph import FROZEN, QUANTIZES, quantized_graph
from featherlight.transforms.quantize.integer_program import IntegerProgram
from featherlight.transforms.quantize.program_file import FILE_NAME, write_program

_RANGES: dict[str, CalibrationRange] = {
    "min_max": MinMax(),
    "percentile": Percentile(),
    "least_squares": LeastSquares(),
}
_CALIBRATION_BATCH = 128
MEASURED = "measured"
"""Buffer with the accuracies in float and after calibration."""


def build_experiment(config: Int8Config, workspace: Workspace) -> Experiment:
    """Loads the images and builds the network.

    Raises:
        ValueError: bad data or choices, or a layer without an integer form.
    """
    classify = replace(config.classify, seed=config.seed)
    base = build_classifier(classify, workspace)
    splits = load_splits(classify).to(base.device)
    resolved = replace(config, classify=base.config)
    transform = Quantized(resolved, splits)
    transform.prepare(copy.deepcopy(base.model))  # what has no integer form is refused before anything is trained
    float_stage = base.stages[0]
    steps = config.steps or config.epochs * math.ceil(len(splits.train) / classify.batch)
    offset = float_stage.budget.steps or 0
    rounded = replace(
        float_stage,
        name="rounded",
        optimizer=lambda journal, meter: build_optimizer(transform.training, base.model, meter),
        objective=lambda step, meter: float_stage.objective(step + offset, meter),
        budget=Budget(steps=steps),
        schedule=SCHEDULES["cosine"],
        transforms=[transform],
        begin=lambda: None,
    )
    trains_float = classify.initial is None
    return replace(
        base,
        stages=[replace(float_stage, name="float"), rounded] if trains_float else [rounded],
        evaluate=lambda: transform.evaluate(base.model),
        title=f"{base.title.partition(' on ')[0]}, rounded, on {Path(classify.data).name}",
        facts={**base.facts, "whole numbers": _words(resolved)},
        write_model=lambda path: _write(base, transform, path),
        sections=lambda: transform.sections(),
        replay=None,
        config=resolved,
    )


class Quantized:
    """Fake quantization of a classifier, measured before and after: a transform.

    Args:
        config: with every choice made.
        splits: the images.

    Attributes:
        training: how the weights are moved while they are rounded.
        rounded: a copy of the model with its quantizers, made when it was converted; None before.
        program: the integer program, likewise; None where the model has none.
    """

    def __init__(self, config: Int8Config, splits: ImageSplits) -> None:
        assert splits.valid is not None, "`with_valid` has seen to it"
        self._config = config
        self._train, self._valid = splits.train, splits.valid
        self._held_out = splits.valid if splits.test is None else splits.test
        optimizer = replace(config.classify.optimizer, lr=config.lr, weight_decay=0.0, schedule="cosine")
        self.training = replace(config.classify, optimizer=optimizer)
        self.rounded: nn.Module | None = None
        self.program: IntegerProgram | None = None
        learned = config.weight_scales == "learned"
        self._inner = FakeQuantization(
            example=splits.train.floats(torch.arange(2, device=splits.train.labels.device)),
            weights=WeightGrid(bits=config.weight_bits, learned=learned, least_squares=config.weight_bits < 8),
            ranges=LearnedScale() if config.ranges == "learned" else MovingAverage(),
            timetable=Timetable(activations_after=config.activations_after, freeze_after=config.freeze_after),
            keep_float=config.keep_float,
        )

    def prepare(self, model: nn.Module) -> None:
        """Puts in the quantizers, with room for what is measured."""
        self._inner.prepare(model)
        graph = quantized_graph(model)
        graph.register_buffer(MEASURED, torch.full((2,), math.nan, dtype=torch.float64, device=graph.phase.device))

    def update(self, model: nn.Module, progress: float) -> None:
        """Before the first step ranges are calibrated, and the accuracy without them and with them is measured."""
        measured = quantized_graph(model).get_buffer(MEASURED)
        if torch.isnan(measured).any():
            training = model.training
            calibrate(model, Calibration(batches=self._calibration(), ranges=_RANGES[self._config.calibration]))
            model.eval()
            quantized_graph(model).phase.fill_(QUANTIZES)
            rounded = self._accuracy(model)
            forward = model.__dict__.pop("forward")
            measured.copy_(measured.new_tensor([self._accuracy(model), rounded]))
            model.forward = forward
            model.train(training)
        self._inner.update(model, progress)

    def convert(self, model: nn.Module) -> None:
        """Keeps the rounded model and its program, and leaves the plain one with its weights on their grids."""
        if torch.isnan(quantized_graph(model).get_buffer(MEASURED)).any():  # no step was taken
            self._inner.convert(model)
            return
        quantized_graph(model).phase.fill_(FROZEN)
        self.rounded = copy.deepcopy(model).eval()
        if self._config.weight_bits == 8 and not self._config.keep_float:
            self.program = to_integer_program(self.rounded)
        self._inner.convert(model)

    def evaluate(self, model: nn.Module) -> Sequence[Evaluation]:
        """The validation images, rounded as soon as the model is."""
        logits = outputs(self.rounded if self.rounded is not None else model, self._valid)
        loss = nn.functional.cross_entropy(logits, self._valid.labels)
        accuracy = (logits.argmax(-1) == self._valid.labels).float().mean()
        return [Evaluation(values={"accuracy": float(accuracy)}, loss=float(loss))]

    def sections(self) -> Sequence[Section]:
        """What rounding costs, and which ranges and weights came of it; nothing if the run ended before."""
        if self.rounded is None:
            return [Section(title="Whole numbers", text="The run ended before anything was rounded.")]
        before = quantized_graph(self.rounded).get_buffer(MEASURED).tolist()
        return sections_of(self.rounded, self.program, self._held_out, before)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        return accuracy_of(outputs(model, self._held_out), self._held_out)

    def _calibration(self) -> Sequence[Tensor]:
        count = min(self._config.calibration_images, len(self._train))
        rows = torch.tensor(IndexPermutation(len(self._train), self._config.seed).indices(0, count))
        return [self._train.floats(part.to(self._train.labels.device)) for part in rows.split(_CALIBRATION_BATCH)]


def _words(config: Int8Config) -> str:
    scales = "learned scales" if config.weight_scales == "learned" else "scales of the largest weight"
    kept = f", {', '.join(config.keep_float)} in float" if config.keep_float else ""
    return f"weights of {config.weight_bits} bits, {scales}, {config.ranges} ranges from {config.calibration}{kept}"


def _write(base: Any, transform: Quantized, path: Path) -> None:
    base.write_model(path)
    if transform.program is not None:
        write_program(path / FILE_NAME, transform.program)

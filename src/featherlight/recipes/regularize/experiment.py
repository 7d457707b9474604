"""A study, ready to run: one stage for each variant, all of the same images, and a table of what came of them.

Legend of shapes: N variants, E evaluations, B images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from featherlight.data import ImageSet, ImageSplits, IndexPermutation, load_images
from featherlight.meter import Meter
from featherlight.nn.models import default_device
from featherlight.objective import Batch, BatchObjective, Objective, finite, seeded_random
from featherlight.recipes.regularize.config import StudyConfig
from featherlight.recipes.regularize.variants import Study, Variant
from featherlight.report import Heatmap, LineChart, Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 500


def build_experiment(config: StudyConfig, make_study: Callable[[ImageSet], Study], workspace: Workspace) -> Experiment:
    """Loads the images and builds all networks.

    Raises:
        ValueError: bad data or choices.
    """
    workspace.display.say(f"loading {config.data}")
    splits = load_images(config.data).with_valid(config.valid_fraction)
    if config.images is not None and config.images < len(splits.train):
        chosen = torch.tensor(IndexPermutation(len(splits.train), 0).indices(0, config.images))
        splits = ImageSplits(train=splits.train.take(chosen), valid=splits.valid, test=splits.test)
    study = make_study(splits.train)
    digest = splits.train.digest()
    device = default_device(config.device)
    run = _Running(config, study, splits.to(device))
    run.model.to(device)
    return Experiment(
        model=run.model,
        stages=[run.stage(number) for number in range(len(study.variants))],
        evaluate=run.evaluate,
        title=f"{study.title} on {Path(config.data).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        facts=run.facts(),
        sections=run.sections,
        origin={"data": digest},
    )


class Variants(nn.Module):
    """The networks of all variants, and what was measured of each on the way.

    Attributes:
        networks: one for each variant.
        curve_NE2: images seen and validation error; NaN where nothing was measured yet.
        seen_N: images that steps were begun on.
    """

    curve_NE2: Tensor
    seen_N: Tensor

    def __init__(self, networks: Sequence[nn.Module], evaluations: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("curve_NE2", torch.full((len(networks), evaluations + 2, 2), math.nan))
        self.register_buffer("seen_N", torch.zeros(len(networks), dtype=torch.int64))

    def note(self, number: int, error: float) -> None:
        """Keeps a measurement of a variant; one for each number of images seen."""
        seen = float(self.seen_N[number])
        if (self.curve_NE2[number, :, 0] >= seen).any():
            return
        free = self.curve_NE2[number, :, 0].isnan().nonzero().flatten()
        if len(free):
            self.curve_NE2[number, int(free[0])] = torch.tensor([seen, error], device=self.curve_NE2.device)


class _Running:
    """Networks and images, and what the run procedure asks of them."""

    def __init__(self, config: StudyConfig, study: Study, splits: ImageSplits) -> None:
        assert splits.valid is not None, "`with_valid` has seen to it"
        self.config, self.study = config, study
        self.train, self.valid = splits.train, splits.valid
        self.held_out = splits.valid if splits.test is None else splits.test
        self.held_out_name = "validation" if splits.test is None else "test"
        mean, std = splits.train.channel_statistics()
        self._mean, self._std = (torch.tensor(one).view(-1, 1, 1).to(self.train.images.device) for one in (mean, std))
        places = math.prod(splits.train.images.shape[2:])
        self._places = torch.randperm(places, generator=torch.Generator().manual_seed(config.seed))
        networks = []
        for variant in study.variants:
            with seeded_random(config.seed, torch.device("cpu")):
                networks.append(variant.model())
        self.model = Variants(networks, config.evaluations)
        self._sampler = IndexPermutation(len(self.train), config.seed)
        self._present = 0

    def stage(self, number: int) -> Stage:
        """The training of a variant."""
        variant = self.study.variants[number]
        network = self.model.networks[number]
        return Stage(
            name=f"{variant.row}, {variant.column}",
            optimizer=lambda journal, meter: variant.optimizer(list(network.parameters())),
            objective=partial(self._objective, number),
            budget=Budget(steps=self._steps(variant)),
            schedule=SCHEDULES[variant.schedule],
            prepare=partial(self._prepare, number),
        )

    def _steps(self, variant: Variant) -> int:
        return math.ceil(self.config.epochs * len(self.train) / variant.batch)

    def _prepare(self, number: int) -> None:
        self._present = number
        self.model.requires_grad_(False)
        self.model.networks[number].requires_grad_(True)

    def _objective(self, number: int, step: int, meter: Meter) -> Objective:
        variant = self.study.variants[number]
        rows = self._sampler.indices(step * variant.batch, variant.batch)
        seen_N = self.model.seen_N
        # A run that is taken up looks at step 0 again.
        seen_N[number] = max(int(seen_N[number]), (step + 1) * variant.batch)
        chosen = torch.tensor(rows, device=self.train.labels.device)
        batch = {
            "images": self._floats(self.train, chosen, self._has_shifted(number)),
            "labels": self.train.labels[chosen],
        }
        network = self.model.networks[number]

        def losses(model: nn.Module, part: Batch) -> Tensor:
            return nn.functional.cross_entropy(network(part["images"]), part["labels"], reduction="none")

        seed = (self.config.seed + step) % (1 << 63)
        return BatchObjective(self.model, batch, finite(losses, step, rows), dropout_seed=seed, meter=meter)

    def _has_shifted(self, number: int) -> bool:
        variant = self.study.variants[number]
        return variant.shifts and int(self.model.seen_N[number]) > self._steps(variant) * variant.batch / 2

    def _floats(self, images: ImageSet, rows: Tensor, shifted: bool) -> Tensor:
        """Images of mean 0 and variance 1, their pixels in other places where data have shifted."""
        x_BCHW = (images.floats(rows) - self._mean) / self._std
        return x_BCHW.flatten(2)[:, :, self._places].view(x_BCHW.shape) if shifted else x_BCHW

    def evaluate(self) -> Sequence[Evaluation]:
        """The validation error of the variant that is being trained."""
        error = self._error(self._present, self.valid, self._has_shifted(self._present))
        self.model.note(self._present, error)
        return [Evaluation(values={"error": error})]

    @torch.no_grad()
    def _error(self, number: int, images: ImageSet, shifted: bool) -> float:
        network = self.model.networks[number]
        parts = torch.arange(len(images), device=images.labels.device).split(_EVALUATION_BATCH)
        wrong = [network(self._floats(images, part, shifted)).argmax(-1) != images.labels[part] for part in parts]
        return float(torch.cat(wrong).double().mean())

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        return {
            "data": self.config.data,
            "training images": f"{len(self.train):,}, each seen {self.config.epochs:,} times by every variant",
            "variants": f"{len(self.study.variants)}",
        }

    def sections(self) -> Sequence[Section]:
        """The table of errors at the end, and the curves there."""
        training = self.model.training
        self.model.eval()
        errors = {
            (one.row, one.column): 100 * self._error(number, self.held_out, one.shifts)
            for number, one in enumerate(self.study.variants)
        }
        self.model.train(training)
        return [self._results(errors), self._curves()]

    def _results(self, errors: Mapping[tuple[str, str], float]) -> Section:
        rows = list(dict.fromkeys(row for row, _ in errors))
        columns = list(dict.fromkeys(column for _, column in errors))
        cells = [[errors[row, column] for column in columns] for row in rows]
        table = Table(
            columns=("", *columns),
            rows=tuple((row, *values) for row, values in zip(rows, cells, strict=True)),
            caption=f"Error on {len(self.held_out):,} {self.held_out_name} images at the end, in percent. One seed.",
        )
        heat = Heatmap(
            values=cells, row_labels=tuple(rows), column_labels=tuple(columns), caption="The same as shades."
        )
        return Section(title="Errors", text=self.study.text, blocks=(table, heat))

    def _curves(self) -> Section:
        charts = []
        curves = self.model.curve_NE2.cpu()
        for column in dict.fromkeys(one.column for one in self.study.variants):
            lines = {}
            for number, one in enumerate(self.study.variants):
                kept = curves[number][~curves[number, :, 0].isnan()]
                if one.column == column and len(kept):
                    lines[one.row] = (kept[:, 0].tolist(), (100 * kept[:, 1]).tolist())
            if lines:
                charts.append(
                    LineChart(x_label="images seen", y_label="validation error, %", lines=lines, caption=column)
                )
        return Section(title="On the way", blocks=tuple(charts))

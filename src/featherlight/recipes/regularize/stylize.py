"""A small network that turns photographs into pencil drawings, with each normalization in turn.

A drawing is the same whatever the contrast of its photograph, so a network must find that contrast out for each image by
itself. The target is computed, not drawn: bright on dark against the neighbourhood, in units of the photograph's own spread.

Legend of shapes: N variants, B photographs, C channels, H rows, W columns.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW

from featherlight.meter import Meter
from featherlight.nn.models import Norm, default_device
from featherlight.objective import Batch, BatchObjective, Objective, finite, seeded_random
from featherlight.recipes.regularize.config import StylizeConfig
from featherlight.recipes.regularize.variants import norm_of
from featherlight.recipes.vq.config import ImageVqConfig
from featherlight.recipes.vq.images import image_task
from featherlight.recipes.vq.task import Task
from featherlight.report import BarChart, Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

_NEIGHBOURHOOD = 7
_SHOWN = 6
_EVALUATION_BATCH = 50
_EPS = 1e-3


def build_experiment(config: StylizeConfig, workspace: Workspace) -> Experiment:
    """Reads the photographs and builds the networks.

    Raises:
        ValueError: there are no photographs, or they are smaller than the squares.
    """
    settings = ImageVqConfig(data=config.data, crop=config.side, valid_fraction=config.valid_fraction, seed=config.seed)
    run = _Stylizing(config, image_task(settings, workspace.display))
    return Experiment(
        model=run.model,
        stages=[run.stage(number) for number in range(len(config.norms))],
        evaluate=run.evaluate,
        title="drawings of photographs by normalization",
        lower_is_better=True,
        evaluations=config.evaluations,
        facts=run.facts(),
        sections=run.sections,
        origin={"data": run.task.digest},
    )


def drawing(x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """The target: grey values less the mean of their neighbourhood, over the standard deviation of these in the image."""
    grey = x_BCHW.mean(1, keepdim=True)
    local = grey - nn.functional.avg_pool2d(
        nn.functional.pad(grey, [_NEIGHBOURHOOD // 2] * 4, mode="replicate"), _NEIGHBOURHOOD, 1
    )
    return local / (local.std((2, 3), keepdim=True) + _EPS)


def with_contrast(x_BCHW: Float[Tensor, "B C H W"], lowest: float, generator: torch.Generator) -> Tensor:
    """Photographs drawn towards their mean, each by a factor of its own between `lowest` and 1, alike on a log scale."""
    share = torch.rand(len(x_BCHW), 1, 1, 1, generator=generator).to(x_BCHW.device)
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    return mean + (x_BCHW - mean) * torch.exp(math.log(lowest) * share)


class _Stylizing:
    """Networks and photographs, and what the run procedure asks of them."""

    def __init__(self, config: StylizeConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.device = default_device(config.device)
        networks = []
        for name in config.norms:
            with seeded_random(config.seed, torch.device("cpu")):
                networks.append(_network(task.channels, config.width, norm_of(name)))
        self.model = nn.ModuleList(networks).to(self.device)
        self._present = 0

    def stage(self, number: int) -> Stage:
        """The training of one network."""
        network = self.model[number]
        return Stage(
            name=f"{self.config.norms[number]} norm",
            optimizer=lambda journal, meter: AdamW(
                network.parameters(), lr=self.config.lr, weight_decay=0.0, fused=True
            ),
            objective=partial(self._objective, number),
            budget=Budget(steps=self.config.steps),
            schedule=SCHEDULES["cosine"],
            prepare=partial(self._prepare, number),
        )

    def _prepare(self, number: int) -> None:
        self._present = number
        self.model.requires_grad_(False)
        self.model[number].requires_grad_(True)

    def _objective(self, number: int, step: int, meter: Meter) -> Objective:
        start, count = step * self.config.batch, self.config.batch
        photographs = self.task.batch(start, count).to(self.device)
        generator = torch.Generator().manual_seed((self.config.seed + (step << 20)) % (1 << 63))
        batch = {"x": with_contrast(photographs, self.config.lowest_contrast, generator), "y": drawing(photographs)}
        network = self.model[number]

        def losses(model: nn.Module, part: Batch) -> Tensor:
            return (network(part["x"]) - part["y"]).square().mean((1, 2, 3))

        checked = finite(losses, step, self.task.rows(start, count))
        return BatchObjective(self.model, batch, checked, meter=meter)

    def evaluate(self) -> Sequence[Evaluation]:
        """The error of the network that is being trained, at mixed contrasts."""
        return [Evaluation(values={"error": self._error(self._present, self.task.valid, None)})]

    def _inputs(self, photographs: Tensor, contrast: float | None) -> Tensor:
        """At one contrast, or each at one of its own, the same for all networks."""
        generator = torch.Generator().manual_seed(self.config.seed)
        if contrast is None:
            return with_contrast(photographs, self.config.lowest_contrast, generator)
        mean = photographs.mean((1, 2, 3), keepdim=True)
        return mean + contrast * (photographs - mean)

    @torch.no_grad()
    def _error(self, number: int, photographs: Tensor, contrast: float | None) -> float:
        """The share of the drawings' variance that is not met."""
        pairs = zip(
            self._inputs(photographs, contrast).split(_EVALUATION_BATCH),
            drawing(photographs).split(_EVALUATION_BATCH),
            strict=True,
        )
        left = [(self.model[number](x.to(self.device)).cpu() - y).square().mean((1, 2, 3)) for x, y in pairs]
        return float(torch.cat(left).mean() / drawing(photographs).square().mean())

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        return {**self.task.facts, "contrasts": f"{self.config.lowest_contrast:g} to 1, of each photograph its own"}

    def sections(self) -> Sequence[Section]:
        """Errors by contrast, and some drawings."""
        training = self.model.training
        self.model.eval()
        try:
            return [self._errors(), self._drawings()]
        finally:
            self.model.train(training)

    def _errors(self) -> Section:
        held_out = self.task.valid if self.task.test is None else self.task.test
        contrasts = (None, 1.0, math.sqrt(self.config.lowest_contrast), self.config.lowest_contrast)
        cells = {
            f"{name} norm": [100 * self._error(number, held_out, contrast) for contrast in contrasts]
            for number, name in enumerate(self.config.norms)
        }
        columns = ("", "mixed contrasts", *(f"contrast {contrast:.2g}" for contrast in contrasts[1:] if contrast))
        table = Table(
            columns=columns,
            rows=tuple((name, *values) for name, values in cells.items()),
            caption=f"Share of the drawings' variance that is missed, in percent, on {len(held_out):,} photographs. One seed.",
        )
        bars = BarChart(labels=tuple(cells), values=tuple(values[0] for values in cells.values()), unit="%")
        return Section(title="Errors", text=(__doc__ or "").split("\n\n")[1].replace("\n", " "), blocks=(table, bars))

    @torch.no_grad()
    def _drawings(self) -> Section:
        photographs = (self.task.valid if self.task.test is None else self.task.test)[:_SHOWN]
        inputs = self._inputs(photographs, None)
        rows = [("photograph", inputs), ("target", _as_image(drawing(photographs), inputs))]
        for number, name in enumerate(self.config.norms):
            rows.append((f"{name} norm", _as_image(self.model[number](inputs.to(self.device)).cpu(), inputs)))
        return Section(
            title="Drawings", blocks=(self.task.show(rows, "Held-out photographs at contrasts of their own."),)
        )


def _network(channels: int, width: int, norm: Norm) -> nn.Sequential:
    """Three convolutions of 3x3 with norms, and one more."""
    layers: list[nn.Module] = []
    for before in (channels, width, width):
        layers += [nn.Conv2d(before, width, 3, padding=1, padding_mode="replicate"), norm.maps(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1, padding_mode="replicate"))


def _as_image(y_B1HW: Tensor, like: Tensor) -> Tensor:
    """Drawings as dark lines on white, with as many channels as the photographs."""
    return (0.5 - y_B1HW / 6).clamp(0, 1).expand(-1, like.shape[1], -1, -1)

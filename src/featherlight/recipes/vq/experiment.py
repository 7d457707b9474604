"""An autoencoder with a vector quantizer, ready to run: its stages, their losses, and how it is scored.

Legend of shapes: B examples, C channels, S sizes (rows and columns, or time).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from featherlight.meter import Meter
from featherlight.nn.models import Reconstruction, default_device
from featherlight.nn.vector_quantizers import CodebookUsage, Usage
from featherlight.objective import BatchObjective, ClipGradient, NonFiniteLossError, Objective, ObjectivesInTurn, finite
from featherlight.optim import OptimizersInTurn
from featherlight.optim.zeroth_order import Journal
from featherlight.recipes.vq.config import AdversaryConfig, ImageVqConfig, TrainingConfig
from featherlight.recipes.vq.losses import deception, hinge, squared_error
from featherlight.recipes.vq.networks import Blueprint, Networks, build_networks, train_only, write_networks
from featherlight.recipes.vq.task import Task
from featherlight.report import Section
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 128


def build_experiment(config: TrainingConfig, task: Task, workspace: Workspace) -> Experiment:
    """Builds the networks of a config for a task.

    Raises:
        ValueError: bad choices, or examples whose sizes do not fit them.
    """
    resolved = dataclasses.replace(config, quantizer=config.quantizer.resolved())
    adversary = config.adversary if isinstance(config, ImageVqConfig) else None
    networks = build_networks(_blueprint(resolved, task), adversary)
    run = Codec(resolved, task, networks, adversary)
    if config.prior is not None and networks.prior is None:
        workspace.display.say("note: no prior is trained, since codes are mixed in shares that cannot be counted")
    return Experiment(
        model=networks,
        stages=run.stages(),
        evaluate=run.evaluate,
        title=f"{config.quantizer.kind} on {Path(task.source).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        method=config.quantizer.kind,
        facts=run.facts(),
        write_model=lambda path: write_networks(path, networks),
        sections=partial(_sections_if_finite, run),
        origin={"data": task.digest},
        config=resolved,
    )


def _sections_if_finite(run: "Codec") -> Sequence[Section]:
    """None of a network that is no longer finite, of which nothing can be shown."""
    from featherlight.recipes.vq.sections import sections

    try:
        return sections(run)
    except NonFiniteLossError:
        return []


def _blueprint(config: TrainingConfig, task: Task) -> Blueprint:
    shift, scale = task.statistics()
    return Blueprint(
        quantizer=config.quantizer,
        network=config.network,
        prior=config.prior,
        channels=task.channels,
        sizes=task.sizes,
        shift=shift,
        scale=scale,
        low=task.low,
        high=task.high,
        seed=config.seed,
        about=task.about,
    )


class Codec:
    """Networks and data, and what the run procedure asks of them.

    Args:
        config: with the quantizer's defaults put in.
        task: the data.
        networks: on the CPU.
        adversary: settings of the discriminator, where there is one.

    Attributes:
        config: as given.
        task: as given.
        networks: on the device of the config.
        device: where they are.
        steps: of the first stage.
    """

    def __init__(
        self, config: TrainingConfig, task: Task, networks: Networks, adversary: AdversaryConfig | None
    ) -> None:
        self.config = config
        self.task = task
        self.networks = networks
        self.device = default_device(config.device)
        networks.to(self.device)
        self.steps = _steps(config, task, config.epochs, config.steps)
        self._adversary = adversary
        self._loss = task.loss(networks.autoencoder.scale**2)
        self._prior_began = False
        self._alone = _group_of_one()

    def stages(self) -> Sequence[Stage]:
        """The autoencoder, and then its prior if there is to be one."""
        first = Stage(
            name="autoencoder",
            optimizer=self._optimizer,
            objective=self._objective,
            budget=Budget(steps=self.steps),
            schedule=SCHEDULES[self.config.optimizer.schedule],
            prepare=partial(train_only, self.networks, ("autoencoder", "discriminator")),
        )
        settings = self.config.prior
        if self.networks.prior is None or settings is None:
            return [first]
        second = Stage(
            name="prior",
            optimizer=lambda journal, meter: AdamW(_trained(self.networks), lr=settings.lr, weight_decay=0.01),
            objective=self._prior_objective,
            budget=Budget(steps=_steps(self.config, self.task, settings.epochs, settings.steps)),
            schedule=SCHEDULES["cosine"],
            prepare=self._prepare_prior,
        )
        return [first, second]

    def _prepare_prior(self) -> None:
        train_only(self.networks, ("prior",))
        self._prior_began = True

    def _optimizer(self, journal: Journal | None, meter: Meter) -> Optimizer:
        settings = self.config.optimizer
        own = {id(p) for p in self.networks.autoencoder.quantizer.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
        trained = _trained(self.networks.autoencoder)
        groups = [
            {"params": [p for p in trained if id(p) not in own], "weight_decay": settings.weight_decay},
            {
                "params": [p for p in trained if id(p) in own],
                "lr": settings.lr * (self.config.quantizer.lr_scale or 1.0),
            },
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = AdamW(groups, lr=settings.lr, weight_decay=0.0, fused=True)
        if self.networks.discriminator is None or self._adversary is None:
            return optimizer
        rate = settings.lr * self._adversary.lr_scale
        parameters = self.networks.discriminator.parameters()
        return OptimizersInTurn([optimizer, AdamW(parameters, lr=rate, betas=(0.5, 0.9), weight_decay=0.0, fused=True)])

    def _objective(self, step: int, meter: Meter) -> Objective:
        batch, rows = self._batch(step)
        if self.networks.discriminator is None or self._adversary is None:
            loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = self._losses
            return self._of_batch(self.networks, batch, loss, step, rows, meter)
        began = step >= self._adversary.start * self.steps
        weight = self._adversary.weight if began else 0.0
        discriminator, fakes = self.networks.discriminator, []

        def maker() -> Objective:
            fakes.clear()
            loss = partial(self._deceiving_losses, weight=weight, fakes=fakes)
            return self._of_batch(self.networks.autoencoder, batch, loss, step, rows, meter)

        def judge() -> Objective:
            pairs = {"real": batch["x"], "fake": torch.cat(fakes)}
            return self._of_batch(discriminator, pairs, hinge, step, rows, meter)

        return ObjectivesInTurn([maker, judge])

    def _of_batch(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
        step: int,
        rows: Sequence[int],
        meter: Meter,
    ) -> Objective:
        objective = BatchObjective(
            model,
            batch,
            finite(loss, step, rows),
            micro_batch=self.config.micro_batch,
            dropout_seed=self.config.seed + step,
            meter=meter,
        )
        clip = self.config.optimizer.clip
        return objective if clip is None else ClipGradient(objective, model.parameters(), clip)

    def _batch(self, step: int) -> tuple[dict[str, Tensor], Sequence[int]]:
        count = min(self.config.batch, self.task.num_train)
        start = step * count
        return {"x": self.task.batch(start, count).to(self.device)}, self.task.rows(start, count)

    def _losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Of the autoencoder alone."""
        found: Reconstruction = self.networks.autoencoder(batch["x"])
        return self._loss(found.output, batch["x"]) + found.quantized.aux_loss

    def _deceiving_losses(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, weight: float, fakes: list[Tensor]
    ) -> Tensor:
        """Of the autoencoder, with what the discriminator says of its output, which is kept for it to learn from."""
        found: Reconstruction = model(batch["x"])
        fakes.append(found.output.detach())
        losses = self._loss(found.output, batch["x"]) + found.quantized.aux_loss
        if weight:
            assert self.networks.discriminator is not None
            losses = losses + weight * deception(self.networks.discriminator, found.output)
        return losses

    def _prior_objective(self, step: int, meter: Meter) -> Objective:
        self.networks.autoencoder.eval()
        batch, rows = self._batch(step)
        tokens = self.networks.tokens(batch["x"])
        return self._of_batch(self.networks, {"tokens": tokens}, _prior_losses, step, rows, meter)

    def evaluate(self) -> Sequence[Evaluation]:
        """Scores the validation data; the prior too, once it is trained."""
        score = self.score(self.task.valid)
        values = score.values(self)
        if self._prior_began:
            values |= {"prior bits a position": self._prior_bits(self.task.valid)}
        return [Evaluation(values=values, loss=score.loss)]

    @torch.no_grad()
    def score(self, examples: Tensor) -> "Score":
        """How well examples come back, and how the codes are used for it; the networks must be in evaluation mode."""
        blueprint, autoencoder = self.networks.blueprint, self.networks.autoencoder
        usage = CodebookUsage(
            blueprint.num_codes,
            dim=autoencoder.quantizer.dim,
            num_stages=blueprint.num_stages,
            bits_per_position=autoencoder.quantizer.bits_per_position,
            group=self._alone,
        )
        errors, losses = [], []
        for x, found in self.reconstructions(examples):
            usage.update(found.quantized.codes, latents=found.latents, values=found.quantized.values, channel_axis=1)
            errors.append(squared_error(self.networks.limited(found.output), x))
            losses.append(self._loss(found.output, x))
        mse, loss = float(torch.cat(errors).mean()), float(torch.cat(losses).mean())
        return Score(mse=mse, loss=loss, power=float(examples.square().mean()), usage=usage.compute(), counts=usage)

    @torch.no_grad()
    def reconstructions(self, examples: Tensor) -> Iterator[tuple[Tensor, Reconstruction]]:
        """Examples and what becomes of them, a bounded number at a time."""
        for part in examples.split(_EVALUATION_BATCH):
            x = part.to(self.device)
            yield x, self.networks.autoencoder(x)

    @torch.no_grad()
    def _prior_bits(self, examples: Tensor) -> float:
        """Mean negative log-likelihood of the codes of a position, in bits."""
        assert self.networks.prior is not None
        parts = [
            self.networks.prior.losses(self.networks.tokens(part.to(self.device)))
            for part in examples.split(_EVALUATION_BATCH)
        ]
        return float(torch.cat(parts).mean()) / math.log(2)

    def decibels(self, mse: float, power: float) -> float:
        """The squared error as the task's metric in decibels."""
        _, peak = self.task.decibels
        return 10 * math.log10((power if peak is None else peak**2) / max(mse, 1e-12))

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        autoencoder = self.networks.autoencoder
        sizes = {name: _size(module) for name, module in self.networks.named_children()}
        positions = "x".join(map(str, self.networks.blueprint.positions))
        options = ", ".join(f"{name} {value}" for name, value in self.config.quantizer.given().items())
        return {
            **self.task.facts,
            "quantizer": f"{self.config.quantizer.kind}: {options}",
            "positions": f"{positions}, {autoencoder.quantizer.bits_per_position:g} bits each",
            "parameters": ", ".join(f"{count:,} of the {name}" for name, count in sizes.items()),
            "learning rate": f"{self.config.optimizer.lr:g}",
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """How well examples come back.

    Attributes:
        mse: mean squared error, of outputs cut to the range of the examples.
        loss: the training loss without what the quantizer adds.
        power: mean square of the examples.
        usage: of the codes.
        counts: what it was computed from.
    """

    mse: float
    loss: float
    power: float
    usage: Usage
    counts: CodebookUsage

    def values(self, codec: Codec) -> dict[str, float]:
        """The metrics by name, the run's own first."""
        name, _ = codec.task.decibels
        usage = self.usage
        return {
            "mse": self.mse,
            name: codec.decibels(self.mse, self.power),
            "hard perplexity": usage.hard_perplexity,
            "mass perplexity": usage.mass_perplexity,
            "share of codes in use": usage.share_in_use,
            "bits a position": math.nan if usage.bits_per_position is None else usage.bits_per_position,
            "error over latent variance": math.nan if usage.relative_error is None else usage.relative_error,
        }


def _group_of_one() -> dist.ProcessGroup | None:
    """What figures are summed over: all processes look at the same examples, and one of them alone makes the report."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group: Any = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return group


def _prior_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    prior = model.get_submodule("prior")
    return prior.losses(batch["tokens"])  # pyright: ignore[reportCallIssue]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _steps(config: TrainingConfig, task: Task, epochs: int, steps: int | None) -> int:
    return steps or epochs * math.ceil(task.num_train / config.batch)

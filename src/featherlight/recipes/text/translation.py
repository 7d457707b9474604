"""A translation that is known to the letter, ready to run: what is read is written as it is, reversed or in order.

Legend of shapes: B pairs, S positions of the source, T of the target, V tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.nn.models import default_device
from featherlight.objective import BatchObjective, Objective, finite
from featherlight.recipes.arithmetic import arithmetic
from featherlight.recipes.by_gradients import build_optimizer, clipped
from featherlight.recipes.config import to_mapping
from featherlight.recipes.methods import METHODS
from featherlight.recipes.text.config import TranslationConfig
from featherlight.recipes.text.networks import (
    settled,
    translation_network,
    write_model,
)
from featherlight.report import Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace
from featherlight.trainer.loop import Budget

PADDING, BEGIN, END, FIRST = 0, 1, 2, 3
"""Tokens: of places that are none, of the beginning and the end of a target, and of the first symbol."""

_EVALUATION_BATCH = 256
_SHOWN = 12
_VALID, _TEST = (1 << 62), (1 << 62) + 1


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sequences and what they are to be written as, padded at their ends.

    Attributes:
        source: (B, S), symbols and END.
        target: (B, T + 1), BEGIN, symbols and END.
    """

    source: Int[Tensor, "B S"]
    target: Int[Tensor, "B T"]

    @property
    def real(self) -> Bool[Tensor, "B S"]:
        """False for padding of the source."""
        return self.source != PADDING


def draw_pairs(config: TranslationConfig, count: int, part: int) -> Pairs:
    """Sequences of random symbols and lengths.

    Args:
        config: says of which.
        count: how many.
        part: the number of a training step, or one that stands for a set to look at.
    """
    generator = np.random.Generator(np.random.Philox(key=[config.seed, part]))
    lengths = generator.integers(config.shortest, config.longest + 1, (count, 1))
    symbols = generator.integers(FIRST, FIRST + config.symbols, (count, config.longest))
    place = np.arange(config.longest)[None]
    wanted = symbols
    if config.task == "reverse":
        wanted = np.take_along_axis(symbols, np.clip(lengths - 1 - place, 0, None), 1)
    elif config.task == "sort":
        wanted = np.sort(np.where(place < lengths, symbols, FIRST + config.symbols), 1)
    begin = np.full((count, 1), BEGIN)
    return Pairs(
        source=torch.from_numpy(_ended(symbols, lengths)),
        target=torch.from_numpy(np.concatenate([begin, _ended(wanted, lengths)], 1)),
    )


def _ended(symbols: Any, lengths: Any) -> Any:
    """With END after the last, and padding after it."""
    place = np.arange(symbols.shape[1] + 1)[None]
    more = np.concatenate([symbols, symbols[:, :1]], 1)
    return np.where(place < lengths, more, np.where(place == lengths, END, PADDING))


def build_experiment(config: TranslationConfig, workspace: Workspace) -> Experiment:
    """Builds the network.

    Raises:
        ValueError: bad choices.
    """
    resolved = replace(config, optimizer=settled(config))
    translator = _Translator(resolved)
    return Experiment(
        model=translator.model,
        stages=[
            Stage(
                optimizer=lambda journal, meter: translator.arithmetic.scaled(
                    build_optimizer(resolved, translator.model, meter)
                ),
                objective=translator.objective,
                budget=Budget(steps=config.steps),
                schedule=SCHEDULES[resolved.optimizer.schedule],
                training=METHODS[config.method].dropout,
            )
        ],
        evaluate=translator.evaluate,
        title=f"{config.task} of {config.shortest} to {config.longest} symbols",
        evaluations=config.evaluations,
        method=config.method,
        facts=translator.facts(),
        write_model=translator.write,
        sections=translator.sections,
        config=resolved,
    )


class _Translator:
    """Network and pairs, and what the run procedure asks of them."""

    def __init__(self, config: TranslationConfig) -> None:
        self.config = config
        self.device = default_device(config.device)
        self.num_tokens = FIRST + config.symbols
        self.model = translation_network(config.network, self.num_tokens, config.longest + 2, config.seed)
        self.model.to(self.device)
        self.arithmetic = arithmetic(config.precision, method=config.method)

    def objective(self, step: int, meter: Meter) -> Objective:
        pairs = draw_pairs(self.config, self.config.batch, step)
        first = step * self.config.batch
        objective = BatchObjective(
            self.model,
            {"source": pairs.source.to(self.device), "target": pairs.target.to(self.device)},
            self.arithmetic.lowered(finite(translation_losses, step, range(first, first + self.config.batch))),
            micro_batch=self.config.micro_batch,
            dropout_seed=self.config.seed + step,
            meter=meter,
        )
        return clipped(self.config, objective, self.model)

    def evaluate(self) -> Sequence[Evaluation]:
        pairs = draw_pairs(self.config, self.config.evaluated, _VALID)
        batch = {"source": pairs.source.to(self.device), "target": pairs.target.to(self.device)}
        loss = float(translation_losses(self.model, batch).mean())
        written = self.written(pairs)
        values = {"exact match": float(_matches(written, pairs).float().mean())}
        return self.arithmetic.noted([Evaluation(values=values, loss=loss)])

    def written(self, pairs: Pairs) -> Tensor:
        """What is written, symbol by symbol, of each source, (B, T), filled up with END."""
        parts = []
        for source_BS in pairs.source.split(_EVALUATION_BATCH):
            source_BS = source_BS.to(self.device)
            real_BS = source_BS != PADDING
            length = pairs.target.shape[1] - 1
            one = self.model.greedy(source_BS, begin=BEGIN, end=END, max_length=length, real_BS=real_BS).cpu()
            parts.append(nn.functional.pad(one, (0, length - one.shape[1]), value=END))
        return torch.cat(parts)

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        return {
            "task": self.config.task,
            "symbols": str(self.config.symbols),
            "parameters": f"{sum(parameter.numel() for parameter in self.model.parameters()):,}",
            "learning rate": f"{self.config.optimizer.lr:g}",
            **self.arithmetic.facts(),
        }

    def write(self, path: Path) -> None:
        about = {"architecture": "EncoderDecoder", "network": to_mapping(self.config.network)}
        write_model(path, self.model, about | {"num_tokens": self.num_tokens, "max_length": self.config.longest + 2})

    def sections(self) -> Sequence[Section]:
        """Fresh sequences: how many are right to the last symbol, by length, and some of them."""
        training = self.model.training
        self.model.eval()
        pairs = draw_pairs(self.config, self.config.tested, _TEST)
        written = self.written(pairs)
        self.model.train(training)
        matches, lengths = _matches(written, pairs), pairs.real.sum(1) - 1
        rows = tuple(
            (int(length), int((lengths == length).sum()), float(matches[lengths == length].float().mean()))
            for length in lengths.unique().tolist()
        )
        order = torch.cat([(~matches).nonzero()[:, 0], matches.nonzero()[:, 0]])[:_SHOWN]
        some = tuple(
            (_text(pairs.source[row]), _text(pairs.target[row, 1:]), _text(written[row]), bool(matches[row]))
            for row in order.tolist()
        )
        share = float(matches.float().mean())
        return [
            Section(
                title="Exact matches",
                text=f"Of {len(matches):,} fresh sequences, {share:.2%} are right to the last symbol.",
                blocks=(
                    Table(columns=("symbols", "sequences", "share that is right"), rows=rows),
                    Table(
                        columns=("read", "wanted", "written", "right"), rows=some, caption="Some, the wrong ones first."
                    ),
                ),
            )
        ]


def translation_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
    """Cross-entropy of the symbols of each target and its end, mean over them."""
    source_BS, target_BT = batch["source"], batch["target"]
    logits_BTV = model(source_BS, target_BT[:, :-1], real_BS=source_BS != PADDING).float()
    wanted_BT = target_BT[:, 1:]
    losses_BT = nn.functional.cross_entropy(logits_BTV.mT, wanted_BT, reduction="none", ignore_index=PADDING)
    return losses_BT.sum(1) / (wanted_BT != PADDING).sum(1)


def _matches(written: Tensor, pairs: Pairs) -> Bool[Tensor, "B"]:
    wanted = pairs.target[:, 1:]
    return (written == torch.where(wanted == PADDING, END, wanted)).all(1)


def _text(tokens: Tensor) -> str:
    """Letters, or numbers where there are more than 26 symbols, up to the end."""
    numbers = [number - FIRST for number in tokens.tolist() if number >= FIRST]
    return (
        "".join(chr(ord("a") + one) for one in numbers) if max(numbers, default=0) < 26 else " ".join(map(str, numbers))
    )

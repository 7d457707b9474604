"""A model of a language, ready to run: text, network, loss, and what the report shows of it.

Legend of shapes: B sequences, T positions, V tokens there are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.nn.models import default_device, generate
from featherlight.objective import BatchObjective, Objective, finite
from featherlight.recipes.arithmetic import arithmetic
from featherlight.recipes.by_gradients import build_optimizer, clipped
from featherlight.recipes.methods import METHODS
from featherlight.recipes.text.config import LanguageConfig
from featherlight.recipes.text.networks import (
    about_language,
    language_network,
    settled,
    write_model,
)
from featherlight.recipes.text.vocabulary import Corpus, load_corpus
from featherlight.report import Section, Table
from featherlight.trainer import SCHEDULES, Evaluation, Experiment, Stage, Workspace, weights_digest
from featherlight.trainer.loop import Budget

_EVALUATION_BATCH = 64


def build_experiment(config: LanguageConfig, workspace: Workspace) -> Experiment:
    """Reads the text and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    workspace.display.say(f"reading {config.data}")
    corpus = load_corpus(
        config.data, tokens=config.tokens, valid_fraction=config.valid_fraction, context=config.context
    )
    corpus.vocabulary.encode(config.prompt)
    resolved = replace(config, optimizer=settled(config))
    writer = _Writer(resolved, corpus)
    return Experiment(
        model=writer.model,
        stages=[
            Stage(
                optimizer=lambda journal, meter: writer.arithmetic.scaled(
                    build_optimizer(resolved, writer.model, meter)
                ),
                objective=writer.objective,
                budget=Budget(steps=config.steps),
                schedule=SCHEDULES[resolved.optimizer.schedule],
                training=METHODS[config.method].dropout,
            )
        ],
        evaluate=writer.evaluate,
        title=f"{config.network.kind} on {Path(config.data).name}",
        lower_is_better=True,
        evaluations=config.evaluations,
        method=config.method,
        facts=writer.facts(),
        write_model=writer.write,
        sections=writer.sections,
        origin={"data": weights_digest({"train": corpus.train, "valid": corpus.valid})},
        config=resolved,
    )


class _Writer:
    """Network and text, and what the run procedure asks of them."""

    def __init__(self, config: LanguageConfig, corpus: Corpus) -> None:
        self.config = config
        self.corpus = corpus
        self.device = default_device(config.device)
        self.model = language_network(config.network, len(corpus.vocabulary), config.context, config.seed)
        self.model.to(self.device)
        self.arithmetic = arithmetic(config.precision, method=config.method)

    def objective(self, step: int, meter: Meter) -> Objective:
        places = np.random.Generator(np.random.Philox(key=[self.config.seed, step]))
        starts = places.integers(0, len(self.corpus.train) - self.config.context, self.config.batch)
        rows_BT = torch.from_numpy(starts)[:, None] + torch.arange(self.config.context + 1)
        objective = BatchObjective(
            self.model,
            {"tokens": self.corpus.train[rows_BT].to(self.device)},
            self.arithmetic.lowered(finite(next_token_losses, step, starts.tolist())),
            micro_batch=self.config.micro_batch,
            dropout_seed=self.config.seed + step,
            meter=meter,
        )
        return clipped(self.config, objective, self.model)

    def evaluate(self) -> Sequence[Evaluation]:
        loss = self._loss(self.config.evaluated)
        return self.arithmetic.noted([Evaluation(values=self._values(loss), loss=loss)])

    def _values(self, loss: float) -> dict[str, float]:
        return {
            "perplexity": float(np.exp(np.float64(loss))),
            "bits per character": loss / math.log(2) / self.corpus.characters_per_token,
        }

    @torch.no_grad()
    def _loss(self, most: int | None) -> float:
        """Mean over the tokens of the validation text, or the first of them, in sequences that do not overlap."""
        context = self.config.context
        count = max(1, (min(len(self.corpus.valid), most or len(self.corpus.valid)) - 1) // context)
        rows_NT = torch.arange(count)[:, None] * context + torch.arange(context + 1)
        parts = [
            next_token_losses(self.model, {"tokens": self.corpus.valid[part].to(self.device)})
            for part in rows_NT.split(_EVALUATION_BATCH)
        ]
        return float(torch.cat(parts).mean())

    def facts(self) -> Mapping[str, str]:
        """What was trained on what."""
        return {
            "data": self.config.data,
            "tokens": f"{len(self.corpus.vocabulary)} {self.config.tokens}",
            "training tokens": f"{len(self.corpus.train):,}",
            "validation tokens": f"{len(self.corpus.valid):,}",
            "network": self.config.network.kind,
            "parameters": f"{sum(parameter.numel() for parameter in self.model.parameters()):,}",
            "learning rate": f"{self.config.optimizer.lr:g}",
            **self.arithmetic.facts(),
        }

    def write(self, path: Path) -> None:
        about = about_language(self.config.network, self.corpus.vocabulary, self.config.context)
        write_model(path, self.model, about)

    def sections(self) -> Sequence[Section]:
        """The whole validation text, beside what the frequencies of tokens tell of it; and a sample."""
        training = self.model.training
        self.model.eval()
        loss, alone = self._loss(None), self._by_frequency()
        sample = self._sample()
        self.model.train(training)
        if not math.isfinite(loss):
            return []
        rows = [(self.config.network.kind, loss), ("frequencies of tokens alone", alone)]
        table = Table(
            columns=("model", "nats per token", "perplexity", "bits per character"),
            rows=tuple((name, one, *self._values(one).values()) for name, one in rows),
            caption=f"Each token is told from those before it in a sequence of {self.config.context}, the first from one.",
        )
        lines = tuple((line,) for line in sample.splitlines()) or (("",),)
        return [
            Section(title="The whole validation text", blocks=(table,)),
            Section(
                title="Sample",
                text=f"What the model writes after {self.config.prompt!r}, drawn at the temperature {self.config.temperature:g}.",
                blocks=(Table(columns=("text",), rows=lines),),
            ),
        ]

    def _sample(self) -> str:
        vocabulary = self.corpus.vocabulary
        written = generate(
            self.model,
            vocabulary.encode(self.config.prompt)[None].to(self.device),
            self.config.sample,
            generator=torch.Generator().manual_seed(self.config.seed),
            temperature=self.config.temperature,
        )
        return vocabulary.decode(written[0].cpu())

    def _by_frequency(self) -> float:
        """Cross-entropy of the validation text by the frequencies of the training text, each counted once more."""
        counts = torch.bincount(self.corpus.train, minlength=len(self.corpus.vocabulary)).double() + 1
        return float(-(counts / counts.sum()).log()[self.corpus.valid].mean())


def next_token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
    """Cross-entropy of the token after each, mean over a sequence of one token more."""
    logits_BTV = model(batch["tokens"][:, :-1]).float()
    return nn.functional.cross_entropy(logits_BTV.mT, batch["tokens"][:, 1:], reduction="none").mean(1)

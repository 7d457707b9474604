"""What is done with a finished run: predict, evaluate, generate, replay."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from featherlight.data import (
    EncodedText,
    Labels,
    confusion,
    encode_text,
    iter_rows,
    lm_blocks,
    load_text,
    metric,
    read_plain_text,
    text_rows,
)
from featherlight.meter import Meter
from featherlight.nn.models import Pretrained, load_pretrained, resolve_model
from featherlight.objective import seeded_random
from featherlight.optim.zeroth_order import apply_updates
from featherlight.recipes.finetune.config import config_from_mapping, read_config
from featherlight.recipes.finetune.problem import base_digest, load_model
from featherlight.recipes.finetune.rundir import write_model
from featherlight.recipes.finetune.state import check_base, load_fitted
from featherlight.recipes.finetune.tasks import LanguageModel, TaskLoss
from featherlight.recipes.finetune.trainable import add_adapters, merge_adapters
from featherlight.trainer import Tracker, read_journal, silent, weights_digest

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The model of a finished run, with its labels (None for a language model) and its text columns."""

    loaded: Pretrained
    labels: Labels | None
    text: tuple[str, ...]
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row: its label (a number for a regression) and the probability of each class, or None."""

    label: str | float
    probabilities: dict[str, float] | None


def load_trained(path: Path, *, language: bool = False) -> Trained:
    """Loads the model of a run directory, or a model directory.

    Raises:
        ValueError: there is no model, or one of another task.
    """
    config = read_config(path / "config.toml") if (path / "config.toml").is_file() else None
    source = path / "model" if config is not None else path
    if not source.is_dir():
        raise ValueError(
            f"{path} has no model yet; a run writes it at its end. Pass a finished run or a model directory."
        )
    source = Path(resolve_model(str(source)))
    generator = torch.Generator().manual_seed(0)
    if language:
        loaded = load_pretrained(str(source), num_outputs=None, generator=generator)
        return Trained(loaded=_ready(loaded), labels=None, text=(), label=None)
    labels = Labels.from_config(_model_config(source))
    loaded = load_pretrained(str(source), num_outputs=labels.num_outputs, generator=generator)
    if loaded.fresh:
        raise ValueError(f"{path} has no trained classification head, so it cannot predict. Fine-tune it first.")
    if config is not None and config.max_length is not None:
        loaded = replace(loaded, max_length=min(config.max_length, loaded.max_length))
    text, label = ((), None) if config is None else (config.text, config.label)
    return Trained(loaded=_ready(loaded), labels=labels, text=text, label=label)


@torch.no_grad()
def predict(
    trained: Trained, file: Path, *, text: tuple[str, ...], allow_truncation: bool
) -> Iterator[list[Prediction]]:
    """Predictions for a file's rows, a bounded number of rows at a time, in order."""
    for table in iter_rows(file):
        rows = text_rows(table, text_columns=text or trained.text, label_column=None)
        data = encode_text(
            rows, trained.loaded.tokenizer, max_length=trained.loaded.max_length, allow_truncation=allow_truncation
        )
        yield [prediction for logits in _outputs(trained, data) for prediction in _predictions(trained, logits)]


@torch.no_grad()
def evaluate(
    trained: Trained, file: str, *, text: tuple[str, ...], label: str | None, allow_truncation: bool
) -> dict[str, Any]:
    """All metrics of a labelled file, with the confusion counts of a classifier."""
    assert trained.labels is not None
    rows = load_text(file, text_columns=text or trained.text, label_column=label or trained.label)
    if rows.labels is None:
        raise ValueError(f"{rows.source} has no label column, so nothing can be scored. Name it with `--label`.")
    targets = trained.labels.encode(rows.labels)
    data = encode_text(
        rows, trained.loaded.tokenizer, max_length=trained.loaded.max_length, allow_truncation=allow_truncation
    )
    logits = torch.cat(list(_outputs(trained, data)))
    if trained.labels.is_regression:
        error = float((logits[:, 0] - targets).square().mean())
        return {"rows": len(data), "pearson": metric("pearson", logits[:, 0], targets), "mean_squared_error": error}
    predicted = logits.argmax(-1)
    return {
        "rows": len(data),
        "loss": float(torch.nn.functional.cross_entropy(logits, targets)),
        **{name: metric(name, predicted, targets) for name in ("accuracy", "f1", "mcc")},
        "confusion": {
            "labels": list(trained.labels.names),
            "counts": confusion(predicted, targets, trained.labels.num_outputs).tolist(),
        },
    }


@torch.no_grad()
def perplexity(trained: Trained, file: Path) -> dict[str, Any]:
    """Loss and perplexity of a language model on a text."""
    blocks = lm_blocks(
        read_plain_text(file), trained.loaded.tokenizer, block_length=min(256, trained.loaded.max_length)
    )
    loss = TaskLoss(LanguageModel())
    losses = [
        loss(trained.loaded.model, blocks.batch(range(i, min(i + _BATCH, len(blocks)))))
        for i in range(0, len(blocks), _BATCH)
    ]
    mean = torch.cat(losses).mean()
    return {"blocks": len(blocks), "loss": float(mean), "perplexity": float(mean.exp())}


@torch.no_grad()
def generate(trained: Trained, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """Continues a prompt; `temperature` 0 takes the likeliest token each time."""
    tokenizer, model = trained.loaded.tokenizer, trained.loaded.model
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    room = trained.loaded.max_length - inputs["input_ids"].shape[1]
    if room < 1:
        raise ValueError(
            f"the prompt has {inputs['input_ids'].shape[1]} tokens, and the model takes {trained.loaded.max_length}. Shorten it."
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with seeded_random(seed, inputs["input_ids"].device):
        tokens = model.generate(**inputs, max_new_tokens=min(max_new_tokens, room), **sampling)  # pyright: ignore
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def replay(base: str, journal: Path, out: Path, *, steps: int | None = None, track: Tracker = silent) -> dict[str, Any]:
    """Rebuilds the trained model from base weights and a journal, without the data.

    Args:
        base: model directory, hub id or "minilm".
        journal: of the run.
        out: directory for the model, which must not exist.
        steps: how many steps are replayed; None takes all.
        track: shows how far it is.

    Returns:
        Steps, the digest of all weights (with adapters not yet merged), and a sentence on damage or None.

    Raises:
        ValueError: another base model, a damaged header, or an `out` that exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Give another `--out`.")
    contents = read_journal(journal)
    if steps is not None and not 0 <= steps <= len(contents.records):
        raise ValueError(f"`--steps {steps}` is not among the {len(contents.records)} steps of {journal}.")
    config = config_from_mapping(tomllib.loads(contents.header["config"]), source=f"the config in {journal}")
    loaded = load_model(config, resolve_model(base), contents.header["num_outputs"])
    check_base(contents.header["base"], base_digest(loaded), str(journal))
    if config.lora is not None:
        loaded = add_adapters(loaded, config.lora)
    load_fitted(loaded.model, contents)
    targets = contents.targets(loaded.model)
    records = contents.records[:steps]
    apply_updates(targets, track(records, "replaying", len(records)), meter=Meter())
    digest = weights_digest(dict(loaded.model.named_parameters()))
    if config.lora is not None:
        merge_adapters(loaded.model)
    names = contents.header["labels"]
    labels = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_model(out, loaded, labels)
    return {"steps": len(contents.records[:steps]), "sha256": digest, "damage": contents.damage}


def _ready(loaded: Pretrained) -> Pretrained:
    loaded.model.eval()
    return loaded


def _model_config(source: Path) -> dict[str, Any]:
    """The Hugging Face config of a model directory, also of the encoder in a sentence-transformers one."""
    folder = source
    if (source / "modules.json").is_file():
        folder = source / json.loads((source / "modules.json").read_text())[0]["path"]
    return json.loads((folder / "config.json").read_text())


def _outputs(trained: Trained, data: EncodedText) -> Iterator[torch.Tensor]:
    for start in range(0, len(data), _BATCH):
        batch = data.batch(range(start, min(start + _BATCH, len(data))))
        batch.pop("labels", None)
        yield trained.loaded.model(**batch).logits.float()


def _predictions(trained: Trained, logits: torch.Tensor) -> Iterator[Prediction]:
    assert trained.labels is not None
    if trained.labels.is_regression:
        for value in logits[:, 0].tolist():
            yield Prediction(label=value, probabilities=None)
        return
    names = trained.labels.names
    for row in logits.softmax(-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        yield Prediction(label=names[best], probabilities=dict(zip(names, row, strict=True)))

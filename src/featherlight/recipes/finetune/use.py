"""What is done with a finished run: predict, evaluate, generate, replay."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from featherlight.data import (
    EncodedText,
    Labels,
    Table,
    confusion,
    encode_text,
    guess_text_columns,
    iter_rows,
    lm_blocks,
    metric,
    read_plain_text,
    source_table,
    text_rows,
)
from featherlight.nn.models import (
    Pretrained,
    default_device,
    load_pretrained,
    quiet_loading,
    resolve_model,
    save_pretrained,
)
from featherlight.objective import seeded_random
from featherlight.recipes.config import read_toml
from featherlight.recipes.finetune.config import config_from_text
from featherlight.recipes.finetune.problem import base_digest, load_model
from featherlight.recipes.finetune.tasks import TASKS, LanguageModel, TaskLoss
from featherlight.recipes.finetune.trainable import add_adapters, merge_adapters
from featherlight.trainer import (
    Tracker,
    check_base,
    read_journal_or_share,
    replace_directory,
    replay_journal,
    silent,
    weights_digest,
)
from featherlight.transforms import dequantize

_BATCH = 32
_BLOCK_LENGTH = 256
_BATCH_TOKENS = 1024
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that can be used.

    Attributes:
        loaded: the model with its tokenizer.
        labels: what its outputs are; None for a language model.
        text: the text columns it was trained on; empty where that is not known.
        label: the label column it was trained on, if that is known.
        max_length: longest input or block it was trained on, if the run had a limit of its own.
        device: where it is.
        path: where it came from.
    """

    loaded: Pretrained
    labels: Labels | None
    text: tuple[str, ...]
    label: str | None
    max_length: int | None
    device: torch.device
    path: Path


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row: its label (a number for a regression) and the probability of each class, or None."""

    label: str | float
    probabilities: dict[str, float] | None


def load_trained(path: Path, *, task: str | None = None, device: str | None = None) -> Trained:
    """Loads the model of a run directory, or a model directory.

    Args:
        path: of either.
        task: "classification", "regression" or "lm"; None takes the run's own, or else what the model was made for.
        device: as for `default_device`.

    Raises:
        ValueError: there is no model, or one of another task, or no such task or device.
    """
    if task not in (None, "auto", *TASKS):
        raise ValueError(f"there is no task `{task}`. Known tasks: {', '.join(TASKS)}.")
    source, asked = _find(path)
    where = default_device(device)
    own = _task(source, asked)
    if task in TASKS and own is not None and task != own:
        raise ValueError(
            f"`--task {task}` does not fit: the model in {path} is one for {_name(own)}. Leave `--task` out."
        )
    labels = None if (own or task) == "lm" else Labels.from_config(_model_config(source))
    generator = torch.Generator().manual_seed(0)
    loaded = load_pretrained(
        str(source), num_outputs=None if labels is None else labels.num_outputs, generator=generator
    )
    if loaded.fresh:
        raise ValueError(f"{path} has no trained classification head, so it cannot predict. Fine-tune it first.")
    loaded.model.to(where).eval()
    max_length = asked.get("max_length")
    if labels is not None and max_length is not None:
        loaded = replace(loaded, max_length=min(max_length, loaded.max_length))
    return Trained(
        loaded=loaded,
        labels=labels,
        text=tuple(asked.get("text", ())),
        label=asked.get("label"),
        max_length=max_length,
        device=where,
        path=path,
    )


@torch.no_grad()
def predict(
    trained: Trained, file: Path, *, text: tuple[str, ...], allow_truncation: bool
) -> Iterator[list[Prediction]]:
    """Predictions for a file's rows, a bounded number of rows at a time, in order.

    Args:
        trained: not a language model.
        file: of rows.
        text: its text columns. Empty takes those the model was trained on where they are there, else guesses.
        allow_truncation: goes on if more than 1% of the tokens are cut off.

    Raises:
        ValueError: a language model, or rows it cannot take.
    """
    labels = _labels(trained, "predicts no labels")
    for table in iter_rows(file):
        names = _text_columns(trained, table, text, trained.label)
        only = Table(
            columns={name: table.column(name) for name in names}, source=table.source, first_row=table.first_row
        )
        data = _encoded(trained, only, names, None, allow_truncation)[0]
        yield [prediction for logits in _outputs(trained, data) for prediction in _predictions(labels, logits)]


@torch.no_grad()
def evaluate(
    trained: Trained, file: str, *, text: tuple[str, ...], label: str | None, allow_truncation: bool
) -> dict[str, Any]:
    """All metrics of a labelled file, with the confusion counts of a classifier; perplexity of a language model.

    Args:
        trained: any model.
        file: of labelled rows, or a text for a language model.
        text: as for `predict`.
        label: label column. None takes the one the model was trained on where it is there, else guesses.
        allow_truncation: as for `predict`.

    Raises:
        ValueError: rows without labels, or labels the model does not know.
    """
    if trained.labels is None:
        _labels(trained, "is not scored on labels") if label is not None else None
        return perplexity(trained, Path(file), text=text)
    table = source_table(file)
    named = label or (trained.label if trained.label in table.columns else None)
    data, found = _encoded(trained, table, _text_columns(trained, table, text, named), named, allow_truncation)
    if found is None:
        raise ValueError(f"{file} has no label column, so nothing can be scored. Name it with `--label`.")
    targets = trained.labels.encode(found, source=f"the label column of {file}")
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
def perplexity(trained: Trained, file: Path, *, text: tuple[str, ...] = ()) -> dict[str, Any]:
    """Loss and perplexity of a language model on a text.

    The text is cut into blocks, each predicted by itself: as long as the run's were if it had a limit, else the model's
    longest input, at most 256 tokens.

    Raises:
        ValueError: not a language model, or a text shorter than a block.
    """
    if trained.labels is not None:
        raise ValueError(f"the model in {trained.path} is one for {_name(_kind(trained))}, which has no perplexity.")
    length = min(trained.max_length or _BLOCK_LENGTH, trained.loaded.max_length)
    plain = read_plain_text(file, text_columns=text)
    blocks = lm_blocks(plain, trained.loaded.tokenizer, block_length=length)
    loss, count = TaskLoss(LanguageModel()), max(1, _BATCH_TOKENS // length)
    losses = []
    for start in range(0, len(blocks), count):
        batch = blocks.batch(range(start, min(start + count, len(blocks))))
        losses.append(loss(trained.loaded.model, {n: t.to(trained.device) for n, t in batch.items()}).cpu())
    mean = torch.cat(losses).mean()
    return {"blocks": len(blocks), "block_length": length, "loss": float(mean), "perplexity": float(mean.exp())}


@torch.no_grad()
def generate(trained: Trained, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """Continues a prompt; `temperature` 0 takes the likeliest token each time.

    Raises:
        ValueError: not a language model, or a prompt without a token or with too many.
    """
    if trained.labels is not None:
        raise ValueError(
            f"the model in {trained.path} is one for {_name(_kind(trained))}, which writes no text. Use `featherlight "
            "predict`, or pass a language model."
        )
    tokenizer, model = trained.loaded.tokenizer, trained.loaded.model
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(trained.device)
    count = inputs["input_ids"].shape[1]
    room = trained.loaded.max_length - count
    if count < 1 or room < 1:
        raise ValueError(
            f"the prompt has {count} tokens, and the model takes 1 to {trained.loaded.max_length - 1} to go on from. "
            f"{'Give it a word' if count < 1 else 'Shorten it'}."
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with seeded_random(seed, trained.device):
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
        Steps, the digest of all weights (with adapters not yet merged), that of the trained ones as the run noted it or None,
        and a sentence on damage or None.

    Raises:
        ValueError: another base model, a damaged header, or an `out` that exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Give another `--out`.")
    contents = read_journal_or_share(journal)
    stop = contents.last_step(steps)
    config = config_from_text(contents.header["config"], source=f"the config in {journal}")
    loaded = load_model(config, resolve_model(base), contents.header["num_outputs"])
    check_base(contents.header["base"], base_digest(loaded), str(journal))
    if config.lora is not None:
        loaded = add_adapters(loaded, config.lora)
    replay_journal(contents, loaded.model, steps=stop, track=track)
    digest = weights_digest(dict(loaded.model.named_parameters()))
    dequantize(loaded.model)
    if config.lora is not None:
        merge_adapters(loaded.model)
    names = contents.header["labels"]
    labels = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet_loading():
        replace_directory(out, lambda path: save_pretrained(loaded, path, labels))
    trained = contents.digest_at(stop)
    return {"steps": stop, "sha256": digest, "trained_sha256": trained, "damage": contents.damage}


def _find(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """The model directory of a run or a model, and what the run's config says (nothing without a run)."""
    if not path.exists():
        raise ValueError(f"there is no model or run at {path}. Check the path.")
    runs = (path, path.parent) if path.name == "model" else (path,)
    run = next((one for one in runs if (one / "config.toml").is_file()), None)
    if run is None:
        return Path(resolve_model(str(path))), {}
    if not (run / "model").is_dir():
        raise ValueError(
            f"{path} has no model yet; a run writes it at its end. Pass a finished run or a model directory."
        )
    recipe, asked = read_toml(run / "config.toml")
    if recipe is not None and not {"model", "train"} <= asked.keys():
        raise ValueError(f"{path} is a run of {recipe}; this works on fine-tuned text models.")
    return Path(resolve_model(str(run / "model"))), asked


def _task(source: Path, asked: Mapping[str, Any]) -> str | None:
    """What a model is for: as its run says, else by its config; None if that does not tell."""
    if asked.get("task") in TASKS:
        return asked["task"]
    config = _model_config(source)
    if any(name.endswith(_LANGUAGE_MODELS) for name in config.get("architectures") or ()):
        return "lm"
    if "id2label" not in config and "num_labels" not in config:
        return None
    return "regression" if Labels.from_config(config).is_regression else "classification"


def _kind(trained: Trained) -> str:
    return "lm" if trained.labels is None else "regression" if trained.labels.is_regression else "classification"


def _name(task: str) -> str:
    return "language (lm)" if task == "lm" else task


def _labels(trained: Trained, what: str) -> Labels:
    if trained.labels is None:
        raise ValueError(
            f"the model in {trained.path} is a language model, which {what}. Use `featherlight generate`, score it on plain "
            "text with `featherlight evaluate`, or pass a run with `--task classification` or `regression`."
        )
    return trained.labels


def _text_columns(trained: Trained, table: Table, given: tuple[str, ...], label: str | None) -> tuple[str, ...]:
    """The columns to read: as given, else as in training where they are there, else guessed; as many as in training."""
    own = trained.text
    is_same = bool(own) and all(name in table.columns for name in own)
    names = given or (own if is_same else guess_text_columns(table, label))
    if own and len(names) != len(own):
        trained_on = f"{'pairs' if len(own) == 2 else 'single texts'} ({', '.join(own)})"
        raise ValueError(
            f"the model was trained on {trained_on}, but {table.source} gives it {', '.join(names)}. Name "
            f"{'two columns, giving `--text` twice' if len(own) == 2 else 'one column with `--text`'}; the file has "
            f"{', '.join(table.columns)}."
        )
    return names


def _encoded(
    trained: Trained, table: Table, names: tuple[str, ...], label: str | None, allow_truncation: bool
) -> tuple[EncodedText, list[Any] | None]:
    rows = text_rows(table, text_columns=names, label_column=label)
    loaded = trained.loaded
    data = encode_text(rows, loaded.tokenizer, max_length=loaded.max_length, allow_truncation=allow_truncation)
    return data, rows.labels


def _model_config(source: Path) -> dict[str, Any]:
    """The Hugging Face config of a model directory, also of the encoder in a sentence-transformers one."""
    folder = source
    if (source / "modules.json").is_file():
        folder = source / json.loads((source / "modules.json").read_text())[0]["path"]
    return json.loads((folder / "config.json").read_text())


def _outputs(trained: Trained, data: EncodedText) -> Iterator[torch.Tensor]:
    for start in range(0, len(data), _BATCH):
        batch = data.batch(range(start, min(start + _BATCH, len(data))))
        yield trained.loaded.model(**{n: t.to(trained.device) for n, t in batch.items()}).logits.float().cpu()


def _predictions(labels: Labels, logits: torch.Tensor) -> Iterator[Prediction]:
    if labels.is_regression:
        for value in logits[:, 0].tolist():
            yield Prediction(label=value, probabilities=None)
        return
    names = labels.names
    for row in logits.softmax(-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        yield Prediction(label=names[best], probabilities=dict(zip(names, row, strict=True)))

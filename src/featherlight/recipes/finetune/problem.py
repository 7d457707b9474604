"""Model, data and task of a fine-tune, put together from its config."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from featherlight.data import (
    EncodedText,
    IndexPermutation,
    Labels,
    TextRows,
    encode_text,
    lm_blocks,
    load_text,
    read_plain_text,
    split_rows,
)
from featherlight.nn.frozen_prefix import FrozenPrefix, PrefixCache
from featherlight.nn.models import Pretrained, default_device, load_pretrained, resolve_model
from featherlight.objective import seeded_random
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.finetune.tasks import (
    Classification,
    LanguageModel,
    Regression,
    Task,
    TaskLoss,
    require_example_metric,
)
from featherlight.recipes.finetune.trainable import add_adapters, select_trainable
from featherlight.trainer import weights_digest
from featherlight.transforms import quantize_base

_EVALUATION_TOKENS = 8192
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained on what.

    Attributes:
        config: as asked for, with what it left open filled in: columns, task, metric and head start. It builds the same
            problem.
        loaded: the model with its tokenizer.
        task: loss and metric.
        loss: of a batch.
        train: encoded training examples.
        valid: encoded validation examples.
        sampler: the order in which training examples are seen.
        caches: hidden states of each set at the first trained block; empty without a frozen prefix.
        base_digest: of the weights that come from the model's source.
        device: where the model is.
        tokens_at_once: of a pass without gradients: no more than a training pass has, and no more than 8192.
    """

    config: FinetuneConfig
    loaded: Pretrained
    task: Task
    loss: TaskLoss
    train: EncodedText
    valid: EncodedText
    sampler: IndexPermutation
    caches: dict[int, PrefixCache]
    base_digest: str
    device: torch.device
    tokens_at_once: int

    @property
    def labels(self) -> Labels | None:
        """Classes or the one number; None for a language model."""
        return self.task.labels

    def batch(self, data: EncodedText, indices: Sequence[int]) -> dict[str, Tensor]:
        """Some examples as tensors, with their hidden states at the first trained block if the ones before are frozen."""
        batch = _on(self.device, data.batch(indices))
        if cache := self.caches.get(id(data)):
            batch["prefix_hidden"] = cache.rows(indices, batch["attention_mask"])
        return batch

    def batches(self, data: EncodedText, *, indices: Tensor | None = None, fewest: int = 1) -> "Batches":
        """All examples, or those at `indices`, in batches of a bounded number of tokens, similar lengths together.

        The longest come first. A batch has at least `fewest` examples where there are as many.
        """
        which = torch.arange(len(data)) if indices is None else indices
        order = which[data.lengths[which].argsort(stable=True)].tolist()
        rows = []
        while order:
            count = max(fewest, self.tokens_at_once // data.length(order[-1]))
            rows.append(order[-count:])
            order = order[:-count]
        return Batches(self, data, rows)

    def data_digest(self) -> str:
        """SHA-256 of the training examples as the model sees them."""
        digest = hashlib.sha256(self.train.input_ids.numpy().tobytes())
        digest.update(self.train.offsets.numpy().tobytes())
        if self.train.targets is not None:
            digest.update(self.train.targets.numpy().tobytes())
        return digest.hexdigest()


class Batches:
    """Batches of a set, made when they are asked for; `rows` says beforehand which examples are in each."""

    def __init__(self, problem: Problem, data: EncodedText, rows: list[list[int]]) -> None:
        self._problem = problem
        self._data = data
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self._problem.batch(self._data, rows) for rows in self.rows)


def build_problem(config: FinetuneConfig, *, scratch: Path) -> Problem:
    """Loads data and model and chooses what is trained.

    Args:
        config: of the run.
        scratch: folder for files that do not outlive the run.

    Raises:
        ValueError: bad data, no model, or choices that do not fit together.
    """
    source = resolve_model(config.model)
    if config.task == "lm":
        if config.head_start:
            raise ValueError("a language model has no new head to fit, so `--head-start` means nothing. Drop it.")
        return _build(config, source, None, LanguageModel(), None, scratch)
    rows = load_text(config.train, text_columns=config.text, label_column=config.label)
    labels = Labels.fit(
        _require_labels(rows),
        regression={"auto": None, "regression": True, "classification": False}[config.task],
        source=f"the label column of {rows.source}",
    )
    task = Regression(labels, config.metric) if labels.is_regression else Classification(labels, config.metric)
    config = replace(
        config,
        text=rows.text_columns,
        label=rows.label_column,
        task="regression" if labels.is_regression else "classification",
        metric=task.metric,
    )
    return _build(config, source, rows, task, labels, scratch)


def load_model(config: FinetuneConfig, source: str, num_outputs: int | None) -> Pretrained:
    """The model of a run before its first step, but for what `select_trainable` and a head start do to it."""
    generator = torch.Generator().manual_seed(config.seed)
    loaded = load_pretrained(source, num_outputs=num_outputs, generator=generator, dtype=config.dtype)
    loaded.model.eval()
    if config.base != "float":
        quantize_base(loaded.model, bits=_BITS[config.base], merge_rank=config.merge_rank, skip=_fresh_layers(loaded))
    return loaded


def _fresh_layers(loaded: Pretrained) -> set[str]:
    """The head, and layers that the model's source does not contain."""
    names = {name for name, module in loaded.model.named_modules() if module is loaded.head}
    return names | {name.rpartition(".")[0] for name in loaded.fresh}


def base_digest(loaded: Pretrained) -> str:
    """Digest of the parameters that come from the model's source."""
    return weights_digest({n: p for n, p in loaded.model.named_parameters() if n not in loaded.fresh})


def _build(
    config: FinetuneConfig, source: str, rows: TextRows | None, task: Task, labels: Labels | None, scratch: Path
) -> Problem:
    if config.objective == "metric":
        require_example_metric(task.metric)
    loaded = load_model(config, source, None if labels is None else labels.num_outputs)
    digest = base_digest(loaded)
    train, valid = (
        _language_data(config, loaded) if rows is None or labels is None else _labelled(config, loaded, rows, labels)
    )
    config = replace(config, head_start=_fits_head(config, loaded))
    device = _training_device(config.device)
    loaded.model.to(device)
    probe = _on(device, train.batch([0]))
    prefix = None
    if config.lora is not None:
        with seeded_random(config.seed, torch.device("cpu")):
            loaded = add_adapters(loaded, config.lora)
        loaded.model.to(device).eval()
    else:
        prefix = select_trainable(loaded, config.trainable, _without_labels(probe))
    sampler = IndexPermutation(len(train), config.seed)
    caches = {}
    if prefix is not None:
        caches = _caches(prefix, TaskLoss(task, prefix), probe, (train, valid), sampler, device, scratch)
    return Problem(
        config=config,
        loaded=loaded,
        task=task,
        loss=TaskLoss(task, prefix if caches else None),
        train=train,
        valid=valid,
        sampler=sampler,
        caches=caches,
        base_digest=digest,
        device=device,
        tokens_at_once=min(_EVALUATION_TOKENS, (config.micro_batch or config.batch) * int(train.lengths.max())),
    )


def _training_device(name: str) -> torch.device:
    """As `default_device`, but MPS only if it is named: it has no float64, in which forward-only methods add up."""
    device = default_device(name)
    return torch.device("cpu") if device.type == "mps" and name == "auto" else device


def _fits_head(config: FinetuneConfig, loaded: Pretrained) -> bool:
    """Whether there is a head start: as the config says, else where the head is fresh."""
    if loaded.head is None or config.head_start is not None:
        return bool(config.head_start)
    of_head = {id(parameter) for parameter in loaded.head.parameters()}
    return any(id(p) in of_head for name, p in loaded.model.named_parameters() if name in loaded.fresh)


def _caches(
    prefix: FrozenPrefix,
    loss: TaskLoss,
    probe: dict[str, Tensor],
    sets: tuple[EncodedText, EncodedText],
    sampler: IndexPermutation,
    device: torch.device,
    scratch: Path,
) -> dict[int, PrefixCache]:
    """Caches of the training and the validation rows; none where the suffix cannot run by itself."""
    hidden = _probe_prefix(prefix, loss, probe)
    if hidden is None:
        return {}

    def cache(data: EncodedText, file: Path, order: Tensor | None) -> PrefixCache:
        def inputs(rows: Sequence[int]) -> dict[str, Tensor]:
            return _on(device, _without_labels(data.batch(rows)))

        return PrefixCache(prefix, data.lengths, inputs, like=hidden, file=file, order=order)

    train, valid = sets
    order = torch.as_tensor(sampler.indices(0, len(train)))
    return {
        id(train): cache(train, scratch / "train.prefix", order),
        id(valid): cache(valid, scratch / "valid.prefix", None),
    }


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _labelled(
    config: FinetuneConfig, loaded: Pretrained, rows: TextRows, labels: Labels
) -> tuple[EncodedText, EncodedText]:
    max_length = min(config.max_length or loaded.max_length, loaded.max_length)

    def encode(some: TextRows) -> EncodedText:
        return encode_text(
            some,
            loaded.tokenizer,
            max_length=max_length,
            allow_truncation=config.allow_truncation,
            targets=labels.encode(_require_labels(some), source=f"the label column of {some.source}"),
        )

    if config.valid is not None:
        return encode(rows), encode(load_text(config.valid, text_columns=config.text, label_column=config.label))
    targets = labels.encode(_require_labels(rows))
    parts = split_rows(
        targets, valid_fraction=config.valid_fraction, seed=config.seed, stratify=not labels.is_regression
    )
    train, valid = (_some_rows(rows, part.tolist()) for part in parts)
    return encode(train), encode(valid)


def _language_data(config: FinetuneConfig, loaded: Pretrained) -> tuple[EncodedText, EncodedText]:
    length = min(config.max_length or 256, loaded.max_length)
    text = read_plain_text(config.train, text_columns=config.text)
    if config.valid is not None:
        valid = read_plain_text(config.valid, text_columns=config.text)
    else:
        cut = int(len(text) * (1 - config.valid_fraction))
        text, valid = text[:cut], text[cut:]
    return (
        lm_blocks(text, loaded.tokenizer, block_length=length),
        lm_blocks(valid, loaded.tokenizer, block_length=length),
    )


@torch.no_grad()
def _probe_prefix(prefix: FrozenPrefix, loss: TaskLoss, batch: dict[str, Tensor]) -> Tensor | None:
    """Hidden states of a batch, or None where running the suffix on them does not give what the whole model gives.

    Blocks that hand on more than hidden states (T5's position bias) cannot be passed over; then the model runs whole.
    """
    whole = loss.logits(prefix.model, batch)
    try:
        hidden = prefix.hidden(_without_labels(batch))
        suffix = loss.logits(prefix.model, batch | {"prefix_hidden": hidden})
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
        return None
    return hidden if torch.allclose(whole, suffix, rtol=1e-2, atol=1e-2 * float(whole.abs().max())) else None


def _require_labels(rows: TextRows) -> list:
    if rows.labels is None:
        raise ValueError(
            f"{rows.source} has no label column. Name it with `--label`, or use `--task lm` for plain text."
        )
    return rows.labels


def _some_rows(rows: TextRows, indices: list[int]) -> TextRows:
    labels = _require_labels(rows)
    return replace(rows, texts=[rows.texts[i] for i in indices], labels=[labels[i] for i in indices])

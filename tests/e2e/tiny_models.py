"""Tiny models with random weights and working tokenizers, written to disk on the spot."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = (
    "good",
    "bad",
    "fine",
    "awful",
    "film",
    "plot",
    "the",
    "a",
    "was",
    "is",
    "very",
    "not",
    "and",
    "cat",
    "dog",
    "sat",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def tokenizer() -> PreTrainedTokenizerFast:
    """Words by white space; [CLS] text [SEP], and both texts of a pair."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "eos_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, **names)


def seeded(build):
    """What `build` makes with torch's default generator at a fixed state, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def bert(path: Path) -> Path:
    """A plain encoder."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    seeded(lambda: BertModel(config)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def sentence_model(path: Path) -> Path:
    """A sentence-transformers directory: encoder, mean pooling, normalisation."""
    bert(path)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    return path


def gpt2(path: Path) -> Path:
    """A decoder with Conv1D layers."""
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3)
    seeded(lambda: GPT2LMHeadModel(config)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def llama(path: Path) -> Path:
    """A decoder with rotary positions and RMSNorm."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=2,
        eos_token_id=3,
    )
    seeded(lambda: LlamaForCausalLM(config)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def t5(path: Path) -> Path:
    """An encoder-decoder with relative positions."""
    config = T5Config(
        vocab_size=20,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    seeded(lambda: T5ForConditionalGeneration(config)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path

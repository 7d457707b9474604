"""The suffix on cached hidden states is the whole model, whatever the order and padding of the batches."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from featherlight.nn.frozen_prefix import FrozenPrefix, PrefixCache, find_blocks, modules_before


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=4, n_head=2, num_labels=3, pad_token_id=0)
    return GPT2ForSequenceClassification(config).eval()


LENGTHS = torch.tensor([3, 7, 5, 1, 6])


def inputs(which: list[int]) -> dict[str, torch.Tensor]:
    """The same examples each time, padded to the longest of those asked for."""
    width = int(LENGTHS[which].max())
    mask = (torch.arange(width) < LENGTHS[which][:, None]).long()
    ids = 1 + (torch.tensor(which)[:, None] * 7 + torch.arange(width) * 3) % 29
    return {"input_ids": ids * mask, "attention_mask": mask}


def cache_of(model: nn.Module, first: int, folder: Path, **options: int) -> PrefixCache:
    _, blocks = find_blocks(model)
    prefix = FrozenPrefix(model, blocks, first)
    like = prefix.hidden(inputs([0]))
    return PrefixCache(prefix, LENGTHS, lambda which: inputs(list(which)), like=like, file=folder / "cache", **options)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
@torch.no_grad()
def test_the_suffix_gives_what_the_whole_model_gives(tmp_path: Path, build, first: int, memory_limit: int) -> None:
    model = build()
    cache = cache_of(model, first, tmp_path, memory_limit=memory_limit)
    assert (tmp_path / "cache").exists() == (memory_limit == 0)
    for which in ([0, 1], [3], [4, 0, 2], [1, 4], [0, 1, 2, 3, 4]):
        batch = inputs(which)
        hidden = cache.rows(which, batch["attention_mask"])
        with cache.prefix.injected(hidden):
            suffix = model(**batch).logits
        torch.testing.assert_close(suffix, model(**batch).logits, atol=1e-5, rtol=1e-4)


def test_each_group_runs_through_the_prefix_once_and_without_dropout(tmp_path: Path) -> None:
    model = bert().train()
    cache = cache_of(model, 2, tmp_path, group_tokens=14)
    seen = []
    blocks = find_blocks(model)[1]
    handle = blocks[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    first = cache.rows([2, 0], inputs([2, 0])["attention_mask"])
    again = cache.rows([0, 2, 1], inputs([0, 2, 1])["attention_mask"])
    handle.remove()
    assert seen == [(2, 5), (2, 7)], "rows 0 and 2 share a group, and so do 1 and 4"
    torch.testing.assert_close(first[0, :5], again[1, :5], rtol=0, atol=0)
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_bits_do_not_depend_on_the_order_in_which_rows_are_asked_for(
    tmp_path: Path, build, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(1, 60, (200,), generator=generator)
    monkeypatch.setitem(globals(), "LENGTHS", many)
    model = build()
    everything = list(range(len(many)))
    filled = []
    for order in (everything, torch.randperm(len(many), generator=generator).tolist()):
        cache = cache_of(model, 2, tmp_path, group_tokens=300)
        for start in range(0, len(order), 7):
            which = order[start : start + 7]
            cache.rows(which, inputs(which)["attention_mask"])
        filled.append(cache.rows(everything, inputs(everything)["attention_mask"]))
    assert torch.equal(*filled)


def test_groups_hold_every_row_once_and_a_bounded_number_of_tokens(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "LENGTHS", torch.tensor([9, 2, 40, 2, 3, 1, 10]))
    sizes = []
    cache = cache_of(bert(), 1, tmp_path, group_tokens=20)
    monkeypatch.setattr(cache, "_inputs", lambda which: sizes.append(sorted(which)) or inputs(list(which)))
    cache.rows(list(range(7)), inputs(list(range(7)))["attention_mask"])
    assert sorted(sizes) == [[0, 6], [1, 3, 4, 5], [2]]


def test_a_disk_without_room_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"no room in .*No space left on device.* GiB are free.*`--out`"):
        cache_of(bert(), 1, tmp_path, memory_limit=0)
    assert not list(tmp_path.iterdir())


def test_the_room_of_a_cache_on_disk_is_taken_at_once(tmp_path: Path) -> None:
    cache = cache_of(bert(), 1, tmp_path, memory_limit=0)
    assert (tmp_path / "cache").stat().st_size == cache.num_bytes
    assert (tmp_path / "cache").stat().st_blocks * 512 >= cache.num_bytes


def test_injection_leaves_no_trace_even_after_an_error() -> None:
    model = bert()
    _, blocks = find_blocks(model)
    prefix = FrozenPrefix(model, blocks, 2)
    hidden = prefix.hidden(inputs([0]))

    def fail() -> None:
        with prefix.injected(hidden):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert all("forward" not in vars(block) for block in blocks)
    assert all(not block._forward_pre_hooks for block in blocks)


def test_modules_before_a_block_are_those_that_run_before_it() -> None:
    model = bert()
    name, blocks = find_blocks(model)
    ran = modules_before(model, blocks[2], inputs([0, 1]))
    names = {n for n, module in model.named_modules() if module in ran}
    assert "bert.embeddings.LayerNorm" in names
    assert f"{name}.1.output.dense" in names
    assert not any(n.startswith((f"{name}.2", f"{name}.3", "classifier", "bert.pooler")) for n in names)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))

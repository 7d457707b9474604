"""Which layers are held in few bits, what stays float and why, and the way back."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.functional import QuantizedTensor
from featherlight.optim.zeroth_order import targets_of
from featherlight.transforms import dequantize, quantize_base


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(1, 2, 3),
                "table": nn.Embedding(11, 8),
                "first": nn.Linear(8, 16),
                "head": nn.Linear(16, 3, bias=False),
                "norm": nn.LayerNorm(16),
            }
        )


@pytest.mark.parametrize(("bits", "group", "error"), [(8, None, 0.02), (8, 4, 0.02), (4, None, 0.2), (4, 8, 0.2)])
def test_linear_layers_are_replaced_and_all_others_named(bits: int, group: int | None, error: float) -> None:
    model = net()
    first = model["first"]
    before, bias = first.weight.detach().clone(), first.bias
    done = quantize_base(model, bits=bits, group=group, skip={"head"})
    assert done.replaced == ("first",)
    assert set(done.kept) == {"conv", "table", "head"}
    assert "it is a Conv2d" in done.kept["conv"]
    assert "it is an Embedding" in done.kept["table"]
    assert done.kept["head"] == "it is to stay float"
    assert first.bias is bias
    assert isinstance(first.weight, QuantizedTensor)
    assert first.weight.requires_grad
    assert (done.float_bytes, done.num_bytes) == (512, first.weight.num_bytes)
    assert (first.weight.plain() - before).norm() < error * before.norm()


def test_only_the_named_layers_are_replaced_and_frozen_ones_stay_frozen() -> None:
    model = net()
    model["head"].requires_grad_(False)
    done = quantize_base(model, layers=["head"])
    assert done.replaced == ("head",)
    assert done.kept["first"] == "it was not asked for"
    assert not model["head"].weight.requires_grad


def test_a_model_that_is_one_layer_is_replaced_whole() -> None:
    layer = nn.Linear(6, 4)
    assert quantize_base(layer).replaced == ("",)
    assert isinstance(layer.weight, QuantizedTensor)
    dequantize(layer)
    assert type(layer.weight) is nn.Parameter


def test_the_way_back_gives_plain_parameters_with_the_same_outputs() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    quantize_base(model, bits=4)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    before = model(x)
    assert dequantize(model) == ("0", "2")
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    torch.testing.assert_close(model(x), before)
    assert dequantize(model) == ()


def transformer(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )  # fmt: skip

    ids = {"input_ids": torch.arange(12).reshape(2, 6)}
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        if kind == "bert":
            return BertForSequenceClassification(BertConfig(intermediate_size=64, **small)), ids
        if kind == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
            ), ids
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(intermediate_size=64, **small)), ids
        config = T5Config(d_model=32, d_kv=16, num_layers=2, num_heads=2, d_ff=64, vocab_size=50)
        return T5ForConditionalGeneration(config), ids | {"decoder_input_ids": ids["input_ids"]}


@pytest.mark.parametrize(
    ("kind", "count", "tied"), [("bert", 14, None), ("gpt2", 8, "lm_head"), ("llama", 15, None), ("t5", 32, "lm_head")]
)
def test_transformers_of_every_kind_keep_their_outputs(kind: str, count: int, tied: str | None) -> None:
    model, inputs = transformer(kind)
    model.eval()
    with torch.no_grad():
        before = model(**inputs).logits
        done = quantize_base(model)
        after = model(**inputs).logits
    assert len(done.replaced) == count
    if tied is not None:
        assert "is tied to `" in done.kept[tied]
    assert 0 < (after - before).norm() < 0.05 * before.norm()
    assert len(targets_of(model, [{"params": list(model.parameters())}])) == len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft_go_on_top_and_only_they_get_gradients() -> None:
    peft = pytest.importorskip("peft")
    model, inputs = transformer("gpt2")
    quantize_base(model)
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    wrapped = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = wrapped(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    held = [p for p in wrapped.parameters() if isinstance(p, QuantizedTensor)]
    assert len(held) == 8
    assert all(p.grad is None for p in held)


def with_integers(model: nn.Module) -> nn.Module:
    model["first"].weight = nn.Parameter(torch.zeros(16, 8, dtype=torch.int8), requires_grad=False)
    return model


def quantized_twice(model: nn.Module) -> nn.Module:
    quantize_base(model)
    return model


def with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model["first"].weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (net, {"layers": ["conv"]}, r"layer `conv` cannot be held in 8 bits: it is a Conv2d, .* Leave it out of `layers`"),
        (net, {"layers": ["table"], "bits": 4}, r"layer `table` cannot be held in 4 bits: it is an Embedding"),
        (net, {"layers": ["nowhere"]}, r"there is no layer `nowhere` with a matrix .*conv, table, first"),
        (net, {"bits": 5}, r"`bits` must be 8 or 4.*got 5"),
        (lambda: with_nan(net()), {"layers": ["first"]}, r"layer `first` .*NaN or infinite"),
        (lambda: with_integers(net()), {}, r"layer `first` \(Linear\) holds its `weight` quantized already \(torch.int8\)"),
        (lambda: quantized_twice(net()), {}, r"layer `first` .* quantized already .*Load the float model"),
        (lambda: nn.Conv2d(1, 2, 3), {}, r"Conv2d has no linear layer .*it is a Conv2d.* Leave the base float"),
        (lambda: nn.LayerNorm(3), {}, r"LayerNorm has no linear layer .*it has no matrix"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_named(make: Callable[[], nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_base(make(), **options)

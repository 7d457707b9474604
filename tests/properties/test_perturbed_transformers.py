"""Law: fused slopes equal those of dense perturbed copies on language models as transformers and peft build them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from featherlight.objective import BatchObjective
from tests.oracles.slopes import dense_estimate, fused_estimate, largest_difference, trained

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks transformers for a name that has since been changed."""

ROWS, LENGTH, VOCABULARY = 4, 6, 19


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=16, num_labels=3,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1
        )
    )  # fmt: skip


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=12, max_position_embeddings=16,
        )
    )  # fmt: skip


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def llama_with_adapters() -> nn.Module:
    peft = pytest.importorskip("peft", reason="needs the extra `lora`")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def classification_loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"][:, 0] % 3, reduction="none")


def causal_loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return (losses * batch["attention_mask"][:, 1:]).sum(1)


def sequence_loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).logits
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none").mean(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "BERT": (bert, classification_loss),
    "GPT-2": (gpt2, causal_loss),
    "Llama": (llama, causal_loss),
    "T5": (t5, sequence_loss),
    "Llama with LoRA": (llama_with_adapters, causal_loss),
}


def build(name: str, micro_batch: int | None = None) -> tuple[nn.Module, BatchObjective]:
    make, loss = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make().double().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[3, 2:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": ids.flip(1)[:, :4].contiguous()}
    return model, BatchObjective(model, batch, loss, micro_batch=micro_batch)


@pytest.mark.parametrize("count", [1, 2, None])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_fused_slopes_equal_dense_copies(name: str, micro_batch: int | None, count: int | None) -> None:
    model, objective = build(name, micro_batch)
    targets = trained(model)
    fused, loss = fused_estimate(objective, targets, count=count, sigma=0.01, seed=3, step=2)
    dense, dense_loss = dense_estimate(objective, targets, count=count, sigma=0.01, seed=3, step=2)
    assert largest_difference(fused, dense) < 1e-9
    torch.testing.assert_close(loss, dense_loss, rtol=1e-11, atol=0)


def test_only_adapters_are_trained_and_each_example_has_its_own_direction() -> None:
    model, objective = build("Llama with LoRA")
    targets = trained(model)
    fused_estimate(objective, targets, count=None, sigma=0.01, seed=3, step=2)
    assert targets
    assert all("lora_" in target.name and not target.shared for target in targets)


@pytest.mark.parametrize(
    ("name", "shared"),
    [("BERT", {"position_embeddings"}), ("GPT-2", {"wpe"}), ("Llama", set()), ("T5", {"relative_attention_bias"})],
)
def test_what_does_not_depend_on_the_example_shares_its_direction(name: str, shared: set[str]) -> None:
    model, objective = build(name)
    targets = trained(model)
    fused_estimate(objective, targets, count=None, sigma=0.01, seed=3, step=2)
    assert {target.name.split(".")[-2] for target in targets if target.shared} == shared

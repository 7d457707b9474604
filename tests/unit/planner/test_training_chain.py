"""Chains that are found and measured in models, and plans for them that hold."""

import copy
import re
from collections.abc import Mapping
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
)

from benchmarks.checkpointed_nets import random_net
from featherlight.meter import allocation_peak
from featherlight.nn.models import BlockShape, Gpt, resnet20
from featherlight.planner.activation_checkpoint import least_budget
from featherlight.planner.chain_discovery import find_chain
from featherlight.planner.training_chain import TrainingPlan, measured_chain, plan_for, plan_measured

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(vocab_size=50, **SMALL))


def gpt2() -> nn.Module:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=4, n_head=2, n_positions=32, **ends))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **SMALL))


def text_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    options = {} if isinstance(model, BertForSequenceClassification) else {"use_cache": False}
    logits = model(input_ids=batch["tokens"], attention_mask=batch["mask"], **options).logits
    return logits.float().square().flatten(1).mean(1)


def text() -> dict[str, Tensor]:
    mask = torch.ones(3, 16, dtype=torch.long)
    mask[1, 9:] = 0
    return {"tokens": torch.randint(50, (3, 16)), "mask": mask}


def image_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def step(model: nn.Module, batch: Mapping[str, Tensor], losses: Any) -> tuple[int, list[Tensor]]:
    """The peak of the second of two steps, and the gradients."""
    peak = 0
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        with allocation_peak() as measured:
            values = losses(model, batch)
            (values.sum() / len(values)).backward()
            del values
        peak = measured.bytes
    return peak, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def require_kept(model: nn.Module, batch: Mapping[str, Tensor], losses: Any, plan: TrainingPlan, budget: int) -> None:
    """Within the plan, which is within the budget and is not far off, and the gradients of the plain run."""
    plain = copy.deepcopy(model)
    transform = plan.transform()
    transform.prepare(model)
    peak, gradients = step(model, batch, losses)
    transform.convert(model)
    assert 0.8 * plan.plan.peak_bytes < peak <= plan.plan.peak_bytes <= budget
    assert all(torch.equal(a, b) for a, b in zip(gradients, step(plain, batch, losses)[1], strict=True))


@pytest.mark.parametrize(
    ("make", "first"), [(bert, "bert.encoder.layer.0"), (gpt2, "transformer.h.0"), (llama, "model.layers.0")]
)
def test_blocks_of_transformers_keep_the_plan(make: Any, first: str) -> None:
    model, batch = make().train(), text()
    chain = measured_chain(model, batch, text_losses, repeats=1)
    assert chain.stages == tuple(first.removesuffix("0") + str(place) for place in range(4))
    least = least_budget(chain.chain)
    budget = (least + chain.full.peak_bytes) // 2
    plan = plan_measured(chain, budget)
    assert plan.plan.proven
    assert least < plan.plan.peak_bytes < chain.full.peak_bytes
    require_kept(model, batch, text_losses, plan, budget)


def test_own_models_with_tied_ends_keep_the_plan() -> None:
    model = Gpt(40, context=16, shape=BlockShape(width=32, num_heads=2), num_blocks=3)
    batch = {"tokens": torch.randint(40, (4, 16))}

    def losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["tokens"]).square().mean((1, 2))

    chain = measured_chain(model, batch, losses, repeats=1)
    assert chain.stages == ("blocks.0", "blocks.1", "blocks.2")
    least = least_budget(chain.chain)
    require_kept(model, batch, losses, plan_measured(chain, least), least)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_random_chains_stay_within_the_plan(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net, batch = random_net(generator)
    chain = measured_chain(net, batch, net.losses, repeats=1)
    least, full = least_budget(chain.chain), chain.full.peak_bytes
    budget = int(least + float(torch.rand((), generator=generator)) * (full - least))
    require_kept(net, batch, net.losses, plan_measured(chain, budget), budget)


def test_a_model_is_left_as_it_was_measured() -> None:
    model = resnet20()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batch = {"x": torch.randn(2, 3, 16, 16), "y": torch.tensor([0, 1])}
    state = torch.get_rng_state()
    plan = plan_for(model, batch, image_losses, 1 << 30, repeats=1)
    assert plan.full_seconds > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(parameter.grad is None for parameter in model.features.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_where_chains_are_found() -> None:
    shared = nn.Linear(2, 2)
    stacked = nn.Sequential(nn.Flatten(), nn.ModuleList([shared, shared, shared]))
    assert find_chain(stacked) == ("1.0", "1.1", "1.2")
    inner = [
        nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    ]
    assert find_chain(nn.Sequential(*inner, nn.Linear(2, 2))) == ("0.0", "0.1", "1")
    with pytest.raises(ValueError, match=r"Bilinear has no nn\.Sequential"):
        find_chain(nn.Bilinear(2, 2, 2))


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


BATCH = {"x": torch.zeros(2, 4), "y": torch.zeros(2, dtype=torch.long)}


@pytest.mark.parametrize(
    ("model", "batch", "stages", "says"),
    [
        (Parallel(), BATCH, None, "stage `branches.1` is not handed what `branches.0` returned"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), BATCH, None, "stage `1` changes its input in place"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), BATCH, ["1", "0"], "stage `0` was called where `1` is next"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), BATCH, ["0", "1", "1"], "the model called 2 of 3 stages"),
        (nn.Sequential(nn.Linear(4, 4)), BATCH, None, "no nn.ModuleList of two modules or more"),
        (
            nn.Linear(4, 4),
            {"x": torch.zeros(0, 4)},
            None,
            "`batch` must hold tensors of at least one row; got rows {'x': 0}",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), BATCH, None, "fits into 10 bytes: the least is"),
        (nn.Sequential(nn.Flatten(), nn.Tanh()), BATCH, None, "the loss must be one number with a gradient"),
    ],
)
def test_what_cannot_be_planned_is_said(model: nn.Module, batch: dict[str, Tensor], stages: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        plan_for(model, batch, image_losses, 10, stages=stages, repeats=1)


def test_a_chain_of_one_stage_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 4))
    batch = {"x": torch.randn(512, 4), "y": torch.zeros(512, dtype=torch.long)}
    plan = plan_for(model, batch, image_losses, 1 << 20, stages=["0"], repeats=1)
    require_kept(model, batch, image_losses, plan, 1 << 20)

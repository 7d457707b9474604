"""Hugging Face's Trainer with forward-only steps: whatever the Trainer does around a step still holds."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from featherlight.integrations import hf_trainer
from featherlight.integrations.hf_trainer import StepSampler, ZerothOrderTrainer, zeroth_order_sgd
from featherlight.meter import allocation_peak
from featherlight.objective import NonFiniteLossError
from featherlight.optim import MeZO, MeZOSVRG, RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order import StepRecord, Target
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.methods import METHODS

Rows = list[dict[str, Any]]

of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""PEFT asks models of transformers for a name that they are about to drop."""


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def classifier() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
    )
    return seeded(lambda: BertForSequenceClassification(config))


def language_model() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    config.loss_type = "ForCausalLM"
    return seeded(lambda: GPT2LMHeadModel(config))


def classified(count: int = 20) -> Rows:
    """Eight tokens a row; the label is what the first is modulo 3."""
    ids = torch.randint(3, 30, (count, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def ragged(count: int = 12) -> Rows:
    """Twelve tokens a row, the last few of which are no labels."""
    ids = torch.randint(3, 30, (count, 12), generator=torch.Generator().manual_seed(0))
    lengths = [5 + number % 7 for number in range(count)]
    return [
        {
            "input_ids": row,
            "attention_mask": (torch.arange(12) < n).long(),
            "labels": row.where(torch.arange(12) < n, -100),
        }
        for row, n in zip(ids, lengths, strict=True)
    ]


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Arguments of a short, quiet run on the CPU."""

    def make(**options: Any) -> TrainingArguments:
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
        short = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 4}
        return TrainingArguments(output_dir=str(tmp_path / "out"), **(quiet | short | options))

    return make


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Losses(TrainerCallback):
    """Keeps what is logged after each step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        self.logs.append(dict(logs))


class InMemory:
    """A journal in a list."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.targets: Sequence[Target] = ()

    def append(self, record: StepRecord, targets: Sequence[Target]) -> None:
        self.records.append(record)
        self.targets = targets


def test_the_default_is_the_command_lines() -> None:
    config = FinetuneConfig(model="minilm", train="rows.csv").optimizer
    model = classifier()
    optimizer = zeroth_order_sgd(model, TrainingArguments(output_dir="out", learning_rate=METHODS["zo"].default_lr))
    assert METHODS["zo"].default_lr == hf_trainer.DEFAULT_LR
    assert config.sigma is None
    assert optimizer.evaluator.sigma == 1e-3
    assert optimizer.evaluator.family.count is config.directions is None
    assert (optimizer.normalize is not None) == config.normalize
    body, head = optimizer.param_groups
    assert (body["scale"], head["scale"]) == (1.0, config.head_scale)
    assert body["weight_decay"] == config.weight_decay
    assert {id(p) for p in head["params"]} == {id(p) for p in model.classifier.parameters()}
    assert METHODS["zo"].dropout is False


def test_a_language_model_has_no_head() -> None:
    (group,) = zeroth_order_sgd(language_model(), TrainingArguments(output_dir="out")).param_groups
    assert group["scale"] == 1.0


def test_a_default_rate_for_gradients_is_warned_of(arguments: Callable[..., TrainingArguments]) -> None:
    with pytest.warns(UserWarning, match="`learning_rate` is 5e-05, the default for training with gradients"):
        ZerothOrderTrainer(classifier(), arguments(learning_rate=5e-5), train_dataset=classified())


@pytest.mark.parametrize(("build", "rows"), [(classifier, classified), (language_model, ragged)])
def test_micro_batches_make_one_step_on_their_union(
    build: Callable[[], nn.Module], rows: Callable[[], Rows], arguments: Callable[..., TrainingArguments]
) -> None:
    journals, losses = [], []
    for size, count in ((12, 1), (3, 4), (1, 12)):
        journal, log = InMemory(), Losses()
        trainer = ZerothOrderTrainer(
            build(),
            arguments(per_device_train_batch_size=size, gradient_accumulation_steps=count, max_steps=2),
            train_dataset=rows(),
            zeroth_order=lambda model, args, journal=journal: zeroth_order_sgd(model, args, journal=journal),
            callbacks=[log],
        )
        trainer.train()
        assert trainer.state.global_step == len(journal.records) == 2
        journals.append([record.coefficients.double() * record.scale for record in journal.records])
        losses.append([line["loss"] for line in log.logs if "loss" in line])
    for slopes, loss in zip(journals[1:], losses[1:], strict=True):
        for mine, whole in zip(slopes, journals[0], strict=True):
            assert torch.allclose(mine, whole, rtol=0.02, atol=0.02 * float(whole.abs().max()))
        assert loss == pytest.approx(losses[0], rel=1e-5)


def test_what_is_logged_is_the_mean_of_the_losses_of_the_steps(arguments: Callable[..., TrainingArguments]) -> None:
    class Noted(ZerothOrderSGD):
        def step(self, closure: Any = None) -> Tensor:
            seen.append(float(loss := super().step(closure)))
            return loss

    seen: list[float] = []
    log = Losses()
    result = ZerothOrderTrainer(
        classifier(),
        arguments(logging_steps=2, max_steps=5),
        train_dataset=classified(),
        zeroth_order=lambda model, args: Noted(model, 1e-3),
        callbacks=[log],
    ).train()
    assert len(seen) == 5
    logged = [line["loss"] for line in log.logs if "loss" in line]
    assert logged == pytest.approx([sum(seen[:2]) / 2, sum(seen[2:4]) / 2])
    assert result.training_loss == pytest.approx(sum(seen) / 5)
    assert not any("grad_norm" in line for line in log.logs)


def test_callbacks_see_the_weights_move_between_their_events(arguments: Callable[..., TrainingArguments]) -> None:
    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            before.append(weights(others["model"]))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            after.append(weights(others["model"]))

        def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            between.append(state.global_step)

    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []
    between: list[int] = []
    model = classifier()
    base = weights(model)
    args = arguments(gradient_accumulation_steps=2, max_steps=2)
    ZerothOrderTrainer(model, args, train_dataset=classified(), callbacks=[Watcher()]).train()
    assert same(before[0], base)
    assert not same(after[0], base)
    assert same(before[1], after[0])
    assert between == [0, 1]


@pytest.mark.parametrize("resumed_at", [2, 7], ids=["in the first epoch", "in a later epoch"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_resumed_run_comes_to_the_same_bits(
    resumed_at: int, schedule: str, arguments: Callable[..., TrainingArguments], tmp_path: Path
) -> None:
    def run(resume: str | None) -> dict[str, Tensor]:
        model = classifier()
        args = arguments(
            lr_scheduler_type=schedule,
            warmup_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=9,
            save_strategy="steps",
            save_steps=1,
            seed=(1 << 32) - 1,
            eval_strategy="steps",
            eval_steps=2,
        )
        trainer = ZerothOrderTrainer(model, args, train_dataset=classified(18), eval_dataset=classified(3))
        trainer.train(resume_from_checkpoint=resume)
        return weights(model)

    whole = run(None)
    resumed = run(str(tmp_path / "out" / f"checkpoint-{resumed_at}"))
    assert same(whole, resumed)
    assert not same(whole, weights(classifier()))


def test_a_second_call_of_train_is_a_run_of_its_own(arguments: Callable[..., TrainingArguments]) -> None:
    trainer = ZerothOrderTrainer(classifier(), arguments(max_steps=2), train_dataset=classified())
    trainer.train()
    before = weights(trainer.model)
    assert trainer.train().global_step == 2
    assert not same(before, weights(trainer.model))


def test_a_stop_between_micro_batches_leaves_nothing_for_the_next_run(
    arguments: Callable[..., TrainingArguments],
) -> None:
    class Stopper(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = True

    trainer = ZerothOrderTrainer(
        classifier(), arguments(gradient_accumulation_steps=2), train_dataset=classified(), callbacks=[Stopper()]
    )
    base = weights(trainer.model)
    trainer.train()
    assert same(base, weights(trainer.model))
    trainer.pop_callback(Stopper)
    journal = InMemory()
    trainer.optimizer = zeroth_order_sgd(trainer.model, trainer.args, journal=journal)
    trainer.train()
    assert [len(record.coefficients) for record in journal.records] == [8] * 4


def test_records_of_a_run_replay_to_its_weights(arguments: Callable[..., TrainingArguments]) -> None:
    model, base, journal = classifier(), classifier(), InMemory()
    ZerothOrderTrainer(
        model,
        arguments(),
        train_dataset=classified(),
        zeroth_order=lambda model, args: zeroth_order_sgd(model, args, journal=journal),
    ).train()
    optimizer = zeroth_order_sgd(base, arguments())
    kept, shared = ({t.index for t in journal.targets if t.shared or not only} for only in (False, True))
    optimizer.keep_targets(kept, shared)
    optimizer.replay(journal.records)
    assert same(weights(model), weights(base))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: MeZO(model, 1e-3),
        lambda model: ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(1)),
        lambda model: ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(2)),
    ],
    ids=["MeZO", "one direction", "two directions"],
)
def test_any_forward_only_optimizer_can_be_passed_with_a_scheduler(
    make: Callable[[nn.Module], torch.optim.Optimizer], arguments: Callable[..., TrainingArguments]
) -> None:
    model, log = classifier(), Losses()
    base = weights(model)
    optimizer = make(model)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = ZerothOrderTrainer(
        model, arguments(), train_dataset=classified(), optimizers=(optimizer, scheduler), callbacks=[log]
    )
    trainer.train()
    assert not same(base, weights(model))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 5)


@of_peft
def test_adapters_are_trained_and_resumed_and_the_base_is_not(
    arguments: Callable[..., TrainingArguments], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")

    def run(resume: str | None) -> dict[str, Tensor]:
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
        model = seeded(lambda: peft.get_peft_model(classifier(), config))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        before = weights(model)
        args = arguments(save_strategy="steps", save_steps=2)
        ZerothOrderTrainer(model, args, train_dataset=classified()).train(resume_from_checkpoint=resume)
        after = weights(model)
        assert {name for name in after if not torch.equal(before[name], after[name])} == trained
        return after

    assert same(run(None), run(str(tmp_path / "out" / "checkpoint-2")))
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").is_file()


@of_peft
def test_the_head_of_an_adapted_classifier_is_moved_further(arguments: Callable[..., TrainingArguments]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(classifier(), config)
    _, head = zeroth_order_sgd(model, arguments()).param_groups
    assert [tuple(parameter.shape) for parameter in head["params"]] == [(3, 16), (3,)]
    assert head["scale"] == 10.0


def test_steps_run_without_dropout_and_without_a_graph(arguments: Callable[..., TrainingArguments]) -> None:
    seen: list[tuple[bool, bool]] = []
    model = classifier()
    model.register_forward_pre_hook(lambda module, _: seen.append((module.training, torch.is_grad_enabled())))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ZerothOrderTrainer(model, arguments(seed=1), train_dataset=classified()).train()
    assert len(seen) > 8
    assert set(seen) == {(False, False)}
    assert kept == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_peak_of_a_run_is_that_of_running_one_micro_batch(arguments: Callable[..., TrainingArguments]) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    model = seeded(lambda: BertForSequenceClassification(config))
    ids = torch.randint(3, 50, (96, 48), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    args = arguments(per_device_train_batch_size=16, gradient_accumulation_steps=3, max_steps=1)
    trainer = ZerothOrderTrainer(model, args, train_dataset=rows)
    with allocation_peak() as training:
        trainer.train()
    batch, union = trainer.data_collator(rows[:16]), trainer.data_collator(rows[:48])
    with allocation_peak() as inference, torch.no_grad():
        trainer.compute_loss(model, dict(batch))
    with allocation_peak() as backward:
        trainer.compute_loss(model, dict(union)).backward()
    assert training.bytes < 1.15 * inference.bytes
    assert training.bytes < 0.2 * backward.bytes


def per_row(model: nn.Module, inputs: Any) -> Tensor:
    logits = model(input_ids=inputs["input_ids"]).logits
    return nn.functional.cross_entropy(logits, inputs["labels"], reduction="none") + logits.square().mean(1)


def with_penalty(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A sum divided by the number of items, as the Trainer asks for."""
    losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none") + outputs.logits.square().mean(1)
    return losses.sum() / num_items_in_batch


def averaged(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The same as a mean."""
    losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none") + outputs.logits.square().mean(1)
    return losses.mean()


def test_a_loss_function_trains_as_the_same_loss_by_rows_does(arguments: Callable[..., TrainingArguments]) -> None:
    found = []
    for options in (
        {"compute_loss_func": with_penalty},
        {"compute_loss_func": averaged},
        {"per_example_loss": per_row},
    ):
        model = classifier()
        args = arguments(gradient_accumulation_steps=2, per_device_train_batch_size=2)
        ZerothOrderTrainer(model, args, train_dataset=classified(), **options).train()
        found.append(weights(model))
    plain = classifier()
    ZerothOrderTrainer(plain, args, train_dataset=classified()).train()
    for one in found:
        assert all(torch.allclose(one[name], found[0][name], rtol=0, atol=1e-5) for name in one)
        assert not all(torch.allclose(one[name], plain.state_dict()[name], rtol=0, atol=1e-4) for name in one)


class OwnLoss(ZerothOrderTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"])
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_a_subclass_is_trained_where_examples_share_a_direction(
    arguments: Callable[..., TrainingArguments],
) -> None:
    found = []
    for kind in (OwnLoss, ZerothOrderTrainer):
        model = classifier()
        args = arguments(gradient_accumulation_steps=3, per_device_train_batch_size=2)
        kind(
            model,
            args,
            train_dataset=classified(),
            zeroth_order=lambda model, args: ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(1)),
        ).train()
        found.append(weights(model))
    own, stock = found
    assert not same(own, weights(classifier()))
    assert all(torch.allclose(own[name], stock[name], rtol=0, atol=2e-5) for name in own)


def mixed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits - outputs.logits.mean(0), labels)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (OwnLoss, {}, "OwnLoss has a `compute_loss` of its own, which returns one loss for a batch"),
        (ZerothOrderTrainer, {"compute_loss_func": mixed}, "so examples are mixed or something is added"),
        (
            ZerothOrderTrainer,
            {"per_example_loss": lambda model, inputs: per_row(model, inputs).mean()},
            r"`per_example_loss` must return one loss for each row, shape \(\d,\); got \(\)",
        ),
    ],
)
def test_a_loss_that_does_not_tell_examples_apart_is_refused(
    kind: type[ZerothOrderTrainer],
    options: dict[str, Any],
    sentence: str,
    arguments: Callable[..., TrainingArguments],
) -> None:
    model = classifier()
    base = weights(model)
    with pytest.raises(ValueError, match=sentence):
        kind(model, arguments(), train_dataset=classified(), **options).train()
    assert same(base, weights(model))


def test_an_optimizer_that_needs_gradients_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    base = weights(model)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = ZerothOrderTrainer(model, arguments(), train_dataset=classified(), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="asks for a gradient, but ZerothOrderTrainer makes forward passes alone"):
        trainer.train()
    assert same(base, weights(model))


def test_an_optimizer_that_wants_a_larger_batch_at_times_is_refused(
    arguments: Callable[..., TrainingArguments],
) -> None:
    trainer = ZerothOrderTrainer(
        classifier(),
        arguments(),
        train_dataset=classified(),
        zeroth_order=lambda model, args: MeZOSVRG(model, 1e-4, 1e-3),
    )
    with pytest.raises(ValueError, match="MeZOSVRG measures its anchors on a batch much larger than a step's"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("fp16", True, r"`fp16` \(True\) cannot be used by ZerothOrderTrainer: it scales losses"),
        ("deepspeed", {"zero_optimization": {"stage": 2}}, "DeepSpeed makes its own steps from gradients"),
        ("fsdp", True, "directions are drawn for whole weights"),
        ("torch_compile", True, "a compiled model cannot be perturbed"),
        ("neftune_noise_alpha", 5.0, "noise on the embeddings is for training mode"),
        ("optim", "sgd", r"`optim` \(sgd\) cannot be used by ZerothOrderTrainer: it names an optimizer that needs"),
        ("_n_gpu", 2, r"`n_gpu` \(2\) cannot be used by ZerothOrderTrainer: forward-only training runs on one device"),
    ],
)
def test_set_ups_that_cannot_work_are_refused_at_once(
    name: str, value: Any, sentence: str, arguments: Callable[..., TrainingArguments]
) -> None:
    args = arguments()
    object.__setattr__(args, name, value)
    with pytest.raises(ValueError, match=sentence):
        ZerothOrderTrainer(classifier(), args, train_dataset=classified())


def test_several_processes_are_refused(
    arguments: Callable[..., TrainingArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 4)
    with pytest.raises(ValueError, match=r"`world_size` \(4\) .*Start a single process, without torchrun"):
        ZerothOrderTrainer(classifier(), arguments(), train_dataset=classified())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("distributed_type", "MULTI_GPU", "accelerate is set up for MULTI_GPU. Start it with plain python"),
        ("mixed_precision", "fp8", "the mixed precision `fp8` that accelerate is set up for scales losses"),
    ],
)
def test_what_accelerate_is_set_up_for_is_looked_at(
    name: str,
    value: str,
    sentence: str,
    arguments: Callable[..., TrainingArguments],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, name, DistributedType(value) if name == "distributed_type" else value)
    with pytest.raises(ValueError, match=sentence):
        ZerothOrderTrainer(classifier(), arguments(), train_dataset=classified())


@pytest.mark.parametrize("given", ["both", "class"])
def test_an_optimizer_is_given_once(given: str, arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    options: dict[str, Any] = (
        {"optimizers": (MeZO(model), None), "zeroth_order": zeroth_order_sgd}
        if given == "both"
        else {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    )
    with pytest.raises(ValueError, match="the optimizer must be given once"):
        ZerothOrderTrainer(model, arguments(), train_dataset=classified(), **options)


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    base = weights(model)
    with pytest.raises(NonFiniteLossError, match="the loss of step 0 is not finite"):
        ZerothOrderTrainer(model, arguments(), train_dataset=classified()).train()
    assert all(torch.equal(base[n], t) for n, t in weights(model).items() if n != "classifier.bias")


def test_without_accelerate_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.optimizer", None)
    spec = importlib.util.spec_from_file_location("another_copy", hf_trainer.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"Run: pip install 'featherlight\[trainer\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(("num_rows", "rows_a_step"), [(20, 4), (23, 4), (3, 4), (4, 4), (1, 1)])
def test_epochs_are_a_stream_in_whole_steps(num_rows: int, rows_a_step: int) -> None:
    sampler = StepSampler(num_rows, rows_a_step, seed=5)
    epochs = []
    for epoch in range(3 * rows_a_step):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler)
        assert len(epochs[-1]) == (num_rows // rows_a_step * rows_a_step or num_rows)
    if num_rows >= rows_a_step:
        stream = [row for epoch in epochs for row in epoch]
        for start in range(0, len(stream) - num_rows, num_rows):
            assert sorted(stream[start : start + num_rows]) == list(range(num_rows))


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length"])
def test_another_order_of_rows_is_the_trainers(strategy: str, arguments: Callable[..., TrainingArguments]) -> None:
    args = arguments(train_sampling_strategy=strategy)
    stock = Trainer(classifier(), args, train_dataset=classified())
    trainer = ZerothOrderTrainer(classifier(), args, train_dataset=classified())
    assert type(trainer._get_train_sampler()) is type(stock._get_train_sampler())


def test_arguments_by_position_are_passed_on(arguments: Callable[..., TrainingArguments]) -> None:
    trainer = ZerothOrderTrainer(classifier(), arguments(), None, classified(), classified(3))
    assert set(trainer.evaluate()) >= {"eval_loss"}

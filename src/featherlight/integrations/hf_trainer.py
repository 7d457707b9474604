"""Hugging Face's Trainer, training by forward passes alone. Needs `pip install 'featherlight[trainer]'`."""

import warnings
from collections.abc import Callable, Iterator, Sized
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType
except ImportError:
    raise ImportError(
        "Hugging Face's Trainer needs the package accelerate, which is not installed. Run: pip install 'featherlight[trainer]'"
    ) from None
from transformers import Trainer, TrainingArguments

from featherlight.data import IndexPermutation
from featherlight.integrations.hf_loss import given_loss, trainer_loss
from featherlight.integrations.hf_objective import Inputs, MicroBatchLoss, MicroBatchObjective
from featherlight.nn.models.pretrained import output_head
from featherlight.objective import PerExampleLoss
from featherlight.optim import MeZOSVRG, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import Journal

DEFAULT_LR = 1e-3
"""The learning rate of the default optimizer where no arguments are given: a distance in weight space."""

OptimizerFactory = Callable[[nn.Module, TrainingArguments], Optimizer]
"""Makes the optimizer of a run from the model, which is on its device, and the arguments."""


def zeroth_order_sgd(
    model: nn.Module,
    args: TrainingArguments,
    *,
    sigma: float = 1e-3,
    head_scale: float = 10.0,
    journal: Journal | None = None,
) -> ZerothOrderSGD:
    """The optimizer of `featherlight finetune --method zo`, with the rate, weight decay and seed of the arguments.

    Args:
        model: its parameters that require a gradient are trained.
        args: `learning_rate` is a distance in weight space; 1e-3 is what the command line starts from.
        sigma: scale of the perturbation.
        head_scale: how much further the last layer of a sequence classifier is perturbed and moved than the rest.
        journal: is handed a record of each step before the update.
    """
    head = {id(parameter) for parameter in _head_parameters(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in head]},
        {"params": [p for p in trained if id(p) in head], "scale": head_scale},
    ]
    return ZerothOrderSGD(
        model,
        args.learning_rate,
        sigma=sigma,
        directions=RankOneSigns(None),
        normalize=SpreadNormalized(),
        weight_decay=args.weight_decay,
        params=[group for group in groups if group["params"]],
        seed=args.seed,
        journal=journal,
    )


class ZerothOrderTrainer(Trainer):
    """A `transformers.Trainer` whose steps are forward passes alone, at the memory of inference.

    Everything else is the Trainer's own: callbacks, evaluation, saving and resuming, schedules, PEFT models. The
    micro-batches of gradient accumulation are one batch, of which one is in memory at a time. Steps run without dropout.
    A resumed run comes to the same bits.

    Args:
        model: as for Trainer.
        args: as for Trainer. What concerns gradients (`max_grad_norm`, activation checkpointing) has no effect.
        others: as for Trainer.
        zeroth_order: makes the optimizer; None is `zeroth_order_sgd`. A forward-only optimizer that was made before can be
            passed as Trainer's own `optimizers=(optimizer, scheduler)` instead.
        per_example_loss: `loss(model, inputs) -> (B,)`, labels among the inputs: the losses that steps lower; None takes
            the Trainer's loss. Evaluations report the Trainer's.
        options: as for Trainer.

    Rows are drawn in the order of `featherlight finetune` with the same seed (`args.data_seed`, else `args.seed`), unless
    `args.train_sampling_strategy` asks for another.

    Raises:
        ValueError: a set-up that forward-only training cannot use (several processes or devices, DeepSpeed, FSDP, float16
            with scaled losses, compiled models), or an optimizer that needs gradients.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *others: Any,
        zeroth_order: OptimizerFactory | None = None,
        per_example_loss: PerExampleLoss | None = None,
        **options: Any,
    ) -> None:
        if args is None:
            args = TrainingArguments(output_dir="tmp_trainer", learning_rate=DEFAULT_LR)
        _require_usable(args)
        self._zeroth_order = zeroth_order
        self._per_example_loss = per_example_loss
        self._micro_batches: list[Inputs] = []
        self._loss: MicroBatchLoss | None = None
        self._step_loss: Tensor | None = None
        super().__init__(model, args, *others, **options)
        _require_one_process(self.accelerator)
        if self.optimizer_cls_and_kwargs is not None or (self.optimizer is not None and zeroth_order is not None):
            raise ValueError(
                "the optimizer must be given once: as `optimizers=(optimizer, scheduler)` or as `zeroth_order`, and not as "
                "`optimizer_cls_and_kwargs`, which is for optimizers that need gradients."
            )
        if self.optimizer is None and zeroth_order is None:
            _warn_of_default_rate(args)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The forward-only optimizer, wrapped so that `step()` is on the micro-batches since the last one."""
        self._micro_batches, self._loss, self._step_loss = [], None, None
        if self.optimizer is None:
            make = self._zeroth_order or zeroth_order_sgd
            self.optimizer = make(self.model if model is None else model, self.args)  # pyright: ignore[reportArgumentType]
        if isinstance(self.optimizer, MeZOSVRG):
            raise ValueError(
                "MeZOSVRG measures its anchors on a batch much larger than a step's, which a Trainer does not collect. Pass "
                "another forward-only optimizer, or step it in a loop of your own."
            )
        if not isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = _ObjectiveOptimizer(self.optimizer, self._take_step)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Keeps the micro-batch for the step. Its loss is known when the optimizer has made the step, so this returns 0."""
        model.eval()
        inputs = self._prepare_inputs(inputs)
        self._micro_batches.append(inputs)
        if self._loss is None:
            given = self._per_example_loss
            self._loss = trainer_loss(self, model, inputs) if given is None else given_loss(self, model, given)
        return torch.zeros((), device=self.args.device)

    def _take_step(self, optimizer: Optimizer) -> None:
        assert self._loss is not None, "a step comes after a micro-batch"
        micro_batches, self._micro_batches = self._micro_batches, []
        seed = (self.args.seed + self.state.global_step) % (1 << 63)
        objective = MicroBatchObjective(micro_batches, self._loss, seed=seed)
        self._step_loss = torch.as_tensor(optimizer.step(objective))  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random" or not isinstance(rows, Sized):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return StepSampler(len(rows), self._train_batch_size * self.args.gradient_accumulation_steps, seed=seed)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        return None

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *others: Any, **options: Any) -> None:
        """Adds the loss of the step, which Trainer expects from `training_step`."""
        if self._step_loss is not None:
            tr_loss += self._step_loss.to(tr_loss)
            self._step_loss = None
        super()._maybe_log_save_evaluate(tr_loss, *others, **options)


class StepSampler(Sampler[int]):
    """Rows in the order in which `featherlight finetune` sees them: an endless shuffled stream, cut into epochs.

    An epoch is as many whole steps as fit into the rows. Those left over come first in the next one, so that no step is
    shorter than others and no row is seen less often. Any epoch can be had without those before it.

    Args:
        num_rows: of the data.
        rows_a_step: of all micro-batches of a step together.
        seed: of the order.
    """

    def __init__(self, num_rows: int, rows_a_step: int, *, seed: int) -> None:
        self._stream = IndexPermutation(num_rows, seed)
        self._stride = max(1, num_rows // rows_a_step) * rows_a_step
        self._length = min(self._stride, num_rows)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated over next, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._stream.indices(self._epoch * self._stride, self._length))


class _ObjectiveOptimizer(AcceleratedOptimizer):
    """Stands for a forward-only optimizer where `step()` is called without an Objective."""

    def __init__(self, optimizer: Optimizer, take_step: Callable[[Optimizer], None]) -> None:
        super().__init__(optimizer, device_placement=False)
        self._take_step = take_step

    def step(self, closure: Any = None) -> None:
        """Makes the step."""
        self._take_step(self.optimizer)


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those of the layer that makes a sequence classifier's outputs."""
    if getattr(model, "loss_type", None) != "ForSequenceClassification":
        return []
    return list(output_head(model, model.config.num_labels).parameters())  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


_DEFAULTS = {field.name: field.default for field in fields(TrainingArguments)}

_UNUSABLE: dict[str, tuple[Callable[[TrainingArguments], Any], str]] = {
    "fp16": (
        lambda args: args.fp16,
        "it scales losses so that gradients do not vanish, and there are none. Load the model in float16 or bfloat16 instead "
        "(`dtype=` of from_pretrained)",
    ),
    "deepspeed": (
        lambda args: args.deepspeed,
        "DeepSpeed makes its own steps from gradients. Drop it: forward-only training keeps no gradients and no moments",
    ),
    "fsdp": (
        lambda args: args.fsdp,
        "directions are drawn for whole weights, of which a process would have parts. Drop it: forward-only training keeps "
        "no gradients and no moments",
    ),
    "torch_compile": (
        lambda args: args.torch_compile,
        "the calls inside a compiled model cannot be perturbed. Train without, and compile the result",
    ),
    "neftune_noise_alpha": (
        lambda args: args.neftune_noise_alpha,
        "noise on the embeddings is for training mode, and steps run in evaluation mode. Drop it",
    ),
    "optim": (
        lambda args: args.optim if args.optim != _DEFAULTS["optim"] else None,
        "it names an optimizer that needs gradients. Drop it, and pass `zeroth_order` for another forward-only optimizer",
    ),
    "n_gpu": (
        lambda args: args.n_gpu if args.n_gpu > 1 else None,
        "forward-only training runs on one device. Show it one (CUDA_VISIBLE_DEVICES=0)",
    ),
    "world_size": (
        lambda args: args.world_size if args.world_size > 1 else None,
        "each process would go its own way, since no gradients are exchanged. Start a single process, without torchrun",
    ),
}


def _require_usable(args: TrainingArguments) -> None:
    for name, (seen, why) in _UNUSABLE.items():
        if value := seen(args):
            raise ValueError(f"`{name}` ({value}) cannot be used by ZerothOrderTrainer: {why}.")


def _require_one_process(accelerator: Any) -> None:
    """Refuses what `accelerate launch` or the environment asks for, which the arguments do not say."""
    if accelerator.distributed_type != DistributedType.NO:
        raise ValueError(
            f"ZerothOrderTrainer trains in one process, and accelerate is set up for {accelerator.distributed_type.value}. "
            "Start it with plain python."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"the mixed precision `{accelerator.mixed_precision}` that accelerate is set up for scales losses for their "
            "gradients, and ZerothOrderTrainer has none. Use `bf16`, or load the model in 16 bits."
        )


def _warn_of_default_rate(args: TrainingArguments) -> None:
    if args.learning_rate == _DEFAULTS["learning_rate"]:
        warnings.warn(
            f"`learning_rate` is {args.learning_rate:g}, the default for training with gradients. For the default optimizer of "
            f"ZerothOrderTrainer it is a distance in weight space: start from {DEFAULT_LR:g}.",
            UserWarning,
            stacklevel=3,
        )

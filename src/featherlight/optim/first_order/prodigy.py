"""Prodigy: Adam whose step size is an estimate, made on the way, of the distance from the start to a solution."""

# pyright: reportPrivateImportUsage=false
# torch's own optimizers are made of torch._foreach_*, which it does not export.

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from featherlight.objective import NonFiniteLossError

_BUCKET_ENTRIES = 1 << 22
_CACHED_ENTRIES = 1 << 16  # of a CPU: what is read several times a step stays in its cache


@dataclass(frozen=True, kw_only=True)
class DistanceEstimate:
    """How Prodigy estimates the distance D from the start to a solution, in the largest norm of an entry.

    Args:
        start: the first estimate, below any that is reasonable.
        coefficient: what each estimate is multiplied by; the one knob to turn where the default is too fast or too slow.
        growth: by how much the estimate may grow in a step; infinity does not limit it, and 1.02 acts as a warm-up.
        decay: of the running sums, in [0, 1); None takes the root of the second of `betas`.
        unscaled: leaves the learning rate out of the sum of gradients, which keeps a schedule's warm-up from distorting the
            estimate (`safeguard_warmup` of prodigyopt).
        stride: takes the sums over every `stride`-th entry of each tensor. At 1 the method is the published one and keeps four
            numbers an entry; at 11 it keeps 2.18 and estimates D from a sample.
    """

    start: float = 1e-6
    coefficient: float = 1.0
    growth: float = math.inf
    decay: float | None = None
    unscaled: bool = False
    stride: int = 1

    def __post_init__(self) -> None:
        for name in ("start", "coefficient"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a finite positive number; got {getattr(self, name)}.")
        if not self.growth > 1:
            raise ValueError(
                f"`growth` must be above 1, or the estimate could never grow from `start`; got {self.growth}. Infinity does "
                "not limit it."
            )
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1); got {self.decay}.")
        if self.stride < 1:
            raise ValueError(f"`stride` must be at least 1, which takes every entry; got {self.stride}.")


class Prodigy(torch.optim.Optimizer):
    """Adam with a step size that needs no tuning, with decoupled weight decay.

    Args:
        params: parameters or groups, as for torch.optim.
        lr: a factor on the estimated step size, for schedules; leave it at 1. Groups may have rates of their own, which act as
            if their parameters were measured in units of their rate; a group of rate 0 stays as it is.
        betas: decay of the running mean of gradients and of their squares; a first of 0 keeps no mean.
        eps: guards the division, relative to the distance.
        weight_decay: weights shrink by `step size * weight_decay` a step.
        bias_correction: Adam's, which raises the first steps.
        estimate: of the distance; its `stride` decides how much memory the state takes.

    Attributes:
        estimate: as given.
        replayable: False.

    `step(closure)` takes an Objective, a closure of torch.optim, or nothing where the gradients are there already. The present
    estimate is `param_groups[0]["d"]`.

    Raises:
        ValueError: a wrong setting; parameters in float16 (squared gradients times D**2 would vanish), complex or sharded ones;
            at a step, sparse gradients.

    Cost: one pass over gradients, state and weights, and one transfer of two numbers to the host a step; state of
    2 + 2 / stride numbers an entry, and some MB of passing memory.
    Source: Mishchenko and Defazio 2023 (arXiv 2306.06101), algorithm 4, as its authors' `prodigyopt` has it. It differs from
    that package in three ways: groups may have different rates, weights of a group of rate 0 do not decay, and without a mean
    of gradients the step goes by the estimate before it, as in the paper.
    """

    replayable = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        estimate: DistanceEstimate | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0; got {value}.")
        if not 0 < eps < math.inf:
            raise ValueError(f"`eps` must be a finite positive number; got {eps}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"`betas` must be two numbers in [0, 1); got {betas}.")
        self.estimate = DistanceEstimate() if estimate is None else estimate
        start = self.estimate.start
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "d": start,
            "d_max": start,
            "d_numerator": 0.0,
            "k": 0,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in torch.optim; it goes by the distance as estimated so far."""
        if self.param_groups:
            shared = {name: self.param_groups[0][name] for name in ("d", "d_max", "d_numerator", "k")}
            param_group = param_group | shared
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            _check(parameter)

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], Float[Tensor, ""]] | None = None
    ) -> Float[Tensor, ""] | None:
        """One step; returns the loss of the closure.

        Raises:
            NonFiniteLossError: the sums are not finite; weights are as they were.
        """
        loss = None
        if closure is not None:
            if not callable(closure):
                raise ValueError(
                    "Prodigy.step needs an Objective, a closure that fills the gradients, or nothing where they are filled; "
                    f"got a {type(closure).__name__}."
                )
            with torch.enable_grad():
                loss = closure()
        shared = self.param_groups[0]
        lr = max(float(group["lr"]) for group in self.param_groups)
        active = [bucket for group in self.param_groups if group["lr"] > 0 for bucket in self._buckets(group)]
        if not active:
            return loss
        beta3 = math.sqrt(shared["betas"][1]) if self.estimate.decay is None else self.estimate.decay
        scale = shared["d"] * _bias_correction(shared)
        inner, norm = self._accumulate(active, scale, lr, beta3)
        weight = shared["d"] / self.estimate.start * scale * lr
        numerator = beta3 * shared["d_numerator"] + weight * inner
        if norm == 0:
            return loss
        if not math.isfinite(numerator) or not math.isfinite(norm):
            raise NonFiniteLossError(
                f"Prodigy's sums at step {shared['k']} are not finite: a gradient is not, or the loss falls without end. The "
                "step was not applied, but the running means are lost. Start again from a save, with clipped gradients or a "
                "smaller `coefficient`."
            )
        d, d_max = self._next(shared["d"], shared["d_max"], numerator / norm)
        for bucket in active:
            _move(bucket, scale * float(bucket.group["lr"]), d)
        for group in self.param_groups:
            group.update(d=d, d_max=d_max, d_numerator=numerator, k=group["k"] + 1)
        return loss

    def _next(self, d: float, d_max: float, ratio: float) -> tuple[float, float]:
        """The next estimate, and the largest that was seen."""
        found = self.estimate.coefficient * ratio
        if d == self.estimate.start:
            d = max(d, found)
        d_max = max(d_max, found)
        return min(d_max, d * self.estimate.growth), d_max

    def _buckets(self, group: dict[str, Any]) -> Iterator["_Bucket"]:
        """The parameters of a group that have gradients, a bounded number of entries at a time; makes their state."""
        pending: list[dict[str, Tensor]] = []
        count = 0
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(parameter.shape)} is sparse, and Prodigy's sums run over all "
                    "entries. Make the embedding with `sparse=False`, or train it with SparseAdam."
                )
            if not self.state[parameter]:
                self._begin(parameter, group)
            if pending and pending[0]["p"].device != parameter.device:
                yield _Bucket(group=group, pieces=pending)
                pending, count = [], 0
            limit = _CACHED_ENTRIES if parameter.device.type == "cpu" else _BUCKET_ENTRIES
            tensors = {"p": parameter.detach(), "grad": parameter.grad, **self.state[parameter]}
            for piece in _pieces(tensors, limit, self.estimate.stride):
                pending.append(piece)
                count += piece["p"].numel()
                if count >= limit:
                    yield _Bucket(group=group, pieces=pending)
                    pending, count = [], 0
        if pending:
            yield _Bucket(group=group, pieces=pending)

    def _begin(self, parameter: Tensor, group: dict[str, Any]) -> None:
        sample = _sample(parameter, self.estimate.stride)
        state = self.state[parameter]
        state["s"], state["p0"] = torch.zeros_like(sample), sample.clone()
        if group["betas"][0] > 0:
            state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _accumulate(self, buckets: Sequence["_Bucket"], scale: float, lr: float, beta3: float) -> tuple[float, float]:
        """Moves all running means on; returns <g, x0 - x> and the sum of |s|, over the sampled entries."""
        estimate, sums = self.estimate, []
        for bucket in buckets:
            d, share = bucket.group["d"], float(bucket.group["lr"]) / lr
            _moments(bucket, d)
            gradients, now = ([_sample(t, estimate.stride) for t in bucket.of(name)] for name in ("grad", "p"))
            totals = bucket.of("s")
            torch._foreach_mul_(totals, beta3)
            weight = d / estimate.start * share * (d if estimate.unscaled else scale * lr)
            torch._foreach_add_(totals, gradients, alpha=weight)
            ways = torch._foreach_sub(bucket.of("p0"), now)
            inner = [_dot(gradient, way) for gradient, way in zip(gradients, ways, strict=True)]
            norms = [total.abs().sum(dtype=_precise(total)) for total in totals]
            sums.append(torch.stack((torch.stack(inner).sum(), torch.stack(norms).sum())))
        device = sums[0].device
        inner, norm = torch.stack([one.to(device) for one in sums]).sum(0).tolist()
        return inner, norm


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Parts of parameters of a group that are worked on at once, with their gradients and state, by name."""

    group: dict[str, Any]
    pieces: list[dict[str, Tensor]]

    def of(self, name: str) -> list[Tensor]:
        return [piece[name] for piece in self.pieces]


def _pieces(tensors: dict[str, Tensor], limit: int, stride: int) -> Iterator[dict[str, Tensor]]:
    """A parameter with its gradient and state, in flat views of about `limit` entries where memory allows."""
    length = stride * max(1, limit // stride)
    if tensors["p"].numel() <= length or not all(tensor.is_contiguous() for tensor in tensors.values()):
        yield tensors
        return
    sampled = {"s", "p0"}
    parts = {n: t.view(-1).split(length // stride if n in sampled else length) for n, t in tensors.items()}
    for number in range(len(parts["p"])):
        yield {name: part[number] for name, part in parts.items()}


def _check(parameter: Tensor) -> None:
    from torch.distributed.tensor import DTensor  # takes long to import

    if isinstance(parameter, DTensor):
        raise ValueError(
            "a parameter is sharded, and Prodigy's step size is a sum over all shards, which it does not gather. Let each "
            "process hold the whole model (ddp), or use AdamW."
        )
    if parameter.dtype == torch.float16 or parameter.is_complex():
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} is {str(parameter.dtype).removeprefix('torch.')}; Prodigy needs "
            "real numbers with the range of float32, as its running squares start below 1e-12. Keep the weights in float32 "
            "or bfloat16, and compute in float16 by autocast."
        )


def _bias_correction(group: dict[str, Any]) -> float:
    if not group["bias_correction"]:
        return 1.0
    beta1, beta2 = group["betas"]
    return math.sqrt(1 - beta2 ** (group["k"] + 1)) / (1 - beta1 ** (group["k"] + 1))


def _sample(tensor: Tensor, stride: int) -> Tensor:
    """Every `stride`-th entry, flat; a view where the memory allows."""
    flat = tensor.detach().reshape(-1)
    return flat if stride == 1 else flat[::stride]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product, in float32 at least."""
    return torch.dot(a.to(_precise(a)), b.to(_precise(b)))


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _moments(bucket: _Bucket, d: float) -> None:
    """Running means of the gradient times d, and of its square times d**2."""
    beta1, beta2 = bucket.group["betas"]
    grads = bucket.of("grad")
    if beta1 > 0:
        means = bucket.of("exp_avg")
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=d * (1 - beta1))
    squares = bucket.of("exp_avg_sq")
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=d * d * (1 - beta2))


def _move(bucket: _Bucket, rate: float, d: float) -> None:
    """Weight decay and Adam's step; `rate` is the step size that the estimate before this step gave."""
    before, params = bucket.group["d"], bucket.of("p")
    spreads = torch._foreach_sqrt(bucket.of("exp_avg_sq"))
    torch._foreach_add_(spreads, d * bucket.group["eps"])
    if decay := bucket.group["weight_decay"]:
        torch._foreach_mul_(params, 1 - decay * rate)
    if bucket.group["betas"][0] > 0:
        torch._foreach_addcdiv_(params, bucket.of("exp_avg"), spreads, value=-rate)
    else:
        torch._foreach_addcdiv_(params, bucket.of("grad"), spreads, value=-rate * before)

"""AGZO: the directions of a layer lie in the span of its own inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.overrides import TorchFunctionMode

from featherlight.functional import SignStream, random_signs
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.evaluation import Slopes
from featherlight.optim.zeroth_order.guards import check_positive, require_finite, require_finite_rates, to_float32
from featherlight.optim.zeroth_order.layout import Call, is_metadata
from featherlight.optim.zeroth_order.normalization import SpreadNormalized
from featherlight.optim.zeroth_order.perturbed_forward import PerturbedForward
from featherlight.optim.zeroth_order.recorded import RecordedOptimizer
from featherlight.optim.zeroth_order.targets import Directions, Target
from featherlight.optim.zeroth_order.update import StepRecord, quantize_coefficients

_INPUTS_DOMAIN = 1 << 30


class AGZO(RecordedOptimizer):
    """Forward-only SGD along `left inputs^T`: random signs for the outputs of a layer, a random mixture of its inputs.

    The gradient of a product's weight is a sum over rows of the batch, `sum_n delta_n input_n^T`, so it lies in the span of
    the inputs, and a direction outside of it is wasted. A first forward pass at the weights gives their loss and mixes
    the inputs of every layer with random signs, `sum_n sign_n input_n`, which favours the directions in which inputs are
    large; the mixture is scaled to entries of mean square 1. A second one along the directions gives the slope.
    Parameters that are not used in products with activations alone (tables, biases, norms, convolutions) keep signs.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        sigma: scale of the perturbation.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all random signs.
        meter: counts random words and weight passes.

    Attributes:
        sigma: scale of the perturbation.
        mean_square: running mean square of the slopes, of `normalize`.

    `step(objective)` returns the loss at the weights. Cost: two forward passes and one pass over the trained weights;
    memory beyond inference: one vector of inputs a layer. Not replayable: the directions are not known without the data.
    Source: Lin et al. 2026, arXiv 2601.17261. There the inputs' leading directions come from a power iteration and the
    left factors are Gaussian; a random mixture is its first iterate at rank one.
    """

    replayable = False
    """Its directions depend on the data, so a run of it is saved and has no journal."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        sigma: float = 1e-3,
        normalize: SpreadNormalized | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        meter: Meter | None = None,
    ) -> None:
        check_positive("lr", lr, allow_zero=True)
        check_positive("sigma", sigma)
        check_positive("weight_decay", weight_decay, allow_zero=True)
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(model, params, defaults, seed=seed, journal=None, meter=meter)
        self.sigma = sigma
        self.normalize = normalize
        self.mean_square = 0.0

    @torch.no_grad()
    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        by_id = {id(target.parameter): target for target in self.targets}
        directions = Directions(self.targets, stream, 1)
        with _MixInputs(by_id, stream) as mixing:
            here = objective.value().double()
        for target, side, mixture in mixing.mixtures():
            directions.give(target, side, mixture)
        self.meter.random_words += mixing.num_words
        with PerturbedForward(by_id, directions, self.sigma) as forward:
            there = objective.value().double()
        require_finite(torch.stack((here, there)), stream.step)
        return Slopes(((there - here) / self.sigma).reshape(1), here, directions, forward.touched)

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        spread = 1.0
        if self.normalize is not None:
            mean_square = self.normalize.next(self.mean_square, coefficients, scale)
            spread = self.normalize.spread(mean_square, self.steps_done + 1) or float("inf")
        rates = tuple(to_float32(group["lr"] * group["scale"] * scale / spread) for group in self.param_groups)
        require_finite_rates(scale, rates, self.steps_done)
        return StepRecord(
            step=self.steps_done,
            seed=self.seed,
            scale=scale,
            rates=rates,
            decays=tuple(to_float32(1 - group["lr"] * group["weight_decay"]) for group in self.param_groups),
            coefficients=coefficients,
        )

    def _remember(self, record: StepRecord) -> None:
        if self.normalize is not None:
            self.mean_square = self.normalize.next(self.mean_square, record.coefficients, record.scale)

    def _own_state(self) -> dict[str, Any]:
        return {"mean_square": self.mean_square}

    def _take_state(self, state: dict[str, Any]) -> None:
        self.mean_square = state["mean_square"]


class _MixInputs(TorchFunctionMode):
    """Adds up the inputs of every product with a trained matrix, each row with a random sign, as the model runs.

    Args:
        targets: the trained parameters by `id`.
        stream: seed and step.
    """

    def __init__(self, targets: Mapping[int, Target], stream: SignStream) -> None:
        super().__init__()
        self.num_words = 0
        self._targets = targets
        self._stream = stream
        self._sums: dict[tuple[int, Literal["left", "right"]], Tensor] = {}
        self._num_calls: dict[int, int] = {}
        self._elsewhere: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.find(self._targets, func, args, kwargs)
        if call is not None and not is_metadata(func):
            self._note(call, func, args, kwargs)
        return func(*args, **kwargs)

    def mixtures(self) -> list[tuple[Target, Literal["left", "right"], Float[Tensor, "1 N"]]]:
        """Of every matrix used in products alone, and always on the same side of its inputs: entries of mean square 1."""
        by_index = {target.index: target for target in self._targets.values()}
        sides = [index for index, _ in self._sums]
        alone = {key: one for key, one in self._sums.items() if sides.count(key[0]) == 1}
        return [
            (by_index[index], side, (mixture / size)[None])
            for (index, side), mixture in alone.items()
            if index not in self._elsewhere and 0 < (size := float(mixture.square().mean().sqrt())) < float("inf")
        ]

    def _note(self, call: Call, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        matrices = [target for target in call.targets if target.columns]
        product = None if call.rule is None else _product(func, args, kwargs)
        if product is None:
            self._elsewhere |= {target.index for target in matrices}
            return
        inputs, weight, side = product
        target = self._targets.get(id(weight))
        if target is not None:
            self._add(target, side, inputs.detach())

    def _add(self, target: Target, side: Literal["left", "right"], inputs: Tensor) -> None:
        number = self._num_calls[target.index] = self._num_calls.get(target.index, -1) + 1
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        rows = inputs.reshape(-1, inputs.shape[-1])
        parameter = target.index | _INPUTS_DOMAIN
        signs = random_signs((len(rows),), stream=self._stream, parameter=parameter, direction=number, dtype=rows.dtype)
        self.num_words += -(-len(rows) // 128) * 4
        with torch.autocast(rows.device.type, enabled=False):
            mixed = (signs.to(rows.device) @ rows).to(dtype)
        before = self._sums.get((target.index, side))
        self._sums[target.index, side] = mixed if before is None else before + mixed


def _product(
    func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, Literal["left", "right"]] | None:
    """The inputs, the weight, and which factor of its direction stands against the inputs; None for another function."""
    names: dict[Callable[..., Any], tuple[tuple[str, ...], Literal["left", "right"]]] = {
        F.linear: (("input", "weight"), "right"),
        torch.addmm: (("input", "mat1", "mat2"), "left"),
        torch.matmul: (("input", "other"), "left"),
        Tensor.matmul: (("input", "other"), "left"),
        Tensor.__matmul__: (("input", "other"), "left"),
    }
    if func not in names:
        return None
    arguments, side = names[func]
    given = dict(zip(arguments, args, strict=False)) | kwargs
    inputs, weight = (given[name] for name in arguments[-2:])
    return inputs, weight, side

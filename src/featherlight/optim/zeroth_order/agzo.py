"""AGZO: the directions of a layer lie in the span of its own inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.overrides import TorchFunctionMode

from featherlight.functional import SIGNS_PER_BLOCK, SignStream, random_signs
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.evaluation import Slopes
from featherlight.optim.zeroth_order.guards import check_positive, require_finite
from featherlight.optim.zeroth_order.layout import Call, is_metadata
from featherlight.optim.zeroth_order.normalization import SpreadNormalized
from featherlight.optim.zeroth_order.perturbed_forward import PerturbedForward
from featherlight.optim.zeroth_order.recorded import RecordedOptimizer
from featherlight.optim.zeroth_order.targets import Directions, Target
from featherlight.optim.zeroth_order.update import StepRecord, quantize_coefficients

_INPUTS_DOMAIN = 1 << 30
_IN_THE_BASIS = 1 << 30


class AGZO(RecordedOptimizer):
    """Forward-only SGD along `left inputs^T`: random signs for the outputs of a layer, and a vector in the span of its inputs.

    The gradient of a product's weight is a sum over rows of the batch, `sum_n delta_n input_n^T`, so it lies in the span of
    the inputs, and a direction outside of it is wasted. A first forward pass at the weights gives their loss and mixes
    the inputs of every layer `rank` times with random signs, `sum_n sign_n input_n`, which favours the directions in which
    inputs are large. The vector is a random combination of an orthonormal basis of the mixtures, scaled to entries of
    mean square 1. A second pass along the directions gives the slope. Parameters that are not used in products with
    activations alone (tables, biases, norms, convolutions) keep signs.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        rank: mixtures a layer. Few point along the largest inputs, which the slopes then hardly look beyond; from as many as
            the batch has rows on, all directions in their span are equally likely.
        sigma: scale of the perturbation.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all random signs.
        meter: counts random words and weight passes.

    Attributes:
        rank: mixtures a layer.
        sigma: scale of the perturbation.
        mean_square: running mean square of the slopes, of `normalize`.

    `step(objective)` returns the loss at the weights. Cost: two forward passes and one pass over the trained weights;
    memory beyond inference: `rank` vectors of inputs a layer. Not replayable: the directions are not known without the data.
    Source: Lin et al. 2026, arXiv 2601.17261. There the basis is that of a power iteration, of which the mixtures are the
    first iterate, and directions have its rank, with Gaussian factors; here they have rank one.
    """

    replayable = False
    """Its directions depend on the data, so a run of it is saved and has no journal."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        rank: int = 8,
        *,
        sigma: float = 1e-3,
        normalize: SpreadNormalized | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        meter: Meter | None = None,
    ) -> None:
        check_positive("sigma", sigma)
        if rank < 1:
            raise ValueError(f"`rank` must be at least 1 mixture of a layer's inputs; got {rank}.")
        super().__init__(model, params, lr, weight_decay, normalize=normalize, seed=seed, journal=None, meter=meter)
        self.rank = rank
        self.sigma = sigma

    @torch.no_grad()
    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        by_id = {id(target.parameter): target for target in self.targets}
        directions = Directions(self.targets, stream, 1)
        with _MixInputs(by_id, stream, self.rank) as mixing:
            here = objective.value().double()
        for target, side, vector in mixing.vectors():
            directions.give(target, side, vector)
        self.meter.random_words += mixing.num_words
        with PerturbedForward(by_id, directions, self.sigma) as forward:
            there = objective.value().double()
        require_finite(torch.stack((here, there)), stream.step)
        return Slopes(((there - here) / self.sigma).reshape(1), here, directions, forward.touched)

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        return self._new_record(coefficients, scale, self._rates(scale / self._spread(coefficients, scale)))


class _MixInputs(TorchFunctionMode):
    """Adds up the inputs of every product with a trained matrix, each row with random signs, as the model runs.

    Args:
        targets: the trained parameters by `id`.
        stream: seed and step.
        rank: sums a matrix.
    """

    def __init__(self, targets: Mapping[int, Target], stream: SignStream, rank: int) -> None:
        super().__init__()
        self._rank = rank
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

    def vectors(self) -> list[tuple[Target, Literal["left", "right"], Float[Tensor, "1 N"]]]:
        """One in the span of the inputs of every matrix that is used in products alone, always on the same side of them."""
        by_index = {target.index: target for target in self._targets.values()}
        sides = [index for index, _ in self._sums]
        return [
            (by_index[index], side, vector[None])
            for (index, side), mixtures in self._sums.items()
            if sides.count(index) == 1
            and index not in self._elsewhere
            and (vector := self._combined(index, mixtures)) is not None
        ]

    def _combined(self, index: int, mixtures: Float[Tensor, "J N"]) -> Float[Tensor, "N"] | None:
        """A random combination of an orthonormal basis of the mixtures; None where they are zero or not finite."""
        if not torch.isfinite(mixtures).all():
            return None
        basis = _orthonormal(mixtures)
        if not len(basis):
            return None
        signs = self._signs((len(basis),), index, _IN_THE_BASIS, mixtures)
        return signs @ basis * (basis.shape[1] / len(basis)) ** 0.5

    def _signs(self, shape: tuple[int, ...], index: int, number: int, like: Tensor) -> Tensor:
        self.num_words += -(-math.prod(shape) // SIGNS_PER_BLOCK) * 4
        parameter = index | _INPUTS_DOMAIN
        return random_signs(shape, stream=self._stream, parameter=parameter, direction=number, dtype=like.dtype).to(
            like.device
        )

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
        signs = self._signs((self._rank, len(rows)), target.index, number, rows)
        with torch.autocast(rows.device.type, enabled=False):
            mixed = (signs @ rows).to(dtype)
        before = self._sums.get((target.index, side))
        self._sums[target.index, side] = mixed if before is None else before + mixed


def _orthonormal(vectors: Float[Tensor, "J N"]) -> Float[Tensor, "I N"]:
    """A basis of the span, without what is within rounding of the vectors before it (Gram-Schmidt, each step twice)."""
    basis = vectors.new_zeros(0, vectors.shape[1])
    for vector in vectors:
        rest = vector
        for _ in range(2):
            rest = rest - (basis @ rest) @ basis
        if rest.norm() > torch.finfo(vectors.dtype).eps ** 0.5 * vector.norm():
            basis = torch.cat((basis, (rest / rest.norm())[None]))
    return basis


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

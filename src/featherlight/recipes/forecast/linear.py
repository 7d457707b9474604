"""The linear rival of a forecaster: outputs from past outputs and inputs by least squares, its order chosen by validation.

Legend of shapes: T samples, F inputs, K outputs, P past values and a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.recipes.forecast.records import Record, Records

_ORDERS = tuple((past, inputs) for past in (0, 1, 2, 4, 8) for inputs in (2, 4, 8, 16, 64))


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """`y_t = sum_i y_{t-i} A_i + sum_j u_{t-j} B_j + c`, run on its own outputs.

    Attributes:
        past: outputs that are looked back at, from 1 on; 0 is a finite impulse response.
        inputs: inputs that are looked back at, from 0 on.
        weights: A, B and c, one below the other, (P, K), float64.
    """

    past: int
    inputs: int
    weights: Float[Tensor, "P K"]

    def simulate(self, inputs_TF: Float[Tensor, "T F"]) -> Float[Tensor, "T K"]:
        """Outputs of a record from its inputs alone; what is before its first sample is the first input, and no output.

        Cost: a step of a loop for each sample where past outputs are looked at.
        """
        num_outputs = self.weights.shape[1]
        own = self.weights[: self.past * num_outputs]
        driven_TK = _lagged_inputs(inputs_TF.double(), self.inputs) @ self.weights[len(own) :]
        if not self.past:
            return driven_TK
        lags_PK = own.view(self.past, num_outputs, num_outputs).flip(0).reshape(-1, num_outputs).numpy()
        told = np.zeros((self.past + len(driven_TK), num_outputs))
        for place, driven_K in enumerate(driven_TK.numpy()):
            told[self.past + place] = driven_K + told[place : self.past + place].ravel() @ lags_PK
        return torch.from_numpy(told[self.past :])


def fit_linear(records: Records, *, washout: int) -> LinearModel:
    """Least squares on the training record, of the order that tells the validation record best on its own outputs.

    Orders with more unknowns than equations are left out; where that leaves none, it is the smallest solution of the lowest.

    Args:
        records: of the system.
        washout: samples at the beginning that are not scored.

    Source: Ljung 1999, section 4.2 (ARX).
    """
    train = records.train
    told = [order for order in _ORDERS if len(train.outputs) >= _least_samples(train, *order)]
    models = [_fit(train, *order) for order in told or _ORDERS[:1]]
    errors = torch.tensor(
        [root_mean_square(one.simulate(records.valid.inputs), records.valid, washout) for one in models]
    )
    return models[int(errors.nan_to_num(nan=torch.inf).argmin())]


def root_mean_square(told_TK: Tensor, record: Record, washout: int) -> float:
    """Of the error after the washout, over all outputs."""
    return float((told_TK.double() - record.outputs.double())[washout:].square().mean().sqrt())


def _least_samples(record: Record, past: int, inputs: int) -> int:
    """As many equations as there are unknowns for each output, behind the samples that are looked back at."""
    return max(past, inputs) + past * record.outputs.shape[1] + inputs * record.inputs.shape[1] + 1


def _fit(record: Record, past: int, inputs: int) -> LinearModel:
    outputs_TK = record.outputs.double()
    lagged = [outputs_TK.roll(lag, 0) for lag in range(1, past + 1)]
    columns_TP = torch.cat([*lagged, _lagged_inputs(record.inputs.double(), inputs)], 1)
    first = max(past, inputs)
    columns_TP, wanted_TK = columns_TP[first:], outputs_TK[first:]
    weights_PK = torch.linalg.lstsq(columns_TP, wanted_TK, driver="gelsd").solution
    return LinearModel(past=past, inputs=inputs, weights=weights_PK)


def _lagged_inputs(inputs_TF: Tensor, count: int) -> Float[Tensor, "T P"]:
    """The input at 0 to `count` - 1 samples before, the first standing for all before it, and a constant."""
    place_T = torch.arange(len(inputs_TF))
    parts: Sequence[Tensor] = [inputs_TF[(place_T - lag).clamp(min=0)] for lag in range(count)]
    return torch.cat([*parts, torch.ones(len(inputs_TF), 1, dtype=inputs_TF.dtype)], 1)

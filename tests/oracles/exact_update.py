"""The update of a recorded step as one dense float64 formula, with directions from the integer oracle."""

import torch
from torch import Tensor

from featherlight.optim.zeroth_order import StepRecord, Target
from tests.oracles.philox import direction_of


def updated(target: Target, record: StepRecord) -> Tensor:
    """`W * decay - rate * sum_k c_k direction_k`, in float64; the sum is formed in integers."""
    shape = tuple(target.parameter.shape)
    total = torch.zeros(target.parameter.numel(), dtype=torch.int64)
    for number, coefficient in enumerate(record.coefficients.tolist()):
        signs = direction_of(
            shape,
            seed=record.seed,
            step=record.step,
            parameter=target.index,
            direction=0 if target.shared else number,
        )
        total += coefficient * torch.tensor(signs)
    weight = target.parameter.detach().double()
    rate, decay = record.rates[target.group], record.decays[target.group]
    return weight * decay - rate * total.reshape(shape).double()

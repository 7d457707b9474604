"""Laws of rounded networks: the simulation is the reference executor to the bit, and each output lies on its grid."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from featherlight.transforms.quantize import (
    ActivationGrid,
    Calibration,
    FakeQuantization,
    LeastSquares,
    MinMax,
    Percentile,
    simulated_integers,
    to_integer_program,
)
from featherlight.transforms.quantize.integer_executor import IntegerExecutor

RULES = (MinMax(), Percentile(share=0.99), LeastSquares(candidates=8))


class Net(nn.Module):
    """Two convolutions with a sum around the second, a mean and a linear layer."""

    def __init__(self, groups, stride, cut, norm):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=stride, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.relu = nn.ReLU6() if cut else nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=groups)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        return self.head((x + self.second(x)).mean((2, 3)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-3, 1.0, 50.0]),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 2),
    cut=st.booleans(),
    norm=st.booleans(),
    symmetric=st.booleans(),
    rule=st.sampled_from(RULES),
)
def test_the_simulation_is_the_executor_for_any_weights(seed, size, groups, stride, cut, norm, symmetric, rule):
    generator = torch.Generator().manual_seed(seed)
    model = Net(groups, stride, cut, norm).eval()
    for tensor in (*model.parameters(), *(one for name, one in model.named_buffers() if "mean" in name)):
        tensor.data = torch.randn(tensor.shape, generator=generator) * size
    x = torch.randn(5, 2, 6, 6, generator=generator)
    transform = FakeQuantization(
        example=x, activations=ActivationGrid(symmetric=symmetric), calibration=Calibration(batches=[x], ranges=rule)
    )
    try:
        transform.prepare(model)
    except ValueError as error:
        assume("is 0 on all calibration data" not in str(error))
        raise
    transform.update(model, 1.0)
    other = 2 * torch.randn(5, 2, 6, 6, generator=generator)
    with torch.no_grad(), simulated_integers(model):
        exact = model(other)
    assert torch.equal(exact, IntegerExecutor(to_integer_program(model))(other))

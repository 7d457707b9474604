"""Law: a perturbed evaluation equals the evaluation of a perturbed copy of the weights, for every kind of layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.optim import Central, OneSided, RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order import Difference
from tests.oracles.philox import direction_of
from tests.oracles.slopes import dense_estimate, fused_estimate, largest_difference, trained
from tests.unit.optim.zoo import CASES

FAMILIES = st.sampled_from([*map(RankOneSigns, (1, 2, 3, None)), WholeBatchSigns(2)])
DIFFERENCES = st.sampled_from([Central(), Central(), OneSided()])
SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("name", CASES)
@given(
    family=FAMILIES,
    difference=DIFFERENCES,
    micro_batch=st.sampled_from([None, 1, 2, 3]),
    sigma=st.floats(1e-3, 0.1),
    seed=SEEDS,
)
@settings(max_examples=6)
def test_fused_slopes_equal_dense_copies(
    name: str,
    family: RankOneSigns | WholeBatchSigns,
    difference: Difference,
    micro_batch: int | None,
    sigma: float,
    seed: int,
) -> None:
    model, objective = CASES[name].build(seed % 1000, micro_batch=micro_batch)
    targets = trained(model)
    draw = {"family": family, "difference": difference, "sigma": sigma, "seed": seed, "step": seed % 977}
    fused, loss = fused_estimate(objective, targets, **draw)
    dense, dense_loss = dense_estimate(objective, targets, **draw)
    assert largest_difference(fused, dense) < 1e-9
    torch.testing.assert_close(loss, dense_loss, rtol=1e-11, atol=0)
    assert all(float(tensor.abs().max()) > 0 for tensor in fused), "no parameter may be left out"


PER_EXAMPLE = ["linear", "linear on sequences", "conv2d", "conv2d over frames folded into rows", "embedding",
               "tied embedding and head", "layer norm", "group norm", "batch norm in eval mode", "sequence first",
               "Conv1D of transformers", "product from the right", "small image classifier"]  # fmt: skip


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_known_layers_give_each_example_a_direction_of_its_own(name: str) -> None:
    model, objective = CASES[name].build(1)
    targets = trained(model)
    fused_estimate(objective, targets, count=None, sigma=0.01, seed=2, step=3)
    assert [target.name for target in targets if target.shared] == []


@given(rows=st.integers(1, 300), columns=st.integers(1, 40), seed=SEEDS, step=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_directions_are_those_of_the_integer_oracle(rows: int, columns: int, seed: int, step: int) -> None:
    model = torch.nn.Linear(columns, rows)
    for number in (0, 5):
        dense = RankOneSigns().dense(trained(model), seed=seed, step=step, number=number)
        for index, (parameter, direction) in enumerate(zip(model.parameters(), dense, strict=True)):
            expected = direction_of(tuple(parameter.shape), seed=seed, step=step, parameter=index, direction=number)
            assert direction.flatten().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PER_EXAMPLE)
@pytest.mark.parametrize("count", [1, None])
def test_low_precision_differs_by_rounding_alone(name: str, dtype: torch.dtype, count: int | None) -> None:
    """Per-example slopes are differences of losses of order 3, so their error is a few eps / sigma of that."""
    sigma = 0.05
    model, objective = CASES[name].build(4, dtype=dtype)
    exact_model, exact = CASES[name].build(4)
    exact_model.load_state_dict(model.state_dict())
    exact.batch = {name: x.double() if x.is_floating_point() else x for name, x in objective.batch.items()}
    draw = {"count": count, "sigma": sigma, "seed": 11, "step": 0}
    targets, exact_targets = trained(model), trained(exact_model)
    fused, _ = fused_estimate(objective, targets, **draw)
    exact_fused, _ = fused_estimate(exact, exact_targets, **draw)
    num_directions = 1 if count == 1 else objective.num_examples
    bound = 40 * torch.finfo(dtype).eps / sigma / num_directions**0.5
    assert max(float((a - b).abs().max()) for a, b in zip(fused, exact_fused, strict=True)) < bound

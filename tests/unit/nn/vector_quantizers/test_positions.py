"""Layouts, masks and lengths: rows and back, and sentences for what does not fit."""

import pytest
import torch

from featherlight.nn.vector_quantizers.positions import lengths_to_mask, to_rows


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 5), -1), ((2, 3, 5), -1), ((2, 5, 3, 4), 1), ((5,), 0), ((2, 5, 0), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_and_back_are_the_input(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = to_rows(x, dim=5, channel_axis=axis)
    assert positions.rows_NF.shape == (x.numel() // 5, 5)
    assert positions.rows_NF.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    back = positions.to_values(positions.rows_NF)
    assert back.dtype == dtype
    assert torch.equal(back, x)
    assert positions.to_indices(torch.zeros(len(positions.rows_NF), 2)).shape == (*positions.shape, 2)


def test_masked_rows_have_no_share_even_if_they_are_nan() -> None:
    x = torch.ones(2, 5, 3, requires_grad=True)
    spoiled = torch.where(torch.tensor([True, True, False])[None, None], x, torch.nan)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    positions = to_rows(spoiled, dim=5, channel_axis=1, mask=mask)
    values = positions.to_values(positions.rows_NF * 2)
    assert torch.equal(values, 2.0 * mask[:, None].expand(2, 5, 3))
    assert torch.equal(positions.to_indices(torch.arange(6)), torch.tensor([[0, 1, -1], [3, -1, -1]]))
    assert torch.equal(positions.to_weights(torch.ones(6, 2)), mask[..., None].expand(2, 3, 2).float())
    loss = positions.mean(positions.rows_NF.square().sum(1))
    assert loss == 5.0
    assert positions.count() == 3
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad, (2.0 / 3.0) * mask[:, None].expand(2, 5, 3))
    assert to_rows(x, dim=5, channel_axis=1, mask=torch.zeros(2, 3).bool()).mean(torch.ones(6)) == 0.0


def test_lengths_become_a_mask() -> None:
    assert torch.equal(lengths_to_mask(torch.tensor([0, 2, 1])).int(), torch.tensor([[0, 0], [1, 1], [1, 0]]).int())
    assert lengths_to_mask(torch.tensor([1]), 4).shape == (1, 4)
    with pytest.raises(ValueError, match="from 0 to 3, the length of the batch; got 4 for sequence 1"):
        lengths_to_mask(torch.tensor([3, 4]), 3)
    with pytest.raises(ValueError, match="one whole number for each sequence"):
        lengths_to_mask(torch.tensor([3.0]), 3)


def test_what_does_not_fit_gets_a_sentence() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"5 features at axis -1; got 3 .* shape \(2, 5, 3\)\. Axis 1 has 5"):
        to_rows(x, dim=5)
    with pytest.raises(ValueError, match="no axis 3"):
        to_rows(x, dim=5, channel_axis=3)
    with pytest.raises(ValueError, match=r"float dtype; got torch\.int64"):
        to_rows(x.long(), dim=3)
    with pytest.raises(ValueError, match=r"without its features \(axis 1\): \(2, 3\); got \(2, 5\)"):
        to_rows(x, dim=5, channel_axis=1, mask=torch.ones(2, 5).bool())
    with pytest.raises(ValueError, match="must be bool"):
        to_rows(x, dim=5, channel_axis=1, mask=torch.ones(2, 3))
    x[1, 4, 2] = torch.nan
    with pytest.raises(ValueError, match=r"position \(1, 2\) is not finite: feature 4 is nan, and 1 of 6"):
        to_rows(x, dim=5, channel_axis=1)


def test_great_sums_of_finite_values_are_no_error() -> None:
    assert to_rows(torch.full((4, 2), 3e38), dim=2).rows_NF.shape == (4, 2)

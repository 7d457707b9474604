"""Bad models and bad data get a sentence."""

import pytest
import torch
from torch import nn

from featherlight.nn.models import LeNet5
from featherlight.transforms.quantize import (
    ActivationGrid,
    Calibration,
    FakeQuantization,
    LeastSquares,
    MinMax,
    MovingAverage,
    Percentile,
    Timetable,
    WeightGrid,
    quantize_after_training,
    to_integer_program,
)

X = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Odd(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.call = call

    def forward(self, x):
        return self.call(self.layer, x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
            r"layer `1` \(GroupNorm\) has no integer form.*keep_float=\(.1.,\)",
        ),
        (nn.Sequential(Branches()), "the layer `0` cannot be traced with an example of shape"),
        (nn.Sequential(nn.Conv2d(3, 4, 1, padding_mode="reflect")), "its padding is 'reflect'"),
        (nn.Sequential(nn.Conv2d(1, 4, 1)), "cannot be traced with an example of shape"),
        (Odd(lambda layer, x: layer(layer(x))), "it is used more than once"),
        (Odd(lambda layer, x: layer(x) * x), "mul of two values"),
        (Odd(lambda layer, x: layer(x).reshape(-1, 3)), "mixes examples of a batch"),
        (Odd(lambda layer, x: torch.cat([layer(x), x], 0)), "it joins examples"),
        (Odd(lambda layer, x: layer(x).mean(0)), "mean over the axes 0"),
        (Odd(lambda layer, x: torch.zeros(1)), "must return one tensor that depends on its input"),
        (Odd(lambda layer, x: torch.fft.fft(layer(x)).real), "nothing is known of `fft_fft`"),
        (nn.Sequential(LeNet5()), "cannot be traced"),
    ],
)
def test_models_without_an_integer_form_are_refused_by_the_name_of_the_layer(model, message):
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        FakeQuantization(example=X).prepare(model)
    assert list(model.state_dict()) == keys


def layer():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the calibration data are empty"),
        ([X, X[:0]], "the calibration data are empty"),
        ([X, X / 0], "batch 1 of the calibration data holds NaN or infinite"),
        ([X, X[:, :, :5]], r"calibration data have the shape \(4, 3, 5, 6\).*\(3, 6, 6\)"),
        ([X, X[:, :2]], r"calibration data have the shape \(4, 2, 6, 6\)"),
    ],
)
def test_bad_calibration_data_get_a_sentence_and_leave_the_model_alone(batches, message):
    model = layer()
    with pytest.raises(ValueError, match=message):
        quantize_after_training(model, Calibration(batches=batches))
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    assert "forward" not in vars(model)


def test_layers_that_are_dead_or_not_finite_on_the_data_are_named():
    model = layer()
    model[0].bias.data.fill_(-100.0)
    with pytest.raises(ValueError, match="`_0` is 0 on all calibration data"):
        quantize_after_training(model, Calibration(batches=[X]))
    model[0].bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="`_0` is not finite on the calibration data"):
        quantize_after_training(model, Calibration(batches=[X]))


def test_constant_channels_are_as_good_as_others():
    model = layer()
    model[0].weight.data[0] = 0.0
    model[0].weight.data[1] = 0.5
    model[0].bias.data[:2] = torch.tensor([1.0, 0.0])
    x = X.clone()
    x[:, 1] = 0.25
    plain = model(x)
    quantize_after_training(model, Calibration(batches=[x], ranges=MinMax()))
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0.02)
    to_integer_program(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightGrid(bits=1), "`bits` of weights must be from 2 to 8"),
        (lambda: ActivationGrid(bits=9), "`bits` of activations"),
        (lambda: Timetable(activations_after=0.5, freeze_after=0.2), "in this order"),
        (lambda: Percentile(share=0.3), "`share` must lie in"),
        (lambda: LeastSquares(candidates=1), "`candidates` must be at least 2"),
        (lambda: MovingAverage(momentum=0.0), "`momentum` must lie in"),
        (lambda: FakeQuantization(example=X, keep_float=("none",)).prepare(layer()), "`keep_float` names 'none'"),
        (lambda: to_integer_program(layer()), "is not prepared for quantization"),
    ],
)
def test_choices_that_there_are_not(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_is_prepared_once_and_lowered_when_it_has_ranges():
    model = layer()
    transform = FakeQuantization(example=X)
    transform.prepare(model)
    with pytest.raises(ValueError, match="it was prepared before"):
        transform.prepare(model)
    with pytest.raises(ValueError, match=r"the range of `.*` is not known"):
        to_integer_program(model)

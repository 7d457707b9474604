from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as peer
from torch import Tensor

from featherlight.data import METRICS, confusion, metric

PAIRS = st.integers(2, 5).flatmap(
    lambda num_classes: st.lists(
        st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1)), min_size=1, max_size=40
    )
)
FLOATS = st.floats(-100, 100, width=32)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_class_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]):
    predictions, targets = torch.tensor(pairs).unbind(1)
    average = "binary" if max(map(max, pairs)) <= 1 else "macro"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": peer.accuracy_score(targets, predictions),
            "f1": peer.f1_score(targets, predictions, average=average, zero_division=0.0),
            "mcc": peer.matthews_corrcoef(targets, predictions),
        }
    for name, value in expected.items():
        assert metric(name, predictions, targets) == pytest.approx(value, abs=1e-12), name
    counts = confusion(predictions, targets, 5)
    assert counts.tolist() == peer.confusion_matrix(targets, predictions, labels=range(5)).tolist()
    assert counts.dtype == torch.int64


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(FLOATS, FLOATS), min_size=3, max_size=40))
def test_pearson_agrees_with_scipy(pairs: list[tuple[float, float]]):
    x, y = torch.tensor(pairs).unbind(1)
    value = metric("pearson", x, y)
    if len(set(x.tolist())) == 1 or len(set(y.tolist())) == 1:
        assert math.isnan(value)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stats.pearsonr(x.double().numpy(), y.double().numpy()).statistic
    assert value == pytest.approx(expected, abs=1e-7, nan_ok=True)


def test_what_is_not_defined():
    constant, targets = torch.ones(4, dtype=torch.int64), torch.tensor([0, 1, 1, 0])
    assert metric("mcc", constant, targets) == 0.0
    assert metric("mcc", targets, constant) == 0.0
    assert metric("f1", torch.zeros_like(targets), torch.zeros_like(targets)) == 0.0
    assert math.isnan(metric("pearson", constant.float(), targets.float()))
    assert math.isnan(metric("pearson", torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0])))


def test_perfect_and_opposite():
    targets = torch.tensor([0, 1, 1, 0, 2])
    assert {name: metric(name, targets, targets) for name in METRICS} == pytest.approx(dict.fromkeys(METRICS, 1.0))
    binary = targets.clamp(max=1)
    assert metric("mcc", 1 - binary, binary) == pytest.approx(-1.0)
    assert metric("accuracy", 1 - binary, binary) == 0.0


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "message"),
    [
        ("acuracy", torch.zeros(2), torch.zeros(2), r"no metric 'acuracy'; there are .*Did you mean 'accuracy'\?"),
        ("f1", torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), r"got shapes \(2,\) and \(3,\)"),
        ("pearson", torch.zeros(2, 1), torch.zeros(2, 1), r"got shapes \(2, 1\)"),
        ("accuracy", torch.zeros(0), torch.zeros(0), "at least 1"),
        ("mcc", torch.rand(3), torch.zeros(3, dtype=torch.int64), r"`predictions` must be class ids.* torch.float32"),
        ("mcc", torch.tensor([0, -1]), torch.tensor([0, 1]), r"`predictions` must lie in 0\.\.1.* got -1 to 0"),
    ],
)
def test_bad_pairs_are_refused_with_a_sentence(name: str, predictions: Tensor, targets: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        metric(name, predictions, targets)


def test_an_id_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"`targets` must lie in 0\.\.1, .* got 0 to 2"):
        confusion(torch.tensor([0, 1]), torch.tensor([0, 2]), 2)

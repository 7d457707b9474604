from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.data import Labels

VALUES = st.one_of(st.text("abc é", min_size=1).filter(str.strip), st.integers(-99, 99), st.booleans())


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        ([2, 0, 10, 1], ("0", "1", "2", "10")),
        (["2", "0", "10", "1"], ("0", "1", "2", "10")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "0.0"], ("0", "1")),
        ([True, False], ("False", "True")),
        ([-1, 1], ("-1", "1")),
        (list(np.array([3, 1])), ("1", "3")),
        ([0, "1", "other"], ("0", "1", "other")),
        ([*range(120)] * 2, tuple(map(str, range(120)))),
    ],
)
def test_classes_are_ordered_and_numbered(values: list[Any], names: tuple[str, ...]):
    labels = Labels.fit(values)
    assert (labels.names, labels.num_outputs, labels.is_regression) == (names, len(names), False)
    ids = labels.encode(values)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(values),)
    assert labels.encode([names[i] for i in ids]).equal(ids)


@settings(deadline=None)
@given(values=st.lists(VALUES, min_size=2, max_size=30).filter(lambda values: len({str(v) for v in values}) > 1))
def test_labels_survive_a_configuration_file(values: list[Any]):
    labels = Labels.fit(values, regression=False)
    config = json.loads(json.dumps({"id2label": labels.id2label, "label2id": labels.label2id}))
    again = Labels.from_config(config)
    assert again == labels
    assert again.encode(values).equal(labels.encode(values))
    assert [again.id2label[i] for i in again.encode(values).tolist()] == [str(value) for value in values]


def test_a_class_reads_the_same_from_every_format():
    labels = Labels.fit([0, 1, 2])
    for values in ([0, 1, 2], ["0", "1", "2"], [0.0, 1.0, 2.0], ["0.0", "1.0", "2.0"], np.arange(3)):
        assert labels.encode(values).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "regression", "expected"),
    [
        ([4.5, 1.0, 3], None, True),
        (["4.5", "1", "3e0"], None, True),
        ([1, 2, 3], None, False),
        ([1, 2, 3], True, True),
        ([4.5, 1.0], False, False),
        ([0.5, "a"], None, False),
        ([*range(1000)], True, True),
        ([*range(1000)], False, False),
        ([*range(100), *range(100)], None, False),
    ],
)
def test_regression_is_told_from_values_unless_said(values: list[Any], regression: bool | None, expected: bool):
    assert Labels.fit(values, regression=regression).is_regression is expected


def test_a_regression_encodes_numbers():
    labels = Labels.fit([4.5, 1.0])
    assert (labels.num_outputs, labels.id2label, labels.label2id) == (1, {0: "value"}, {"value": 0})
    targets = labels.encode([1, "2.5", np.float32(3.0)])
    assert targets.dtype == torch.float32
    assert targets.tolist() == [1.0, 2.5, 3.0]
    assert Labels.from_config({"id2label": labels.id2label}) == labels


@pytest.mark.parametrize(
    ("config", "names", "is_regression"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ("0", "1"), False),
        ({"num_labels": 3}, ("0", "1", "2"), False),
        ({"id2label": {1: "b", 0: "a"}, "num_labels": 2}, ("a", "b"), False),
        ({"num_labels": 1}, ("value",), True),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, ("value",), True),
    ],
)
def test_configurations_of_others(config: dict[str, Any], names: tuple[str, ...], is_regression: bool):
    assert Labels.from_config(config) == Labels(names=names, is_regression=is_regression)


def test_a_hugging_face_configuration_keeps_the_classes():
    from transformers import BertConfig

    labels = Labels.fit(["b", "a", "c"])
    config = BertConfig(id2label=labels.id2label, label2id=labels.label2id)
    assert config.num_labels == 3
    assert Labels.from_config(json.loads(config.to_json_string())) == labels


BAD_FITS = {
    "none": ([], None, "col has no rows"),
    "missing": (["a", None, "b", math.nan, " "], None, r"lacks a label .* in 3 of 5 rows, first in row 2"),
    "one class": (["a", "a"], None, r"holds one class only, 'a' in all 2 rows"),
    "one class of two spellings": ([1, "1", 1.0], None, "holds one class only, '1'"),
    "list": (["a", ["b"]], None, "a label of type list in row 2"),
    "fraction": (["a", Fraction(1, 2)], None, "a label of type Fraction in row 2"),
    "index": ([*range(60)], None, r"60 distinct values in 60 rows, .* `--task regression`"),
    "texts": ([f"text {i}" for i in range(60)], None, "60 distinct values in 60 rows"),
    "infinite": ([0.5, math.inf], None, "has inf in row 2, where a regression needs a finite number"),
    "too large for float32": ([0.5, 1e39], None, r"has 1e\+39 in row 2"),
    "too large for float64": ([0.5, 10**400], None, "in row 2, where a regression needs"),
    "word": ([0.5, "high"], True, "has 'high' in row 2, where a regression needs"),
    "bool": ([0.5, True], True, "has True in row 2, where a regression needs"),
    "nan, regression": ([0.5, math.nan], True, "lacks a label .* first in row 2"),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_labels_are_refused_with_a_sentence(name: str):
    values, regression, message = BAD_FITS[name]
    with pytest.raises(ValueError, match=message) as caught:
        Labels.fit(values, regression=regression, source="col")
    assert str(caught.value).startswith("col ")


def test_unseen_labels_are_named_with_the_nearest_class():
    labels = Labels.fit(["positive", "negative"])
    with pytest.raises(
        ValueError,
        match=r"test has labels .* \('negative', 'positive'\).*: 'postive', 'zebra', first in row 2\. "
        r"Did you mean 'positive'\?",
    ):
        labels.encode(["negative", "postive", "zebra", "postive"], source="test")
    with pytest.raises(ValueError, match=r"lacks a label .* in 1 of 2 rows"):
        labels.encode(["negative", None])
    with pytest.raises(ValueError, match="needs a finite number"):
        Labels.fit([0.5, 1]).encode(["x"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "neither `id2label` nor `num_labels`.* 'model_type'"),
        ({"id2label": {0: "a", 2: "b"}}, r"must number its classes 0 to 1.* got ids '0', '2'"),
        ({"id2label": {"x": "a", "y": "b"}}, "must number its classes"),
        ({"id2label": {0: "a", 1: "a"}}, "two classes of different names"),
        ({"id2label": {0: "a", 1: "b"}, "problem_type": "regression"}, "a regression has one output"),
    ],
)
def test_bad_configurations(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Labels.from_config(config)

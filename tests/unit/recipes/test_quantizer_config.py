"""Options of a quantizer in a config: what a layer would refuse is refused at once, and other names are understood."""

import math
from typing import Any

import pytest

from featherlight.nn.vector_quantizers import VectorQuantizer
from featherlight.recipes.config import changed
from featherlight.recipes.vq.config import ImageVqConfig
from featherlight.recipes.vq.quantizer_config import QuantizerConfig


@pytest.mark.parametrize(
    ("kind", "name", "value", "sentence"),
    [
        ("vq", "codebook_size", 1, "`quantizer.codebook_size` must be at least 2; got 1"),
        ("vq", "commitment", -0.1, "`quantizer.commitment` must be finite and at least 0"),
        ("vq", "commitment", math.inf, "`quantizer.commitment` must be finite"),
        ("vq", "decay", 1.0, r"`quantizer.decay` must lie in \[0, 1\)"),
        ("scq", "strength", 0.0, "`quantizer.strength` must be a finite positive number; got 0.0"),
        ("scq", "strength", math.nan, "`quantizer.strength` must be a finite positive number; got nan"),
        ("scq", "k", 1, "`quantizer.k` must be at least 2; got 1"),
        ("scq", "k", 513, "`quantizer.k` must be at most `quantizer.codebook_size`; got 513 of 512"),
        ("scq", "weight_bits", 1, r"`quantizer.weight_bits` must be 0 \(none\) or 2 to 5; got 1"),
        ("gumbel", "temperature", 0.0, "`quantizer.temperature` must be a finite positive number"),
        ("simvq", "lr_scale", math.inf, "`quantizer.lr_scale` must be a finite positive number"),
        ("fsq", "levels", (8, 1), r"`quantizer.levels` must be one or more numbers from 2 .* got \[8, 1\]"),
        ("fsq", "levels", (2,) * 64, "product is at most"),
        ("lfq", "features", 64, "`quantizer.features` of lfq must be at most 63"),
        ("grouped", "groups", 5, "`quantizer.groups` must divide `quantizer.features`; got 5 and 32"),
        ("residual", "stages", 0, "`quantizer.stages` must be at least 1; got 0"),
    ],
)
def test_what_a_layer_would_refuse_is_refused_at_once(kind: str, name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        QuantizerConfig(kind=kind, **{name: value})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("quantizer.codes", "quantizer.codebook_size"),
        ("codes", "quantizer.codebook_size"),
        ("quantizer.num_embeddings", "quantizer.codebook_size"),
        ("quantizer.dim", "quantizer.features"),
        ("quantizer.commitment_cost", "quantizer.commitment"),
        ("quantizer.lambda", "quantizer.strength"),
        ("quantizer.num_quantizers", "quantizer.stages"),
        ("quantizer.codebok_size", "quantizer.codebook_size"),
    ],
)
def test_names_from_elsewhere_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key `{typed}`. Did you mean `{meant}`"):
        changed(ImageVqConfig(), {typed: 4}, source="--set")


@pytest.mark.parametrize(
    ("typed", "meant"), [("num_codes", "codebook_size"), ("commitment", "commitment_weight"), ("dcay", "decay")]
)
def test_options_of_vector_quantize_pytorch_by_other_names_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"`{typed}` is not an option .* Did you mean `{meant}`"):
        VectorQuantizer.from_options(dim=4, codebook_size=8, **{typed: 1})

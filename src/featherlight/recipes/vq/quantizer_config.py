"""Which quantizer, and its options. It imports no torch, so that listing recipes is quick."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.recipes.config import elsewhere_called, nearest
from featherlight.recipes.vq.quantizers import QUANTIZERS


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class QuantizerConfig:
    """What stands between encoder and decoder. An option that is None takes its kind's default.

    Args:
        kind: a key of `QUANTIZERS`, such as "vq", "scq", "residual" or "fsq".
        features: of a vector, where its kind does not settle it by itself.
        codebook_size: codes of a codebook.
        commitment: weight of the distance of vectors to their codes.
        decay: share of the past that moving averages of a codebook keep at each step.
        strength: of the pull towards the nearest code, over the codebook's scale; for mixtures of codes.
        k: how many codes are mixed at most.
        weight_bits: of the shares of mixed codes: 2 to 5; 0 keeps them real numbers, which no number of bits can hold.
        stages: of a residual quantizer.
        groups: of features, each with a codebook of its own.
        levels: how many values each feature takes.
        temperature: of the random choice of codes.
        lr_scale: learning rate of what the quantizer learns by gradients, over that of the networks: latents grow as they
            learn, and codes have to follow.

    Raises:
        ValueError: no such kind, an option that the kind does not read, or one out of its range.
    """

    kind: str = "scq"
    features: int | None = elsewhere_called("dim", "codebook_dim", "embedding_dim")
    codebook_size: int | None = elsewhere_called("codes", "num_codes", "num_embeddings", "n_embed")
    commitment: float | None = elsewhere_called("commitment_weight", "commitment_cost", "beta")
    decay: float | None = elsewhere_called("ema", "momentum", "ema_decay")
    strength: float | None = elsewhere_called("lambda", "lam", "regularization")
    k: int | None = elsewhere_called("num_mixed", "sparsity")
    weight_bits: int | None = elsewhere_called("bits", "weight_grid")
    stages: int | None = elsewhere_called("num_quantizers", "num_stages")
    groups: int | None = elsewhere_called("heads", "num_groups")
    levels: tuple[int, ...] | None = None
    temperature: float | None = elsewhere_called("tau")
    lr_scale: float | None = elsewhere_called("codebook_lr")

    def __post_init__(self) -> None:
        if self.kind not in QUANTIZERS:
            near = nearest(self.kind, list(QUANTIZERS))
            hint = f" Did you mean {near}?" if near else ""
            raise ValueError(f"`quantizer.kind` is {self.kind!r}; there are {', '.join(QUANTIZERS)}.{hint}")
        reads = QUANTIZERS[self.kind].defaults
        for name, value in self.given().items():
            if name not in reads:
                others = [kind for kind, one in QUANTIZERS.items() if name in one.defaults]
                raise ValueError(
                    f"`quantizer.{name}` is {value}, and a quantizer of the kind {self.kind} does not read it: its options are "
                    f"{', '.join(reads)}. Leave it out, or take a kind that does: {', '.join(others)}."
                )
        _check_ranges(self.given())
        _check_together(self.kind, dict(reads) | self.given())

    def given(self) -> dict[str, Any]:
        """The options that were set."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "kind"}
        return {name: value for name, value in values.items() if value is not None}

    def resolved(self) -> "QuantizerConfig":
        """The same with the defaults of its kind put in."""
        return dataclasses.replace(self, **(dict(QUANTIZERS[self.kind].defaults) | self.given()))


_LEAST = {"features": 1, "codebook_size": 2, "k": 2, "stages": 1, "groups": 1}
_MOST_BITS = 63
"""Of an index, which must be a number of int64."""


def _check_ranges(given: Mapping[str, Any]) -> None:
    """What a layer would refuse when it is built, after the data were loaded; layers themselves import torch."""
    for name, value in given.items():
        key = f"`quantizer.{name}`"
        if name in _LEAST and value < _LEAST[name]:
            raise ValueError(f"{key} must be at least {_LEAST[name]}; got {value}.")
        if name in ("strength", "temperature", "lr_scale") and not 0 < value < math.inf:
            raise ValueError(f"{key} must be a finite positive number; got {value}.")
        if name == "commitment" and not 0 <= value < math.inf:
            raise ValueError(f"{key} must be finite and at least 0, or it would drive vectors from codes; got {value}.")
        if name == "decay" and not 0 <= value < 1:
            raise ValueError(f"{key} must lie in [0, 1), as a share of the past that is kept; got {value}.")
        if name == "levels" and (not value or min(value) < 2 or math.prod(value) > 2**_MOST_BITS):
            raise ValueError(
                f"{key} must be one or more numbers from 2 (one level carries no information) whose product is at most "
                f"2**{_MOST_BITS}; got {list(value)}."
            )
        if name == "weight_bits" and value not in (0, 2, 3, 4, 5):
            raise ValueError(f"{key} must be 0 (none) or 2 to 5; got {value}.")


def _check_together(kind: str, values: Mapping[str, Any]) -> None:
    """Options that bear on each other, with the defaults of the kind put in."""
    k, size, features = (values.get(name) for name in ("k", "codebook_size", "features"))
    if k is not None and size is not None and k > size:
        raise ValueError(f"`quantizer.k` must be at most `quantizer.codebook_size`; got {k} of {size} codes to mix.")
    groups = values.get("groups")
    if groups is not None and features is not None and features % groups:
        raise ValueError(f"`quantizer.groups` must divide `quantizer.features`; got {groups} and {features}.")
    if kind == "lfq" and features is not None and features > _MOST_BITS:
        raise ValueError(
            f"`quantizer.features` of lfq must be at most {_MOST_BITS}, as each is a bit of an index; got {features}."
        )

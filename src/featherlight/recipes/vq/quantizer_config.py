"""Which quantizer, and its options. It imports no torch, so that listing recipes is quick."""

import dataclasses
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.recipes.config import nearest
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
        ValueError: no such kind, or an option that the kind does not read.
    """

    kind: str = "scq"
    features: int | None = None
    codebook_size: int | None = None
    commitment: float | None = None
    decay: float | None = None
    strength: float | None = None
    k: int | None = None
    weight_bits: int | None = None
    stages: int | None = None
    groups: int | None = None
    levels: tuple[int, ...] | None = None
    temperature: float | None = None
    lr_scale: float | None = None

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
        for name in ("features", "codebook_size", "k", "stages", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`quantizer.{name}` must be at least 1; got {value}.")
        if self.lr_scale is not None and not 0 < self.lr_scale < float("inf"):
            raise ValueError(f"`quantizer.lr_scale` must be a finite positive number; got {self.lr_scale}.")
        if self.weight_bits not in (None, 0, 2, 3, 4, 5):
            raise ValueError(f"`quantizer.weight_bits` must be 0 (none) or 2 to 5; got {self.weight_bits}.")

    def given(self) -> dict[str, Any]:
        """The options that were set."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "kind"}
        return {name: value for name, value in values.items() if value is not None}

    def resolved(self) -> "QuantizerConfig":
        """The same with the defaults of its kind put in."""
        return dataclasses.replace(self, **(dict(QUANTIZERS[self.kind].defaults) | self.given()))

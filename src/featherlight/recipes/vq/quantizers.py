"""The quantizers by the names that configs use. The table at the end is the one place where these stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherlight.nn.vector_quantizers import Quantizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that a quantizer is made of: the options of a `QuantizerConfig` with the defaults of its kind, and the axis.

    Attributes:
        channel_axis: of the features in its input.
        seed: of what it draws by itself.
        values: the options by name.
    """

    channel_axis: int
    seed: int
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def with_values(self, **values: Any) -> Options:
        """The same with some options changed."""
        return replace(self, values=dict(self.values) | values)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of quantizer.

    Attributes:
        defaults: of the options that it reads; it reads no others.
        build: makes it, a module.
        num_codes: of each of its codebooks.
        num_stages: how many codebooks a position has a code of; None where there is a single one.
        mixed: whether codes have shares.
    """

    defaults: Mapping[str, Any]
    build: Callable[[Options], Quantizer]
    num_codes: Callable[[Options], int]
    num_stages: Callable[[Options], int | None]
    mixed: bool = False


def _book(options: Options, *, learnable: bool = False, from_data: bool = True, offset: int = 0) -> Any:
    """A codebook that starts from the first batch, or stays random."""
    from featherlight.nn.vector_quantizers import Codebook, KMeans

    init = KMeans(seed=options.seed + offset) if from_data else None
    return Codebook(options["codebook_size"], options["features"], learnable=learnable, init=init)


def _vq(options: Options, offset: int = 0) -> Quantizer:
    from featherlight.nn.vector_quantizers import EmaUpdate, VectorQuantizer

    return VectorQuantizer(
        _book(options, offset=offset),
        learn=EmaUpdate(decay=options["decay"]),
        commitment=options["commitment"],
        channel_axis=options.channel_axis,
    )


def _residual(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import ResidualQuantizer

    return ResidualQuantizer([_vq(options, n) for n in range(options["stages"])], channel_axis=options.channel_axis)


def _grouped(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import GroupedQuantizer

    groups = options["groups"]
    part = options.with_values(features=options["features"] // groups)
    return GroupedQuantizer([_vq(part, n) for n in range(groups)], channel_axis=options.channel_axis)


def _fsq(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import FiniteScalarQuantizer

    return FiniteScalarQuantizer(options["levels"], channel_axis=options.channel_axis)


def _lfq(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import LookupFreeQuantizer

    return LookupFreeQuantizer(options["features"], commitment=options["commitment"], channel_axis=options.channel_axis)


def _simvq(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import SimVQ

    book = _book(options, from_data=False)
    return SimVQ(book, commitment=options["commitment"], channel_axis=options.channel_axis)


def _diveq(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import DiVeQ

    return DiVeQ(_book(options, learnable=True), seed=options.seed, channel_axis=options.channel_axis)


def _gumbel(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import GumbelQuantizer

    book = _book(options, learnable=True, from_data=False)
    return GumbelQuantizer(
        book, temperature=options["temperature"], seed=options.seed, channel_axis=options.channel_axis
    )


def _scq(mixing: Callable[[Options], Any], *, straight_through: bool = False) -> Callable[..., Quantizer]:
    def build(options: Options, offset: int = 0) -> Quantizer:
        from featherlight.nn.vector_quantizers import SoftConvexQuantizer, StraightThrough, WeightGrid

        bits = options.values.get("weight_bits")
        return SoftConvexQuantizer(
            _book(options, learnable=True, offset=offset),
            mixing=mixing(options),
            strength=options["strength"],
            weight_grid=WeightGrid(bits=bits) if bits else None,
            gradient=StraightThrough() if straight_through else None,
            commitment=options["commitment"],
            channel_axis=options.channel_axis,
        )

    return build


def _exact(options: Options) -> Any:
    from featherlight.nn.vector_quantizers import Exact

    return Exact()


def _relaxed(options: Options) -> Any:
    from featherlight.nn.vector_quantizers import Relaxed

    return Relaxed()


def _sparse(options: Options) -> Any:
    from featherlight.nn.vector_quantizers import Sparse

    return Sparse(options["k"])


def _residual_scq(options: Options) -> Quantizer:
    from featherlight.nn.vector_quantizers import ResidualQuantizer

    build = _scq(_sparse, straight_through=True)
    return ResidualQuantizer([build(options, n) for n in range(options["stages"])], channel_axis=options.channel_axis)


def _stages(options: Options) -> int:
    return options["stages"]


def _kind(
    build: Callable[[Options], Quantizer],
    defaults: Mapping[str, Any],
    *,
    num_codes: Callable[[Options], int] = lambda options: options["codebook_size"],
    num_stages: Callable[[Options], int | None] = lambda options: None,
    mixed: bool = False,
) -> Kind:
    found = MappingProxyType(dict(defaults))
    return Kind(defaults=found, build=build, num_codes=num_codes, num_stages=num_stages, mixed=mixed)


_BOOK: Mapping[str, Any] = {"codebook_size": 512, "features": 32}
_EMA = {**_BOOK, "commitment": 0.25, "decay": 0.99}
_SOFT = {**_BOOK, "commitment": 0.25, "strength": 0.1, "lr_scale": 50.0}
_SPARSE = {**_SOFT, "k": 2, "weight_bits": 4}

QUANTIZERS: Mapping[str, Kind] = MappingProxyType(
    {
        "vq": _kind(_vq, _EMA),
        "scq": _kind(_scq(_sparse, straight_through=True), _SPARSE, mixed=True),
        "scq-exact": _kind(_scq(_exact), _SOFT, mixed=True),
        "scq-relaxed": _kind(_scq(_relaxed), _SOFT, mixed=True),
        "residual": _kind(_residual, {**_EMA, "stages": 4}, num_stages=_stages),
        "residual-scq": _kind(_residual_scq, {**_SPARSE, "stages": 2}, num_stages=_stages, mixed=True),
        "grouped": _kind(_grouped, {**_EMA, "groups": 4}, num_stages=lambda options: options["groups"]),
        "fsq": _kind(_fsq, {"levels": (8, 5, 5, 5)}, num_codes=lambda options: math.prod(options["levels"])),
        "lfq": _kind(_lfq, {"features": 10, "commitment": 0.25}, num_codes=lambda options: 2 ** options["features"]),
        "simvq": _kind(_simvq, {**_BOOK, "commitment": 0.25, "lr_scale": 10.0}),
        "diveq": _kind(_diveq, {**_BOOK, "lr_scale": 20.0}),
        "gumbel": _kind(_gumbel, {**_BOOK, "temperature": 1.0, "lr_scale": 10.0}),
    }
)
"""The kinds, with the options that each reads."""

"""The quantizers that the benchmark of vector quantizers compares, ours and those of vector-quantize-pytorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Codes,
    EmaUpdate,
    Exact,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    KMeans,
    ProjectedQuantizer,
    Quantized,
    Quantizer,
    Relaxed,
    ReplaceDead,
    ResidualQuantizer,
    RotationTrick,
    SimVQ,
    SoftConvexQuantizer,
    Sparse,
    StraightThrough,
    VectorQuantizer,
    WeightGrid,
)

DIM = 32
NUM_CODES = 512
Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Setting:
    """A way to set up a method.

    Attributes:
        build: makes the layer from a seed, channels on axis 1.
        rate: learning rate of what the quantizer learns by gradients, over that of the autoencoder.
    """

    build: Build
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Method:
    """A quantizer and the settings that are tried for it, as many for each that has something to try.

    Attributes:
        settings: by name.
        num_codes: of a codebook.
        num_stages: codebooks; None is a single one.
    """

    settings: Mapping[str, Setting]
    num_codes: int = NUM_CODES
    num_stages: int | None = None


class Unquantized(nn.Module):
    """Hands the vectors through: the error that the autoencoder has by itself."""

    bits_per_position = 32.0 * DIM

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Values alone."""
        none = x.new_zeros(x.shape[0], *x.shape[2:]).long()
        return Quantized(x, Codes(none), x.new_zeros(()))


class Peer(nn.Module):
    """A quantizer of vector-quantize-pytorch, with the result of ours.

    Args:
        layer: VectorQuantize or ResidualVQ, with the last axis as features.
        bits: of a position.
    """

    def __init__(self, layer: nn.Module, bits: float) -> None:
        super().__init__()
        self.layer = layer
        self.bits_per_position = bits

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Quantizes an image map."""
        rows = x.movedim(1, -1)
        values, indices, loss = self.layer(rows.flatten(1, -2))
        indices = indices.view(*rows.shape[:-1], *indices.shape[2:])
        return Quantized(values.view(rows.shape).movedim(-1, 1), Codes(indices), loss.sum())


def book(seed: int, num_codes: int = NUM_CODES, *, learnable: bool = False, dim: int = DIM) -> Codebook:
    """Codes that start from the first batch by k-means."""
    return Codebook(num_codes, dim, learnable=learnable, init=KMeans(seed=seed))


def vq(num_codes: int = NUM_CODES, **parts: Any) -> Build:
    """A plain vector quantizer."""
    return lambda seed: VectorQuantizer(book(seed, num_codes), channel_axis=1, **parts)


def residual_vq(num_stages: int, num_codes: int = NUM_CODES, decay: float = 0.9) -> Build:
    """Plain stages, one after the other."""
    return lambda seed: ResidualQuantizer(
        [
            VectorQuantizer(book(seed + n, num_codes), learn=EmaUpdate(decay=decay), channel_axis=1)
            for n in range(num_stages)
        ],
        channel_axis=1,
    )


def scq(mixing: Any, strength: float, num_codes: int = NUM_CODES, *, bits: int | None = None) -> Build:
    """A soft convex quantizer; few codes train an encoder better with a straight-through gradient."""
    sparse = isinstance(mixing, Sparse)
    return lambda seed: SoftConvexQuantizer(
        book(seed, num_codes, learnable=True),
        mixing=mixing,
        strength=strength,
        weight_grid=None if bits is None else WeightGrid(bits=bits),
        gradient=StraightThrough() if sparse else None,
        channel_axis=1,
    )


def residual_scq(num_stages: int, num_codes: int, num_mixed: int, bits: int, strength: float = 0.01) -> Build:
    """Stages of gridded mixtures."""
    one = scq(Sparse(num_mixed), strength, num_codes, bits=bits)
    return lambda seed: ResidualQuantizer([_stage(one(seed + n)) for n in range(num_stages)], channel_axis=1)


def _stage(layer: nn.Module) -> Quantizer:
    assert isinstance(layer, SoftConvexQuantizer)
    return layer


def peer_vq(num_codes: int = NUM_CODES, *, dim: int = DIM, **options: Any) -> Build:
    """VectorQuantize."""

    def build(seed: int) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        options_used: dict[str, Any] = {"kmeans_init": True, "threshold_ema_dead_code": 2} | options
        return Peer(VectorQuantize(dim=dim, codebook_size=num_codes, **options_used), _log2(num_codes))

    return build


def peer_residual(num_stages: int, num_codes: int = NUM_CODES, *, dim: int = DIM, **options: Any) -> Build:
    """ResidualVQ."""

    def build(seed: int) -> nn.Module:
        from vector_quantize_pytorch import ResidualVQ

        options_used: dict[str, Any] = {"kmeans_init": True, "threshold_ema_dead_code": 2} | options
        layer = ResidualVQ(dim=dim, codebook_size=num_codes, num_quantizers=num_stages, **options_used)
        return Peer(layer, num_stages * _log2(num_codes))

    return build


def _log2(number: int) -> float:
    return float(number.bit_length() - 1)


def _fsq(levels: tuple[int, ...]) -> Build:
    return lambda seed: ProjectedQuantizer(FiniteScalarQuantizer(levels), DIM, channel_axis=1)


def _gumbel(temperature: float) -> Build:
    return lambda seed: GumbelQuantizer(
        Codebook(NUM_CODES, DIM, learnable=True, init=None), temperature=temperature, seed=seed, channel_axis=1
    )


def _sim_vq(commitment: float) -> Build:
    return lambda seed: SimVQ(Codebook(NUM_CODES, DIM, init=None), commitment=commitment, channel_axis=1)


def _mixtures(mixing: Any) -> Method:
    """A codebook that learns by gradients at ten times the rate keeps up with the encoder."""
    settings = {
        "strength 0.01, rate x 10": Setting(scq(mixing, 0.01), 10.0),
        "strength 0.1, rate x 10": Setting(scq(mixing, 0.1), 10.0),
        "strength 0.01, rate x 50": Setting(scq(mixing, 0.01), 50.0),
    }
    return Method(settings=settings)


METHODS: dict[str, Method] = {
    "unquantized": Method(settings={"": Setting(lambda seed: Unquantized())}),
    "VQ": Method(
        settings={
            "EMA 0.9": Setting(vq()),
            "EMA 0.9, dead codes replaced": Setting(vq(learn=EmaUpdate(replace=ReplaceDead()))),
            "EMA 0.9, rotation trick": Setting(vq(gradient=RotationTrick())),
        }
    ),
    "VectorQuantize (peer)": Method(
        settings={
            "decay 0.8": Setting(peer_vq()),
            "decay 0.99": Setting(peer_vq(decay=0.99)),
            "decay 0.8, straight-through": Setting(peer_vq(rotation_trick=False)),
        }
    ),
    "Gumbel": Method(
        settings={
            "temperature 1": Setting(_gumbel(1.0)),
            "temperature 1, rate x 10": Setting(_gumbel(1.0), 10.0),
            "temperature 2, rate x 10": Setting(_gumbel(2.0), 10.0),
        }
    ),
    "RVQ, 4 stages": Method(
        settings={f"EMA {one:g}": Setting(residual_vq(4, decay=one)) for one in (0.9, 0.95, 0.99)}, num_stages=4
    ),
    "ResidualVQ, 4 stages (peer)": Method(
        settings={
            "decay 0.8": Setting(peer_residual(4)),
            "decay 0.99": Setting(peer_residual(4, decay=0.99)),
            "decay 0.8, straight-through": Setting(peer_residual(4, rotation_trick=False)),
        },
        num_stages=4,
    ),
    "FSQ": Method(settings={"levels 8 8 8": Setting(_fsq((8, 8, 8)))}),
    "SimVQ": Method(
        settings={
            "commitment 0.25": Setting(_sim_vq(0.25)),
            "commitment 0.25, rate x 10": Setting(_sim_vq(0.25), 10.0),
            "commitment 1, rate x 10": Setting(_sim_vq(1.0), 10.0),
        }
    ),
    "SCQ, relaxed": _mixtures(Relaxed()),
    "SCQ, exact": _mixtures(Exact()),
    "SCQ, k = 2": _mixtures(Sparse(2)),
    "SCQ, k = 4": _mixtures(Sparse(4)),
    "SCQ, k = 8": _mixtures(Sparse(8)),
}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A way to spend bits.

    Attributes:
        side: "RVQ", "ResidualVQ (peer)" or "SCQ".
        bits: at most so many a position.
        method: what is trained.
    """

    side: str
    bits: int
    method: Method


def _rates() -> dict[str, Rate]:
    rates: dict[str, Rate] = {}

    def add(name: str, side: str, bits: int, build: Build, num_codes: int, num_stages: int | None) -> None:
        rate = 10.0 if side == "SCQ" else 1.0
        method = Method(settings={"": Setting(build, rate)}, num_codes=num_codes, num_stages=num_stages)
        rates[name] = Rate(side=side, bits=bits, method=method)

    for bits in (14, 28, 56):
        for log2 in (7, 14) if bits < 56 else (7, 8):
            stages = bits // log2
            add(f"RVQ {stages} x {log2} bits", "RVQ", bits, residual_vq(stages, 2**log2), 2**log2, stages)
        stages = bits // 7
        add(f"ResidualVQ {stages} x 7 bits", "ResidualVQ (peer)", bits, peer_residual(stages, 128), 128, stages)
        for num_codes, num_mixed, grid in ((64, 2, 3), (32, 2, 4), (128, 2, 2)):
            stages = bits // 14
            name = f"SCQ {stages} x k {num_mixed}, K {num_codes}, {grid} bits"
            add(name, "SCQ", bits, residual_scq(stages, num_codes, num_mixed, grid), num_codes, stages)
    return rates


RATES = _rates()

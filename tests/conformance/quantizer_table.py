"""The quantizers that the contract is held to, and the batches it is held to with."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Cosine,
    DiVeQ,
    EmaUpdate,
    EntropyBalancing,
    EntropyLoss,
    Exact,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    KMeans,
    LookupFreeQuantizer,
    ProjectedQuantizer,
    Quantized,
    ReplaceDead,
    ResidualQuantizer,
    RotationTrick,
    SimVQ,
    SoftConvexQuantizer,
    Sparse,
    StageDropout,
    StraightThrough,
    VectorQuantizer,
    WeightGrid,
)
from featherlight.solvers.simplex_qp import compiled

DIM = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a quantizer is made, and what it is held to.

    Attributes:
        kind: its class.
        make: takes `channel_axis`, and draws initial weights from torch's own generator.
        onnx: whether it is exported; a few stand for all, since it takes seconds.
        statistics: whether it is trained in two processes, for what it takes from a whole batch; not where another row does
            the same.
        compiled: whether it is compiled; not where a part and its whole are, each by itself.
        counted: whether the number of its codes is counted.
        fresh: whether the first compiled step is the one in which codes start from data.
    """

    kind: type[nn.Module]
    make: Callable[..., Any]
    onnx: bool = False
    statistics: bool = True
    counted: bool = True
    compiled: bool = True
    fresh: bool = False


def _data(num_codes: int = 8, dim: int = DIM, **options: Any) -> Codebook:
    return Codebook(num_codes, dim, init=KMeans(iterations=2), **options)


def _random(num_codes: int = 8, dim: int = DIM, **options: Any) -> Codebook:
    return Codebook(num_codes, dim, init=None, **options)


def _plain(num_codes: int = 4, **options: Any) -> VectorQuantizer:
    return VectorQuantizer(_data(num_codes, **options))


TABLE: dict[str, Row] = {
    "VQ by averages": Row(
        kind=VectorQuantizer,
        make=lambda **o: VectorQuantizer(_data(), learn=EmaUpdate(decay=0.9, replace=ReplaceDead()), **o),
        fresh=True,
    ),
    "VQ by gradients, rotated": Row(
        kind=VectorQuantizer, make=lambda **o: VectorQuantizer(_data(learnable=True), gradient=RotationTrick(), **o)
    ),
    "VQ of two heads by angle": Row(
        kind=VectorQuantizer,
        make=lambda **o: VectorQuantizer(_data(4, 2, num_books=2), heads=2, assign=Cosine(), **o),
    ),
    "projected VQ": Row(
        kind=ProjectedQuantizer, make=lambda **o: ProjectedQuantizer(VectorQuantizer(_data(8, 2)), DIM, **o)
    ),
    "FSQ": Row(
        kind=FiniteScalarQuantizer,
        make=lambda **o: FiniteScalarQuantizer((3, 2, 4, 5), **o),
        onnx=True,
        statistics=False,
        compiled=False,
    ),
    "LFQ": Row(
        kind=LookupFreeQuantizer,
        make=lambda **o: LookupFreeQuantizer(DIM, entropy=EntropyLoss(temperature=1.0, group_size=3), **o),
        compiled=False,
    ),
    "SimVQ": Row(kind=SimVQ, make=lambda **o: SimVQ(_random(dim=3), dim=DIM, **o), statistics=False),
    "DiVeQ": Row(kind=DiVeQ, make=lambda **o: DiVeQ(_data(learnable=True), noise_std=0.1, **o)),
    "Gumbel": Row(
        kind=GumbelQuantizer, make=lambda **o: GumbelQuantizer(_random(learnable=True), temperature=0.7, **o)
    ),
    "SCQ": Row(
        kind=SoftConvexQuantizer,
        make=lambda **o: SoftConvexQuantizer(_data(learnable=True), mixing=Exact(), **o),
        counted=False,
        statistics=False,
    ),
    "SCQ of three codes on a grid": Row(
        kind=SoftConvexQuantizer,
        make=lambda **o: SoftConvexQuantizer(
            _data(learnable=True),
            mixing=Sparse(3),
            weight_grid=WeightGrid(bits=3),
            gradient=StraightThrough(),
            balancing=EntropyBalancing(),
            **o,
        ),
        onnx=True,
        counted=False,
    ),
    "residual SCQ": Row(
        kind=ResidualQuantizer,
        make=lambda **o: ResidualQuantizer(
            [SoftConvexQuantizer(_data(learnable=True), mixing=Sparse(2)) for _ in range(2)], **o
        ),
        counted=False,
        statistics=False,
        compiled=False,
    ),
    "residual VQ": Row(
        kind=ResidualQuantizer,
        make=lambda **o: ResidualQuantizer([_plain(), _plain()], **o),
        onnx=True,
        statistics=False,
        compiled=False,
    ),
    "residual of fewer stages at times": Row(
        kind=ResidualQuantizer,
        make=lambda **o: ResidualQuantizer([_plain(4, learnable=True) for _ in range(2)], dropout=StageDropout(), **o),
    ),
    "groups of residual FSQ and LFQ": Row(
        kind=GroupedQuantizer,
        make=lambda **o: GroupedQuantizer(
            [
                ResidualQuantizer([FiniteScalarQuantizer((3,)), LookupFreeQuantizer(1)]),
                ResidualQuantizer([LookupFreeQuantizer(3), LookupFreeQuantizer(3, scale=0.5)]),
            ],
            **o,
        ),
    ),
}


def without_kernels() -> AbstractContextManager[object]:
    """A block in which mixtures are solved by torch alone, as compiling the kernels takes long; the solver's tests do so."""
    return patch.object(compiled, "kernels_installed", lambda: False)


def make(row: Row, *, seed: int = 0, **options: Any) -> Any:
    """A fresh quantizer, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return row.make(**options)


def vectors(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def some_mask(*shape: int, seed: int = 0) -> Tensor:
    """True at about two of three positions."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.67


def loss_of(result: Quantized, seed: int = 5) -> Tensor:
    """A loss that weighs all values differently."""
    weights = vectors(*result.values.shape, seed=seed).to(result.values.dtype)
    return (result.values * weights).sum().to(torch.promote_types(result.values.dtype, torch.float32)) + result.aux_loss

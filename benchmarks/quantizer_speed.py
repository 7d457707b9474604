"""Side-by-side times of quantizers: one call of each side in turn, in one process."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import Row, in_turn, ratio, spread
from benchmarks.quantizer_methods import peer_residual, peer_vq, residual_vq, scq, vq
from featherlight.nn.vector_quantizers import Sparse

_DIM = 32
_IMAGES, _SIDE = 32, 16
_LARGE = 16_384


def rows_of_speed(rounds: int) -> list[Row]:
    """Ours beside vector-quantize-pytorch, plain and mixed, in evaluation and in a training step."""
    rows = []
    for num_codes in (512, 1024):
        name = f"VQ against VectorQuantize, K = {num_codes}"
        rows += _pair(name, vq(num_codes), peer_vq(num_codes, dim=_DIM), rounds, same_codes=True)
    rows += _pair("SCQ k = 2 against VectorQuantize, K = 512", _scq(2), peer_vq(512, dim=_DIM), rounds)
    rows += _pair("SCQ k = 4 against ResidualVQ of 4 stages, K = 512", _scq(4), peer_residual(4, dim=_DIM), rounds)
    rows += _pair("RVQ against ResidualVQ of 4 stages, K = 512", residual_vq(4), peer_residual(4, dim=_DIM), rounds)
    return rows


def _scq(num_mixed: int) -> Callable[[int], nn.Module]:
    return scq(Sparse(num_mixed), 0.01)


def _pair(
    name: str,
    ours: Callable[[int], nn.Module],
    peer: Callable[[int], nn.Module],
    rounds: int,
    *,
    same_codes: bool = False,
) -> list[Row]:
    latents = torch.randn(_IMAGES, _DIM, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    layers = {"ours": ours(0), "peer": peer(0)}
    for layer in layers.values():
        layer(latents)
    rows = []
    for mode, call in (("evaluation", _evaluate), ("training step", _train)):
        seconds = in_turn({side: partial(call, one, latents) for side, one in layers.items()}, rounds=rounds)
        row: Row = {"part": "speed", "pair": name, "mode": mode, "vectors": _IMAGES * _SIDE**2, "features": _DIM}
        row |= {f"{side}_ms": spread([1000 * one for one in taken]) for side, taken in seconds.items()}
        rows.append(row | {"ratio": ratio(seconds["peer"], seconds["ours"])})
    if same_codes:
        rows[0]["same_indices"] = _same_indices(layers["ours"], layers["peer"], latents)
    return rows


def _evaluate(layer: nn.Module, latents: Tensor) -> None:
    layer.eval()
    with torch.no_grad():
        layer(latents)


def _train(layer: nn.Module, latents: Tensor) -> None:
    layer.train()
    x = latents.detach().requires_grad_()
    quantized = layer(x)
    (quantized.values.square().mean() + quantized.aux_loss).backward()


def _same_indices(ours: nn.Module, peer: nn.Module, latents: Tensor) -> float:
    """Share of vectors that get the same code from both, with the codes of the peer."""
    ours.eval()
    peer.eval()
    with torch.no_grad():
        theirs, own = peer.get_submodule("layer._codebook").embed, ours.get_submodule("codebook").weight
        assert isinstance(theirs, Tensor)
        assert isinstance(own, Tensor)
        own.copy_(theirs[0])
        return float((ours(latents).codes.indices == peer(latents).codes.indices).float().mean())


def largest_allocation() -> Row:
    """The largest single allocation of a plain quantizer with many codes, beside a matrix of vectors by codes."""
    layer = vq(_LARGE)(0)
    latents = torch.randn(_IMAGES, _DIM, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    largest = {}
    for mode, call in (("evaluation", _evaluate), ("training step", _train)):
        call(layer, latents)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            call(layer, latents)
        sizes = [event.self_cpu_memory_usage for event in profiler.events() or ()]
        largest[mode] = max(sizes) / 1e6
    full = 4 * _IMAGES * _SIDE**2 * _LARGE / 1e6
    return {"part": "memory", "num_codes": _LARGE, "largest_megabytes": largest, "vectors_by_codes_megabytes": full}

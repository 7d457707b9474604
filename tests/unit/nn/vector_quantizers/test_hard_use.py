"""What users do to quantizers besides training them batch by batch: broken rows, two passes, frozen codes, half precision."""

import math

import pytest
import torch
from torch import nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    CodebookUsage,
    Codes,
    DiVeQ,
    FiniteScalarQuantizer,
    KMeans,
    LookupFreeQuantizer,
    SimVQ,
    SoftConvexQuantizer,
    Sparse,
    VectorQuantizer,
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("init", [None, KMeans()], ids=["random", "from data"])
def test_a_broken_row_teaches_a_compiled_quantizer_nothing(init: KMeans | None) -> None:
    whole, broken = VectorQuantizer(Codebook(8, 4, init=init)), VectorQuantizer(Codebook(8, 4, init=init))
    broken.load_state_dict(whole.state_dict())
    x = rows(32, 4)
    mask = torch.ones(32, dtype=torch.bool)
    mask[3] = False
    whole(x, mask=mask)
    x[3, 1] = math.nan
    found = torch.compile(broken, backend="eager")(x)
    torch.testing.assert_close(broken.state_dict(), whole.state_dict())
    assert found.codes.indices[3] == -1
    assert torch.equal(found.values[3], torch.zeros(4))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "kind", [DiVeQ, lambda codes: SoftConvexQuantizer(codes, mixing=Sparse(2))], ids=["DiVeQ", "SCQ"]
)
def test_two_batches_go_through_before_one_backward(kind: type[nn.Module]) -> None:
    layer = kind(Codebook(8, 4, learnable=True))
    first, second = layer(rows(32, 4).requires_grad_()), layer(rows(32, 4, seed=1))
    (first.values.sum() + first.aux_loss + second.values.sum() + second.aux_loss).backward()
    assert layer.codebook.weight.grad.isfinite().all()


def test_frozen_codes_do_not_start_from_data() -> None:
    layer = SoftConvexQuantizer(Codebook(8, 4, learnable=True), mixing=Sparse(2))
    layer.codebook.weight.requires_grad_(False)
    before = layer.codebook.weight.clone()
    layer(rows(32, 4))
    assert torch.equal(layer.codebook.weight, before)


def test_counts_of_a_module_in_half_precision_do_not_overflow() -> None:
    layer = VectorQuantizer(Codebook(2, 4, init=KMeans(batches=1))).half()
    for seed in range(3):
        values = layer((rows(2**15, 4, seed=seed) + 5).half()).values
    assert values.isfinite().all()
    assert layer.codebook.weight.isfinite().all()
    assert layer.learner.counts.dtype == torch.float32


@pytest.mark.parametrize(
    "layer", [VectorQuantizer(Codebook(8, 4)), FiniteScalarQuantizer([5] * 4), LookupFreeQuantizer(4)], ids=repr
)
def test_a_single_vector_is_quantized(layer: nn.Module) -> None:
    values, codes, _ = layer.eval()(rows(4))
    assert values.shape == (4,)
    assert codes.indices.shape == ()


@pytest.mark.parametrize("layer", [FiniteScalarQuantizer([5, 5]), LookupFreeQuantizer(3)], ids=["FSQ", "LFQ"])
def test_codes_of_another_quantizer_are_refused(layer: FiniteScalarQuantizer | LookupFreeQuantizer) -> None:
    with pytest.raises(ValueError, match=r"has (25|8) codes, with indices 0 to .* got 1000"):
        layer.codes_to_values(Codes(torch.tensor([0, 1000])))


def test_codes_are_decoded_at_full_precision_under_autocast() -> None:
    layer = SimVQ(Codebook(64, 8, init=None)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(rows(16, 8))
        assert torch.equal(layer.codes_to_values(found.codes), found.values)


def test_a_mask_of_another_shape_is_refused_by_the_figures() -> None:
    usage, x = CodebookUsage(8, dim=4), rows(1, 4)
    with pytest.raises(ValueError, match=r"`mask` must have the shape of the latents .*\(1,\); got \(3,\)"):
        usage.update(Codes(torch.tensor([1])), latents=x, values=x, mask=torch.ones(3, dtype=torch.bool))

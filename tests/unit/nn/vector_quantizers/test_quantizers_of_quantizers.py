"""Residual and grouped quantizers: sums and joins of their parts."""

import copy

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Codes,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    LookupFreeQuantizer,
    ProjectedQuantizer,
    Quantized,
    ResidualQuantizer,
    StageDropout,
    VectorQuantizer,
)


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _stages(count: int, dim: int = 4, num_codes: int = 8) -> list[VectorQuantizer]:
    stages = [VectorQuantizer(Codebook(num_codes, dim, init=None), commitment=1.0) for _ in range(count)]
    for number, stage in enumerate(stages):
        stage.codebook.weight.copy_(_rows(num_codes, dim, seed=number) * 0.5**number)
    return stages


class _Linear(nn.Module):
    """A quantizer with a true gradient: a fixed linear map."""

    bits_per_position = 1.0
    code_shape = ()

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix, self.dim = matrix, len(matrix)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        return Quantized(x @ self.matrix, Codes(torch.zeros(x.shape[:-1], dtype=torch.int64)), torch.zeros(()))

    def codes_to_values(self, codes: Codes) -> Tensor:
        return torch.zeros(*codes.indices.shape, self.dim)


def test_residual_equals_the_peer() -> None:
    ours = ResidualQuantizer(_stages(3)).eval()
    theirs = peer.ResidualVQ(dim=4, num_quantizers=3, codebook_size=8).eval()
    for layer, stage in zip(theirs.layers, ours.stages, strict=True):
        layer._codebook.embed.copy_(stage.codebook.weight[None])
        layer._codebook.initted.fill_(True)
    x = _rows(2, 30, 4)
    values, indices, _ = theirs(x)
    result = ours(x)
    torch.testing.assert_close(result.values, values, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.codes.indices, indices)
    for count in (1, 2, 3):
        few = ours.codes_to_values(result.codes, num_stages=count)
        torch.testing.assert_close(few, ResidualQuantizer(list(ours.stages)[:count]).eval()(x).values)
        cut = Codes(result.codes.indices[..., :count])
        assert torch.equal(ours.codes_to_values(cut), few)
    assert torch.equal(few, ours.codes_to_values(result.codes))


def test_gradients_follow_the_chain_rule() -> None:
    x = _rows(5, 4).requires_grad_()
    grad_of_values = _rows(5, 4, seed=1)
    straight = ResidualQuantizer(_stages(3)).eval()(x).values
    (grad,) = torch.autograd.grad((straight * grad_of_values).sum(), x)
    torch.testing.assert_close(grad, grad_of_values)
    a, b = _rows(4, 4, seed=2), _rows(4, 4, seed=3)
    both = ResidualQuantizer([_Linear(a), _Linear(b)])(x).values
    torch.testing.assert_close(both, x @ a + (x - x @ a) @ b)
    (grad,) = torch.autograd.grad((both * grad_of_values).sum(), x)
    torch.testing.assert_close(grad, grad_of_values @ (a + (torch.eye(4) - a) @ b).T)


def test_left_out_stages_are_the_last_of_some_examples() -> None:
    layer = ResidualQuantizer(_stages(4), dropout=StageDropout(probability=0.6, min_stages=2, seed=7))
    reference = ResidualQuantizer(_stages(4))
    x = _rows(4000, 3, 4)
    state = copy.deepcopy(layer.state_dict())
    assert bool((layer(x).codes.indices >= 0).all())
    layer.load_state_dict({**state, "noise.draws": torch.tensor(1)})
    result = layer(x)
    kept = (result.codes.indices >= 0).sum(-1)
    assert torch.equal(result.codes.indices >= 0, torch.arange(4) < kept[..., None])
    assert bool((kept == kept[:, :1]).all())
    counts = kept[:, 0].bincount(minlength=5) / 4000
    torch.testing.assert_close(counts, torch.tensor([0, 0, 0.2, 0.2, 0.6]), rtol=0, atol=0.03)
    codes = reference.eval()(x).codes.indices
    assert torch.equal(torch.where(result.codes.indices < 0, codes, result.codes.indices), codes)
    decoded = reference.codes_to_values(result.codes)
    torch.testing.assert_close(result.values, decoded, rtol=1e-5, atol=1e-6)
    assert not torch.equal(layer(x).codes.indices >= 0, result.codes.indices >= 0)
    assert bool((layer.eval()(x).codes.indices >= 0).all())


def test_statistics_of_a_stage_come_from_the_examples_that_keep_it() -> None:
    layer = ResidualQuantizer(_stages(2), dropout=StageDropout(probability=1.0))
    assert layer.noise is not None
    layer.noise.draws.fill_(1)
    before = layer.stages[1].learner.counts.clone()
    indices = layer(_rows(200, 4)).codes.indices
    used = indices[:, 1][indices[:, 1] >= 0].bincount(minlength=8)
    assert 0 < int(used.sum()) < 200
    torch.testing.assert_close(layer.stages[1].learner.counts, before * 0.9 + 0.1 * used)


def test_groups_are_their_parts_side_by_side() -> None:
    parts = [FiniteScalarQuantizer((5, 4)), LookupFreeQuantizer(3), VectorQuantizer(Codebook(8, 1, init=None))]
    whole = GroupedQuantizer(copy.deepcopy(parts), channel_axis=1)
    x, mask = _rows(2, 6, 5), _rows(2, 5) > 0
    result = whole(x, mask=mask)
    alone = [
        part(share.movedim(1, -1), mask=mask) for part, share in zip(parts, x.split([2, 3, 1], dim=1), strict=True)
    ]
    assert torch.equal(result.values, torch.cat([one.values for one in alone], -1).movedim(-1, 1))
    assert torch.equal(result.codes.indices, torch.stack([one.codes.indices for one in alone], -1))
    torch.testing.assert_close(result.aux_loss, sum(one.aux_loss for one in alone))
    assert whole.bits_per_position == pytest.approx(sum(part.bits_per_position for part in parts))
    assert whole.code_shape == (3,)


def test_groups_of_residuals_and_residuals_of_groups() -> None:
    inner = [ResidualQuantizer(_stages(3, dim=2)) for _ in range(2)]
    outer = GroupedQuantizer(inner).eval()
    turned = ResidualQuantizer([GroupedQuantizer([copy.deepcopy(g.stages[q]) for g in inner]) for q in range(3)]).eval()
    x = _rows(2, 7, 4)
    grouped, residual = outer(x), turned(x)
    assert outer.code_shape == (2, 3)
    assert turned.code_shape == (3, 2)
    torch.testing.assert_close(grouped.values, residual.values)
    assert torch.equal(grouped.codes.indices.mT, residual.codes.indices)
    assert torch.equal(outer.codes_to_values(grouped.codes), turned.codes_to_values(residual.codes))


def _codes(*shape: int) -> Codes:
    return Codes(torch.zeros(shape, dtype=torch.int64))


TWO = _stages(2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ResidualQuantizer([]), "`stages` must have at least one quantizer; got none"),
        (lambda: GroupedQuantizer([]), "`groups` must have at least one quantizer; got none"),
        (lambda: ResidualQuantizer([TWO[0], TWO[0]]), "one of them twice.*deepcopy"),
        (lambda: ResidualQuantizer([TWO[0], *_stages(1, dim=3)]), r"same number of features.* got \[4, 3\]"),
        (
            lambda: GroupedQuantizer([TWO[0], ResidualQuantizer([TWO[1]])]),
            r"codes of the same shape.* got \[\(\), \(1,\)\]",
        ),
        (lambda: ResidualQuantizer([object()]), "modules such as `VectorQuantizer`; got object"),  # pyright: ignore
        (lambda: ResidualQuantizer(TWO, dropout=StageDropout(min_stages=3)), "min_stages=3 of 2"),
        (lambda: StageDropout(probability=1.5), "`probability` must be from 0 to 1"),
        (lambda: StageDropout(min_stages=0), "`min_stages` must be at least 1"),
        (lambda: ResidualQuantizer(TWO).codes_to_values(_codes(5, 2), num_stages=0), "from 1 to 2.* got 0"),
        (lambda: ResidualQuantizer(TWO).codes_to_values(_codes(5, 1), num_stages=2), "from 1 to 1.* got 2"),
        (lambda: ResidualQuantizer(TWO).codes_to_values(_codes(5, 3)), r"\(positions, 2\); got \(5, 3\)"),
        (lambda: GroupedQuantizer(TWO).codes_to_values(_codes(5, 1)), "all 2 groups are needed.* got those of 1"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_codes_of_all_stages_start_from_a_first_batch_of_one_example() -> None:
    stages = [VectorQuantizer(Codebook(4, 4)) for _ in range(3)]
    layer = ResidualQuantizer(stages, dropout=StageDropout(probability=1.0))
    layer(_rows(1, 50, 4))
    assert all(int(stage.codebook.batches) == 1 for stage in stages)
    assert len({int(layer(_rows(1, 50, 4, seed=seed)).codes.indices.min()) for seed in range(8)}) == 2


def test_codes_of_a_projection_are_not_chosen_at_the_precision_of_autocast() -> None:
    layer = ProjectedQuantizer(VectorQuantizer(Codebook(512, 8, init=None)), 32).eval()
    x = _rows(2000, 32)
    expected = layer(x).codes.indices
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
    assert torch.equal(result.codes.indices, expected)
    assert result.values.dtype == torch.float32

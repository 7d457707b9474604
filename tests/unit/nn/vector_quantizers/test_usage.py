"""Figures of use against slow counts, over batches, stages and masks; the trap that a full soft perplexity is."""

import math

import pytest
import torch

from featherlight.nn.vector_quantizers import Codebook, CodebookUsage, Codes, VectorQuantizer, lengths_to_mask


def entropy_power(counts: list[float]) -> float:
    total = sum(counts)
    return math.exp(-sum(c / total * math.log(c / total) for c in counts if c))


def test_mass_can_look_full_while_one_code_is_the_largest_everywhere() -> None:
    others = torch.arange(1, 8)
    codes = Codes(torch.stack((torch.zeros_like(others), others), 1), torch.tensor([0.51, 0.49]).expand(7, 2))
    usage = CodebookUsage(8)
    usage.update(codes)
    figures = usage.compute()
    assert figures.hard_perplexity == pytest.approx(1.0)
    assert figures.mass_perplexity == pytest.approx(entropy_power([0.51 * 7] + [0.49] * 7))
    assert (figures.share_in_use, figures.support_size, figures.positions) == (1.0, 2.0, 7)
    assert figures.bits_per_position is None
    assert figures.relative_error is None


@pytest.mark.parametrize("mixed", [False, True])
def test_stages_batches_and_masks_are_counted_as_slowly_by_hand(mixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    usage = CodebookUsage(5, num_stages=2)
    hard, mass, support, seen = [[0.0] * 5 for _ in range(2)], [[0.0] * 5 for _ in range(2)], 0, 0
    for size in (3, 4):
        shape = (size, 2, 2, 3) if mixed else (size, 2, 2)
        indices = torch.randint(0, 5, shape, generator=generator)
        weights = torch.rand(shape, generator=generator) if mixed else torch.ones(shape)
        if mixed:
            weights[..., 2] = 0
            weights /= weights.sum(-1, keepdim=True)
        absent = torch.rand(size, 2, generator=generator) < 0.3
        indices[absent], weights[absent] = -1, 0.0
        usage.update(Codes(indices, weights if mixed else None))
        for n, t in torch.nonzero(~absent).tolist():
            for q in range(2):
                row, share = indices[n, t, q].reshape(-1), weights[n, t, q].reshape(-1)
                seen += 1
                support += int((share > 0).sum())
                hard[q][int(row[share.argmax()])] += 1
                for k, w in zip(row.tolist(), share.tolist(), strict=True):
                    mass[q][k] += w
    figures = usage.compute()
    for q, stage in enumerate(figures.stages):
        assert stage.hard_perplexity == pytest.approx(entropy_power(hard[q]))
        assert stage.mass_perplexity == pytest.approx(entropy_power(mass[q]))
        assert stage.share_in_use == sum(m > 0 for m in mass[q]) / 5
    assert figures.support_size == pytest.approx(support / seen)
    assert figures.positions == seen // 2
    assert figures.bits_per_position == (None if mixed else 2 * math.log2(5))
    assert usage.histogram().tolist() == [pytest.approx(row) for row in mass]


def test_error_is_relative_to_the_variance_of_latents_that_count() -> None:
    generator = torch.Generator().manual_seed(1)
    usage = CodebookUsage(4, dim=3, bits_per_position=9.0)
    x, q = (torch.randn(2, 50, 3, generator=generator).double() + 40 for _ in range(2))
    mask = torch.rand(50, generator=generator) < 0.5
    for part in (0, 1):
        codes = Codes(torch.where(mask, 1, -1)[None])
        spoiled = torch.where(mask[:, None], x[part], torch.nan).T[None]
        usage.update(codes, latents=spoiled, values=q[part].T[None], mask=mask[None], channel_axis=1)
    rows, values = x[:, mask].reshape(-1, 3), q[:, mask].reshape(-1, 3)
    expected = (rows - values).square().sum() / (rows - rows.mean(0)).square().sum()
    figures = usage.compute()
    assert figures.relative_error == pytest.approx(float(expected), rel=1e-10)
    assert (figures.bits_per_position, figures.positions) == (9.0, 2 * int(mask.sum()))
    usage.reset()
    empty = usage.compute()
    assert math.isnan(empty.hard_perplexity)
    assert math.isnan(empty.share_in_use)
    assert (empty.positions, empty.relative_error) == (0, None)


def test_a_mask_that_was_forgotten_changes_nothing() -> None:
    layer = VectorQuantizer(Codebook(8, 3, init=None)).eval()
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    mask = lengths_to_mask(torch.tensor([6, 2, 0, 5]))
    values, codes, _ = layer(x, mask=mask)
    figures = []
    for given in (mask, None, torch.ones_like(mask)):
        usage = CodebookUsage(8, dim=3)
        usage.update(codes, latents=torch.where(mask[..., None], x, torch.nan), values=values, mask=given)
        figures.append(usage.compute())
    assert figures[0] == figures[1] == figures[2]
    assert figures[0].positions == 13


def test_latents_that_are_not_finite_are_named_and_leave_the_counters_alone() -> None:
    usage = CodebookUsage(4, dim=3)
    codes, x = Codes(torch.tensor([[0, 1], [2, 3]])), torch.randn(2, 2, 3)
    usage.update(codes, latents=x, values=0.5 * x)
    before = usage.compute()
    for bad in (torch.nan, torch.inf):
        spoiled = x.clone()
        spoiled[1, 0, 2] = bad
        for latents, values in ((spoiled, x), (x, spoiled)):
            with pytest.raises(ValueError, match=r"not at position \(1, 0\), and at 1 in all"):
                usage.update(codes, latents=latents, values=values)
    assert usage.compute() == before
    with pytest.raises(ValueError, match="got codes of 4 and latents of 2"):
        usage.update(codes, latents=x[:1], values=x[:1])


def test_bad_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"`num_codes` and `num_stages` must be at least 1.*got 0"):
        CodebookUsage(0)
    with pytest.raises(ValueError, match="must lie below `num_codes`, which is 4; got 4"):
        CodebookUsage(4).update(Codes(torch.tensor([0, 4])))
    with pytest.raises(ValueError, match=r"axis of `num_stages`, 3, .* got indices of shape \(2, 2\)"):
        CodebookUsage(4, num_stages=3).update(Codes(torch.zeros(2, 2, dtype=torch.long)))
    one = Codes(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="must be handed in together"):
        CodebookUsage(4, dim=3).update(one, latents=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"one shape with `dim`, None, .* got \(2, 3\)"):
        CodebookUsage(4).update(one, latents=torch.zeros(2, 3), values=torch.zeros(2, 3))

"""Codes start from data, survive saving, and are looked up."""

import copy

import pytest
import torch
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook, codebook_parameter_groups
from featherlight.nn.vector_quantizers.kmeans import KMeans
from featherlight.nn.vector_quantizers.vector_quantizer import VectorQuantizer


def _clusters(*, num: int, rows: int, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    centers_KF = 10 * torch.randn(num, dim, generator=generator)
    which_N = torch.arange(num).repeat_interleave(rows)[torch.randperm(num * rows, generator=generator)]
    return centers_KF, centers_KF[which_N] + 0.01 * torch.randn(num * rows, dim, generator=generator)


def test_codes_start_at_the_clusters_of_the_rows_that_count() -> None:
    centers_KF, rows_NF = _clusters(num=32, rows=20)
    wild_NF = torch.full((50, 6), 1e3)
    mask_N = torch.arange(690) < 640
    book = Codebook(32, 6, init=KMeans(batches=1))
    assert book.waits
    start = book.start(torch.cat((rows_NF, wild_NF))[None], mask_N)
    assert start.restarted
    assert torch.equal(start.counts_BK, torch.full((1, 32), 20.0))
    assert (book.weight[nearest_codes(centers_KF, book.weight)] - centers_KF).abs().max() < 0.02
    assert not book.waits


def test_codes_start_again_at_the_batches_that_are_powers_of_two() -> None:
    book = Codebook(4, 6, init=KMeans(batches=5))
    restarted = []
    while book.waits:
        restarted.append(bool(book.start(_clusters(num=4, rows=5)[1][None]).restarted))
        kept = book.weight.clone()
    assert restarted == [True, True, False, True, False]
    assert torch.equal(kept, book.weight)


def test_codes_wait_for_the_first_batch_with_rows_that_count() -> None:
    book = Codebook(4, 6, init=KMeans(batches=5))
    random = book.weight.clone()
    rows, nothing = torch.ones(1, 5, 6), torch.zeros(5).bool()
    for mask, restarted, batches in ((nothing, False, 0), (None, True, 1), (nothing, False, 2), (nothing, False, 3)):
        assert bool(book.start(rows, mask).restarted) == restarted
        assert book.batches == batches
        assert torch.equal(book.weight, random) == (batches == 0)
    for codebook in (Codebook(4, 6), Codebook(4, 6, learnable=True)):
        layer = VectorQuantizer(codebook)
        before = codebook.weight.detach().clone()
        values, codes, aux_loss = layer(torch.full((3, 6), torch.nan), mask=torch.zeros(3).bool())
        assert torch.equal(values, torch.zeros(3, 6))
        assert bool((codes.indices == -1).all())
        assert aux_loss == 0.0
        torch.testing.assert_close(codebook.weight.detach(), before)
        x = _clusters(num=4, rows=5)[1]
        torch.testing.assert_close(layer(x).values, x, atol=0.1, rtol=0)


def test_books_start_each_from_its_own_rows_and_one_seed_gives_one_start() -> None:
    centers_KF, rows_NF = _clusters(num=16, rows=10)
    books = [Codebook(16, 6, num_books=2, init=KMeans(seed=seed)) for seed in (1, 1, 2)]
    for book in books:
        book.start(torch.stack((rows_NF, -rows_NF)))
    assert torch.equal(books[0].weight, books[1].weight)
    assert not torch.equal(books[0].weight, books[2].weight)
    for codes_KF, sign in zip(books[0].books, (1, -1), strict=True):
        assert (codes_KF[nearest_codes(sign * centers_KF, codes_KF)] - sign * centers_KF).abs().max() < 0.02


@pytest.mark.parametrize("rows_NF", [torch.eye(5), torch.ones(40, 5), torch.zeros(3, 5)], ids=["few", "alike", "zero"])
def test_more_codes_than_rows_gives_different_codes_near_the_rows(rows_NF: Tensor) -> None:
    book = Codebook(64, 5)
    book.start(rows_NF[None])
    assert torch.isfinite(book.weight).all()
    gaps = (rows_NF[:, None] - book.weight).square().sum(-1)
    assert gaps.amin(0).max() < 0.01
    assert gaps.amin(1).max() < 1e-3
    if rows_NF.any():
        assert len(book.weight.unique(dim=0)) == 64


def test_many_codes_drawn_at_once_are_as_good_as_one_by_one() -> None:
    rows_NF = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for iterations in (0, 10):
        book = Codebook(600, 4, init=KMeans(iterations=iterations))
        book.start(rows_NF[None])
        errors.append((rows_NF - book(nearest_codes(rows_NF, book.weight))).square().mean())
    drawn_KF = rows_NF[torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:600]]
    drawn_error = (rows_NF - drawn_KF[nearest_codes(rows_NF, drawn_KF)]).square().mean()
    assert errors[1] < 0.8 * errors[0]
    assert errors[0] < 0.95 * drawn_error


def test_what_was_started_stays_started_after_saving() -> None:
    _, rows_NF = _clusters(num=4, rows=5)
    book = Codebook(4, 6, init=KMeans(batches=1))
    fresh = copy.deepcopy(book)
    book.start(rows_NF[None])
    fresh.load_state_dict(book.state_dict())
    assert not fresh.waits
    assert torch.equal(fresh.weight, book.weight)
    book.load_state_dict(Codebook(4, 6).state_dict())
    assert book.waits


def test_looking_up_and_refusing() -> None:
    book = Codebook(4, 6, learnable=True)
    values = book(torch.tensor([[3, -1]]))
    assert torch.equal(values, torch.stack((book.weight[3], torch.zeros(6)))[None])
    values.sum().backward()
    assert torch.equal(book.weight.grad.sum(1), torch.tensor([0.0, 0.0, 0.0, 6.0]))
    with pytest.raises(ValueError, match=r"indices 0 to 3 .*got 4"):
        book(torch.tensor([4]))
    with pytest.raises(ValueError, match=r"at least 2 codes .*num_codes=1"):
        Codebook(1, 6)
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        Codebook(4, 0)
    with pytest.raises(ValueError, match="`batches` and `rows_per_code` from 1 on"):
        KMeans(batches=0)
    with pytest.raises(ValueError, match="not finite, so codes cannot start"):
        Codebook(4, 6).start(torch.full((1, 3, 6), torch.inf))


def test_learnable_codes_get_a_learning_rate_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Codebook(4, 6, learnable=True), Codebook(4, 6))
    groups = codebook_parameter_groups(model, lr=1e-3, codebook_lr=1e-2, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [
        (1e-3, 0.1, 2),
        (1e-2, 0.0, 1),
    ]
    assert len(codebook_parameter_groups(nn.Linear(2, 2), lr=1.0, codebook_lr=1.0)) == 1

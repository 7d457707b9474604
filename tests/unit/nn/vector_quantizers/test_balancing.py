"""The balancing term: its value by hand, its gradient, what does not change it, and that descent on it evens out use."""

import math

import pytest
import torch

from featherlight.nn.vector_quantizers import CodebookUsage, Codes, EntropyBalancing, nearest_codes


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_term_is_what_the_entropy_of_mean_soft_assignments_lacks() -> None:
    x, codes = rows(40, 3) + 7, rows(6, 3, seed=1) + 7
    mask = rows(40, seed=2) > 0
    distances = torch.cdist(x[mask], codes).square()
    mean = torch.softmax(-distances / (0.8 * distances.min(1).values.mean()), 1).mean(0)
    expected = 0.3 * (math.log(6) + (mean * mean.log()).sum()) * distances.min(1).values.mean() / 3
    term = EntropyBalancing(weight=0.3, temperature=0.8, max_rows=None)
    got = term(torch.where(mask[:, None], x, 0), codes, mask)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_even_use_costs_nothing_and_no_rows_cost_nothing() -> None:
    codes = torch.eye(4, dtype=torch.float64)
    assert EntropyBalancing()(codes.repeat(8, 1) * 1.1, codes, None).item() == pytest.approx(0, abs=1e-9)
    nothing = EntropyBalancing()(torch.zeros(5, 4, dtype=torch.float64), codes, torch.zeros(5).bool())
    assert nothing == 0


def test_codes_far_from_all_rows_have_finite_gradients() -> None:
    codes = rows(5, 3).float()
    codes[0] = 1e4
    codes.requires_grad_()
    term = EntropyBalancing()(rows(30, 3, seed=1).float(), codes, None)
    (grad,) = torch.autograd.grad(term, codes)
    assert bool(grad.isfinite().all())
    assert bool((grad[1:] != 0).any())


def test_descent_evens_out_use() -> None:
    x = rows(2000, 4)
    codes = (0.3 * rows(32, 4, seed=1) + 1.5).requires_grad_()

    def hard_perplexity() -> float:
        usage = CodebookUsage(32)
        usage.update(Codes(nearest_codes(x, codes)))
        return usage.compute().hard_perplexity

    before = hard_perplexity()
    optimizer = torch.optim.Adam([codes], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        EntropyBalancing(temperature=0.1)(x, codes, None).backward()
        optimizer.step()
    assert before < 16
    assert hard_perplexity() > 22


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"temperature": -1.0}, {"max_rows": 0}])
def test_bad_settings_get_a_sentence(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be above 0 and `max_rows` at least 1.*`balancing=None`"):
        EntropyBalancing(**wrong)  # pyright: ignore[reportArgumentType]

"""The softmax read-out: it never rises, and ends where the gradient is nought."""

import torch

from featherlight.solvers.incremental_least_squares import LeastSquares
from featherlight.solvers.softmax_read_out import loss_and_gradient, softmax_read_out

RIDGE = 1.0


def test_the_loss_never_rises_and_ends_at_the_optimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((torch.ones(400, 1), torch.randn(400, 5, generator=generator)), 1).double()
    labels = (x[:, 1:4] + 0.7 * torch.randn(400, 3, generator=generator)).argmax(1)
    factor = LeastSquares.empty(x[:, :1], ridge=2 * RIDGE).append(x[:, :0], x, x[:, :1]).factor
    start = torch.randn(6, 3, generator=generator).double()
    found = softmax_read_out(x, labels, start, factor, ridge=RIDGE, max_steps=500, tolerance=0.0)
    assert list(found.losses) == sorted(found.losses, reverse=True)
    best, gradient = loss_and_gradient(x, labels, found.weights, RIDGE)
    assert float(gradient.norm()) < 1e-5 * best
    w = start.clone().requires_grad_()
    whole = torch.nn.functional.cross_entropy(x @ w, labels, reduction="sum") + RIDGE / 2 * w.square().sum()
    (expected,) = torch.autograd.grad(whole, w)
    loss, gradient = loss_and_gradient(x, labels, start, RIDGE)
    assert abs(loss - whole.item()) < 1e-9 * loss
    torch.testing.assert_close(gradient, expected)
    few = softmax_read_out(x, labels, start, factor, ridge=RIDGE, max_steps=500, tolerance=1e-3)
    assert few.converged
    assert len(few.losses) < len(found.losses)

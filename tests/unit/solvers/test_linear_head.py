"""Closed-form heads against scikit-learn."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from featherlight.solvers import fit_classifier, fit_regression


def sample(num_rows: int, num_classes: int, seed: int = 0, spread: float = 1.0):
    """Features of very different scales around a mean far from zero, and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 1, 12)
    x = 5 + scales * torch.randn(num_rows, 12, generator=generator)
    truth = torch.randn(12, num_classes, generator=generator) / scales[:, None]
    scores = (x - 5) @ truth * spread
    y = torch.distributions.Gumbel(0.0, 1.0).icdf(torch.rand(scores.shape, generator=generator).clamp(1e-6, 1 - 1e-6))
    return x, (scores + y).argmax(1), scores[:, 0]


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_chosen_classifier_is_the_ridge_penalised_optimum(num_classes: int) -> None:
    x, y, _ = sample(1500, num_classes)
    head = fit_classifier(x[300:], y[300:], x[:300], y[:300], num_classes=num_classes)
    assert head.converged
    centered = x[300:].double() - x[300:].double().mean(0)
    strength = head.penalty * float(centered.square().mean())
    peer = LogisticRegression(C=1 / (strength * len(centered)), max_iter=20_000, tol=1e-10).fit(centered, y[300:])
    ours = (x[:300].double() @ head.weight.T + head.bias).log_softmax(1)
    theirs = torch.from_numpy(peer.predict_log_proba(x[:300].double() - x[300:].double().mean(0)))
    if num_classes > 2:
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=5e-3)
    loss = torch.nn.functional.cross_entropy(x[:300].double() @ head.weight.T + head.bias, y[:300])
    assert head.held_out_loss == pytest.approx(float(loss))
    assert float(loss) <= float(torch.nn.functional.nll_loss(theirs, y[:300])) + 0.02


def test_separable_classes_do_not_diverge() -> None:
    x = torch.cat((torch.randn(100, 3) * 0.1, torch.randn(100, 3) * 0.1 + 4))
    y = torch.arange(200) // 100
    head = fit_classifier(x, y, x, y, num_classes=2)
    assert torch.isfinite(head.weight).all()
    assert ((x.double() @ head.weight.T + head.bias).argmax(1) == y).all()


def test_constant_and_repeated_features_are_no_trouble() -> None:
    x, y, _ = sample(400, 3)
    x = torch.cat((x, x[:, :1], torch.ones(400, 1)), dim=1)
    head = fit_classifier(x[80:], y[80:], x[:80], y[:80], num_classes=3)
    assert torch.isfinite(head.weight).all()


def test_ridge_equals_the_peer_at_the_chosen_penalty() -> None:
    x, _, target = sample(600, 2)
    y = target + 0.5 * torch.randn(600, generator=torch.Generator().manual_seed(1))
    head = fit_regression(x[100:], y[100:], x[:100], y[:100])
    centered = x[100:].double() - x[100:].double().mean(0)
    alpha = head.penalty * float(centered.square().mean()) * len(centered)
    peer = Ridge(alpha=alpha, solver="cholesky").fit(x[100:].double(), y[100:].double())
    torch.testing.assert_close(head.weight[0], torch.from_numpy(peer.coef_), atol=1e-6, rtol=1e-5)
    assert float(head.bias) == pytest.approx(float(peer.intercept_), rel=1e-5)


@pytest.mark.parametrize("fit", ["classifier", "regression"])
def test_without_an_intercept_the_bias_is_zero(fit: str) -> None:
    x, y, target = sample(400, 2)
    if fit == "classifier":
        head = fit_classifier(x[50:], y[50:], x[:50], y[:50], num_classes=2, intercept=False)
    else:
        head = fit_regression(x[50:], target[50:], x[:50], target[:50], intercept=False)
    assert not head.bias.any()

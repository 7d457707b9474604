"""Closed-form heads against scikit-learn."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from featherlight.meter import allocation_peak
from featherlight.solvers import fit_classifier, fit_regression, linear_head


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
    strength /= (
        2 if num_classes == 2 else 1
    )  # the peer has one weight vector for two classes, which is our two's difference
    peer = LogisticRegression(C=1 / (strength * len(centered)), max_iter=20_000, tol=1e-10).fit(centered, y[300:])
    ours = (x[:300].double() @ head.weight.T + head.bias).log_softmax(1)
    theirs = torch.from_numpy(peer.predict_log_proba(x[:300].double() - x[300:].double().mean(0)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
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


@pytest.mark.parametrize("intercept", [True, False])
def test_the_gradient_at_the_chosen_classifier_is_nought(intercept: bool) -> None:
    """By autograd, in the given coordinates, on all rows at once."""
    x, y, _ = sample(3000, 4)
    head = fit_classifier(x[300:], y[300:], x[:300], y[:300], num_classes=4, intercept=intercept)
    assert head.converged
    rows, targets = x[300:].double(), y[300:]
    center = rows.mean(0) if intercept else torch.zeros(12, dtype=torch.float64)
    strength = head.penalty * float((rows - center).square().mean())
    weight = head.weight.clone().requires_grad_()
    bias = (head.bias + head.weight @ center).requires_grad_()
    loss = torch.nn.functional.cross_entropy((rows - center) @ weight.T + bias, targets)
    (loss + 0.5 * strength * weight.square().sum()).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-5
    if intercept:
        assert bias.grad is not None
        assert float(bias.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["classifier", "regression"])
def test_the_size_of_the_chunks_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, target = sample(1200, 3)
    heads = []
    for rows in (64, 5000):
        monkeypatch.setattr(linear_head, "_CHUNK_ROWS", rows)
        if kind == "classifier":
            heads.append(fit_classifier(x[200:], y[200:], x[:200], y[:200], num_classes=3))
        else:
            heads.append(fit_regression(x[200:], target[200:], x[:200], target[:200]))
    assert heads[0].penalty == heads[1].penalty
    torch.testing.assert_close(heads[0].weight, heads[1].weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(heads[0].bias, heads[1].bias, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classifier", "regression"])
def test_no_copy_of_all_features_is_made(kind: str) -> None:
    x, y, target = sample(20_000, 3)
    with allocation_peak(torch.device("cpu")) as peak:
        if kind == "classifier":
            fit_classifier(x[1000:], y[1000:], x[:1000], y[:1000], num_classes=3)
        else:
            fit_regression(x[1000:], target[1000:], x[:1000], target[:1000])
    of_labels = 20_000 * 3 * 4 * 2
    assert peak.bytes < x.numel() * 4 / 2 + of_labels


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_get_a_sentence(value: float) -> None:
    x, y, _ = sample(100, 2)
    x[7, 3] = value
    with pytest.raises(ValueError, match=r"not finite .*`--no-head-start`"):
        fit_classifier(x, y, x, y, num_classes=2)


def test_constant_features_leave_the_share_of_each_class() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    head = fit_classifier(torch.ones(40, 5), y, torch.ones(40, 5), y, num_classes=2)
    outputs = torch.ones(5, dtype=torch.float64) @ head.weight.T + head.bias
    torch.testing.assert_close(outputs.softmax(0), torch.tensor([0.75, 0.25], dtype=torch.float64), atol=1e-5, rtol=0)

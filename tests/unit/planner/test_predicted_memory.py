"""Predicted peaks: what they consist of, what cannot be followed, sizes, and the largest that fits."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.meter import allocation_peak
from featherlight.objective import BatchObjective
from featherlight.optim import ConMeZO, MeZOSVRG, ZerothOrderSGD
from featherlight.planner.fake_model import new_fake_mode
from featherlight.planner.fitting import largest_that_fits
from featherlight.planner.memory import CATEGORIES, UntraceableError, measure_step, predict_or_measure, predict_step
from featherlight.planner.process import predict_process
from featherlight.planner.sizes import parse_size


def net(width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


def batch(rows: int = 16) -> dict[str, Tensor]:
    return {"x": torch.ones(rows, 8), "y": torch.zeros(rows, dtype=torch.int64)}


def loss(model: nn.Module, batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def objective(model, batch):
    return BatchObjective(model, batch, loss)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), fused=True)


def test_the_peak_is_the_sum_of_its_categories_and_tells_what_they_are() -> None:
    found = predict_step(net(), batch(), objective, adamw)
    weights = sum(4 * p.numel() for p in net().parameters())
    assert set(found.categories) == set(CATEGORIES)
    assert sum(found.categories.values()) == found.peak
    assert found.categories["weights"] == weights
    assert found.categories["inputs"] == 16 * (4 * 8 + 8)
    assert found.categories["optimizer"] == 2 * weights + 4 * len(list(net().parameters()))
    assert max(moment.num_bytes for moment in found.timeline) == found.above_start
    assert {moment.phase for moment in found.timeline} == {"forward", "backward", "optimizer"}
    assert found.flops == 2 * 16 * (8 * 32 + 32 * 2) + 2 * 16 * (8 * 32 + 2 * 32 * 2)
    assert found.measured is None


@pytest.mark.parametrize("where", ["meta", "fake"])
def test_a_model_without_weights_is_predicted_as_one_that_has_them(where: str) -> None:
    if where == "meta":
        with torch.device("meta"):
            model = net()
    else:
        with new_fake_mode():
            model = net()
    assert (
        predict_step(model, batch(), objective, adamw).above_start
        == predict_step(net(), batch(), objective, adamw).above_start
    )


def test_nothing_is_changed_by_a_prediction() -> None:
    model = net()
    before = [p.clone() for p in model.parameters()]
    predict_step(model, batch(), objective, lambda m: ZerothOrderSGD(m, 1e-3))
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    ZerothOrderSGD(model, 1e-3).step(objective(model, batch()))  # no fake tensor was left in a table


def test_memory_of_hundreds_of_gigabytes_is_predicted_at_once() -> None:
    with new_fake_mode():
        model = nn.Linear(200_000, 200_000, bias=False)
    fake = {"x": torch.ones(1, 8), "y": torch.zeros(1)}
    found = predict_step(
        model,
        fake,
        lambda m, b: BatchObjective(m, b, lambda m, b: m(torch.ones(1, 200_000)).sum(1)),
        adamw,
    )
    assert found.categories["optimizer"] > 300e9


class Branching(nn.Module):
    """Goes by the contents of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * 2 if y.sum() > 0 else y


class Masked(nn.Module):
    """Goes by the contents of a mask, which are known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        chosen = x if bool(mask.all()) else x.repeat(1, 1, 1000).view(len(x), -1, 8).mean(1)
        return self.layer(chosen)


def test_a_model_that_goes_by_its_contents_is_run_instead_and_says_so() -> None:
    model = Branching()
    with pytest.raises(UntraceableError, match="depends on the contents of tensors"):
        predict_step(model, batch(), objective, adamw)
    rows = batch()
    found = predict_or_measure(model, rows, objective, adamw)
    with allocation_peak() as peak:
        chosen = adamw(model)
        for _ in range(2):
            chosen.step(objective(model, rows))
    assert "contents" in (found.measured or "")
    assert math.isclose(found.above_start, peak.bytes, rel_tol=0.05)
    with new_fake_mode():
        empty = Branching()
    with pytest.raises(UntraceableError, match="no weights in memory"):
        measure_step(empty, batch(), objective, adamw, reason="it branches")


def test_a_model_may_go_by_a_mask() -> None:
    def masked(model, batch):
        return BatchObjective(model, batch, lambda m, b: m(b["x"], b["mask"]).sum(1))

    rows = batch() | {"mask": torch.ones(16, 3, dtype=torch.bool)}
    whole = predict_step(Masked(), rows, masked, adamw)
    rows["mask"][3, 1] = False
    assert predict_step(Masked(), rows, masked, adamw).above_start > 50 * whole.above_start > 0


def test_a_process_is_its_baseline_the_tensors_and_some_slack() -> None:
    step = predict_step(net(), batch(), objective, adamw)
    fresh, loaded = (predict_process(step, loaded=one, baseline=1000) for one in (False, True))
    assert fresh.total - loaded.total == step.peak - step.above_start
    assert fresh.total == 1000 + step.peak + fresh.slack


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("2GB", 2 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5g", 3 << 29),
        (" 64 kib", 65536),
        ("4096", 4096),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "2 XB", "-1GB", "1e3MB", "GiB"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no amount of memory\. Write a number and a unit"):
        parse_size(text)


def test_no_memory_at_all_is_told() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        parse_size("0GiB")


@pytest.mark.parametrize("peak", [lambda n: 10 + 3 * n, lambda n: 10 + n * n, lambda n: 10 + 50 * (n > 7) + n])
def test_the_largest_that_fits_is_found_with_few_looks(peak) -> None:
    for budget in (5, 11, 13, 40, 70, 2000):
        looked: list[int] = []

        def noted(count: int, looked: list[int] = looked) -> int:
            looked.append(count)
            return peak(count)

        fitting = [count for count in range(1, 257) if peak(count) <= budget]
        assert largest_that_fits(noted, budget, 256) == (max(fitting) if fitting else None)
        assert len(looked) <= 18
    with pytest.raises(ValueError, match="`most` must be at least 1"):
        largest_that_fits(peak, 5, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: MeZOSVRG(m, lr=1e-3, anchor_lr=1e-3, anchor_every=2),
        lambda m: ConMeZO(m, lr=1e-3),
    ],
)
def test_steps_that_differ_are_never_taken_for_the_same(make: Callable[[nn.Module], Optimizer]) -> None:
    """What the second one does depends on numbers of the first, so it is measured."""
    with pytest.raises(UntraceableError, match="contents of tensors"):
        predict_step(net(), batch(), objective, make)

"""What several processes share, without starting any."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from featherlight.objective import BatchObjective, ClipGradient, SharedObjective
from featherlight.optim import LOZO, SPSA, MeZO, RankOneSigns
from featherlight.trainer import World
from featherlight.trainer.distributed import shared
from featherlight.trainer.parallel import PARALLEL, _blocks


class OneOf:
    """A process whose sums are its own parts alone."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.passes: list[int] = []
        self.ends: list[bool] = []

    def add_gradient(self, loss, batch, scale: float, *, last: bool) -> torch.Tensor:
        self.passes.append(len(batch["x"]))
        self.ends.append(last)
        part = loss(MODEL, batch).sum() * scale
        part.backward()
        return part.detach()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


MODEL = nn.Linear(3, 2).double()


def squared(model: nn.Module, batch) -> torch.Tensor:
    return model(batch["x"]).square().mean(-1)


def objective_of(rows: int, micro_batch: int | None = None) -> BatchObjective:
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    return BatchObjective(MODEL, {"x": x}, squared, micro_batch=micro_batch)


def gradient() -> torch.Tensor:
    return torch.cat([torch.zeros(0)] + [p.grad.flatten() for p in MODEL.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows", [1, 2, 7, 10])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 100])
def test_the_parts_of_the_processes_sum_to_the_whole(rows, size, micro_batch):
    whole = objective_of(rows)
    loss, values = whole(), whole.values()
    expected = gradient()
    teams = [OneOf(rank, size) for rank in range(size)]
    losses, gradients, parts = [], [], []
    for team in teams:
        part = objective_of(rows, micro_batch).share(team)
        losses.append(part())
        gradients.append(gradient())
        parts.append(part.values())
    torch.testing.assert_close(sum(losses), loss)
    torch.testing.assert_close(sum(gradients), expected)
    torch.testing.assert_close(sum(parts), values)
    assert len({len(team.passes) for team in teams}) == 1
    assert all(team.ends == [False] * (len(team.passes) - 1) + [True] for team in teams)
    assert all(most <= (micro_batch or rows) for team in teams for most in team.passes)


def test_clipping_wraps_the_shared_objective():
    clipped = shared(ClipGradient(objective_of(4), MODEL.parameters(), 0.1), OneOf(0, 2))
    assert isinstance(clipped, ClipGradient)
    assert isinstance(clipped.objective, SharedObjective)
    assert isinstance(shared(clipped, OneOf(1, 3)), ClipGradient)


def test_one_process_changes_nothing():
    world = World()
    objective = objective_of(4)
    with world.share(MODEL) as team:
        assert shared(objective, team) is objective
    assert world.broadcast("x") == "x"
    assert world.gather("x") == ["x"]
    assert float(world.sum(torch.ones(()))) == 1


def test_what_cannot_be_shared_is_refused():
    class Own:
        def __call__(self):
            return torch.zeros(())

        value = values = __call__

    with pytest.raises(ValueError, match="Own cannot be shared by 2 processes"):
        shared(Own(), OneOf(0, 2))
    with pytest.raises(ValueError, match="Own cannot be shared"):
        shared(ClipGradient(Own(), MODEL.parameters(), 1.0), OneOf(0, 2))
    with pytest.raises(ValueError, match="SPSA cannot be shared"):
        shared(SPSA(objective_of(4), MODEL, sigma=1e-3, directions=RankOneSigns(1)), OneOf(0, 2))


def test_some_forward_only_methods_and_one_mps_device_are_refused():
    world = World(size=2)
    stages = [SimpleNamespace(optimizer=lambda journal, meter: LOZO(nn.Linear(2, 2), 1e-3))]
    journaled: Any = SimpleNamespace(replay=object(), method="lozo", stages=stages)
    with pytest.raises(ValueError, match="forward-only method LOZO runs in one process"):
        world.check(journaled)
    with pytest.raises(ValueError, match="forward-only method MeZO runs in one process"):
        world.check_optimizer(MeZO(nn.Linear(2, 2), 1e-3))
    with pytest.raises(
        ValueError, match="`--parallel fsdp` spreads a model whose gradients are summed, and lozo has none"
    ):
        World(size=2, parallel=PARALLEL["fsdp"]).check(journaled)
    on_mps: Any = SimpleNamespace(replay=None, model=nn.Linear(2, 2), device=torch.device("mps"))
    with pytest.raises(ValueError, match="the one MPS device"):
        world.check(on_mps)


def test_files_of_the_other_processes_go_to_the_scratch_folder(tmp_path: Path):
    directory: Any = SimpleNamespace(metrics=tmp_path / "metrics.jsonl", scratch=tmp_path)
    assert World().metrics(directory) == tmp_path / "metrics.jsonl"
    assert World(rank=1, size=2).metrics(directory) == tmp_path / "process-1" / "metrics.jsonl"


def test_blocks_are_members_that_share_no_weight_with_the_rest():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(2, 2)
            self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)])
            self.layers[2].weight = self.embed.weight
            self.nested = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])])

    model = Tied()
    inner = model.nested[0]
    assert isinstance(inner, nn.ModuleList)
    assert _blocks(model) == [model.layers[0], model.layers[1], inner[0]]

"""Activation checkpointing against the plain run, to the bit, and what it says of chains that it cannot run."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Schedule, segments, steps, store_all
from tests.unit.transforms.checkpointed_in_processes import require_same_steps

NESTED = (
    *(Op(Action.KEEP, 0), Op(Action.DROP, 1), Op(Action.KEEP, 2), Op(Action.DROP, 3), Op(Action.DROP, 4)),
    *(Op(Action.TAPE, 5), Op(Action.BACK, 5), Op(Action.KEEP, 2), Op(Action.DROP, 3), Op(Action.TAPE, 4)),
    *(Op(Action.BACK, 4), Op(Action.TAPE, 2), Op(Action.TAPE, 3), Op(Action.BACK, 3), Op(Action.BACK, 2)),
    *(Op(Action.KEEP, 0), Op(Action.TAPE, 1), Op(Action.BACK, 1), Op(Action.TAPE, 0), Op(Action.BACK, 0)),
)
"""Six stages, with a part of a part run again."""


class Noise(nn.Module):
    """Draws from a generator of its own, and counts its calls in a buffer that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * torch.rand(x.shape, generator=self.generator)) / self.calls


class Branching(nn.Module):
    """Which way it goes depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp().clamp(max=3) if x.mean() > 0 else x.sin()


def stage() -> nn.Module:
    layers = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3)
    return nn.Sequential(*layers)


def net() -> nn.Sequential:
    """Statistics, dropout, a stage that is called twice, tied weights, a stage of no weights, and one that branches."""
    twice, tied = stage(), stage()
    tied[0].weight = twice[0].weight  # pyright: ignore[reportAttributeAccessIssue]
    return nn.Sequential(twice, Noise(), twice, tied, Branching(), stage())


def run(model: nn.Module, images: Tensor, *, passes: int = 2) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Gradients after some passes, then parameters and buffers, and the random state."""
    torch.manual_seed(3)
    with torch.no_grad():
        model(images)
    for _ in range(passes):
        model(images).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], model.state_dict(), torch.get_rng_state()


def require_same(
    one: tuple[list[Tensor], dict[str, Tensor], Tensor], other: tuple[list[Tensor], dict[str, Tensor], Tensor]
) -> None:
    assert len(one[0]) == len(other[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    assert torch.equal(one[2], other[2])


@pytest.mark.parametrize("schedule", [NESTED, segments(6, 1), segments(6, 2), segments(6, 4), segments(6, 6)])
def test_everything_is_as_in_the_plain_run_to_the_bit(schedule: Schedule) -> None:
    plain, images = net(), torch.randn(2, 4, 6, 6)
    mine = copy.deepcopy(plain)
    transform = ActivationCheckpoint([str(place) for place in range(6)], schedule)
    transform.prepare(mine)
    require_same(run(plain, images), run(mine, images))
    require_same(run(copy.deepcopy(plain), images), run(copy.deepcopy(mine), images))
    transform.convert(mine)
    assert not any("forward" in vars(module) for module in mine.modules())
    require_same(run(plain, images), run(mine, images))


def test_autocast_is_as_it_was_when_the_stage_was_called() -> None:
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(4)))
    mine, x = copy.deepcopy(plain), torch.randn(5, 8)
    ActivationCheckpoint([str(place) for place in range(4)], segments(4, 4)).prepare(mine)
    gradients = []
    for model in (plain, mine):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        assert out.dtype == torch.bfloat16
        out.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_second_derivatives_go_through() -> None:
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
    mine, x = copy.deepcopy(plain), torch.randn(2, 4, requires_grad=True)
    ActivationCheckpoint(["0", "1", "2"], segments(3, 3)).prepare(mine)
    for model in (plain, mine):
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
    seconds = [[parameter.grad for parameter in model.parameters()] for model in (plain, mine)]
    assert all(torch.equal(a, b) for a, b in zip(*seconds, strict=True) if a is not None)


class Linked(nn.Module):
    """Blocks that return tuples and are handed a mask and numbers by name, as those of transformers."""

    def __init__(self, glue: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.glue = glue

    def forward(self, x: Tensor) -> Tensor:
        x, mask, seen = self.embed(x), torch.ones(6, requires_grad=True) * 2, []
        for block in self.blocks:
            x, extra = block(self.glue(x), mask=mask, options={"scale": 0.5, "names": ("a", None)})
            seen.append(extra)
        return x.sum() + torch.stack(seen).sum()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, *, mask: Tensor, options: dict[str, object]) -> tuple[Tensor, Tensor]:
        scale = options["scale"]
        assert isinstance(scale, float)
        inner = torch.tanh(self.linear(x)) * mask * scale
        return x + inner, inner.square().mean()


BLOCKS = [f"blocks.{place}" for place in range(4)]


def test_blocks_with_tuples_masks_and_outputs_that_are_used_elsewhere() -> None:
    plain, x = Linked(), torch.randn(2, 3)
    mine = copy.deepcopy(plain)
    ActivationCheckpoint(BLOCKS, segments(4, 2)).prepare(mine)
    for model in (plain, mine):
        model(x).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), mine.parameters(), strict=True))  # pyright: ignore[reportArgumentType]


def backward_twice(model: nn.Module) -> None:
    out = model(torch.randn(2, 4)).sum()
    out.backward(retain_graph=True)
    out.backward()


def weights_between(model: nn.Module) -> None:
    out = model(torch.randn(2, 4)).sum()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    out.backward()


def once(model: nn.Module) -> None:
    model(torch.randn(2, 4)).sum().backward()


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        return self.linear(x)


class HandsOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Cache(), Cache()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x, bytearray()), bytearray())


class Backwards(HandsOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.b(x))


class Glued(HandsOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + 1)


class Forgets(nn.Module):
    """Saves one tensor more each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for _ in range(self.calls):
            x = x.sin()
        return x


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True).float().expand(-1, 4)


def pair(second: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), second)


@pytest.mark.parametrize(
    ("model", "stages", "use", "says"),
    [
        (pair(nn.ReLU(inplace=True)), "01", once, "stage `1` changes its input in place"),
        (pair(Argmax()), "01", once, "stage `1` returns nothing that has a gradient"),
        (pair(Forgets()), "01", once, "stage `1` saved 1 tensors when it was called and 2 when it was run again"),
        (pair(nn.Tanh()), "01", backward_twice, "asks a second time for what stage `1` had saved"),
        (
            pair(nn.Tanh()),
            "01",
            weights_between,
            "stage `0` is to be run a second time for its backward pass, but a weight was",
        ),
        (HandsOut(), "ab", once, "stage `a` is handed a bytearray, an object that it may change"),
        (Backwards(), "ab", once, "stage `b` was called where `a` is next in the chain"),
        (Glued(), "ab", once, "stage `b` is not handed what `a` returned"),
    ],
)
def test_what_cannot_be_run_is_named(
    model: nn.Module, stages: str, use: Callable[[nn.Module], None], says: str
) -> None:
    ActivationCheckpoint(list(stages), (*segments(2, 2)[:1], Op(Action.DROP, 1), *AGAIN)).prepare(model)
    with pytest.raises(ValueError, match=re.escape(says)):
        use(model)


AGAIN = (Op(Action.KEEP, 0), Op(Action.TAPE, 1), Op(Action.BACK, 1), Op(Action.TAPE, 0), Op(Action.BACK, 0))


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ((), "ends before stage 1 has gone backward"),
        (store_all(3), "op 2 of the schedule, TAPE of stage 2"),
        ((*store_all(2)[:2], Op(Action.BACK, 0)), "op 2 of the schedule, BACK of stage 0"),
        (
            (Op(Action.DROP, 0), Op(Action.TAPE, 1), Op(Action.BACK, 1), Op(Action.TAPE, 0)),
            "op 3 of the schedule, TAPE of stage 0",
        ),
    ],
)
def test_a_schedule_that_cannot_be_run_is_refused(schedule: Sequence[Op], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        ActivationCheckpoint(["a", "b"], schedule)
    with pytest.raises(ValueError, match=r"must be in 1\.\.2"):
        segments(2, 3)
    with pytest.raises(ValueError, match="at least one stage"):
        steps((), 0)


def test_stages_that_are_not_there_or_follow_a_schedule_already() -> None:
    model = pair(nn.Tanh())
    with pytest.raises(ValueError, match="has no module `2`"):
        ActivationCheckpoint(["1", "2"], store_all(2)).prepare(model)
    transform = ActivationCheckpoint(["0", "1"], store_all(2))
    transform.prepare(model)
    with pytest.raises(ValueError, match="stage `0` runs by a schedule already"):
        transform.prepare(model)


def test_data_parallel_steps_are_the_same(tmp_path: Path) -> None:
    require_same_steps(str(tmp_path), rank=0, processes=1)


@pytest.mark.slow
def test_data_parallel_steps_of_two_processes_are_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.transforms.checkpointed_in_processes", str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank), "2"], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

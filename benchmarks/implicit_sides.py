"""The sides of `benchmarks/implicit.py`: seven ways to train a model of as many states on the same rows.

Legend of shapes: N rows, I inputs, Y outputs, S states.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from featherlight.nn.implicit import (
    RELU,
    TANH,
    ImplicitDifferentiation,
    ImplicitLayer,
    JacobianFree,
    RowRescaling,
    StrictlyTriangular,
)
from featherlight.recipes.implicit import lift
from featherlight.recipes.implicit.blocks import matrices
from featherlight.recipes.implicit.class_blocks import ClassBlocks, ClassSettings
from featherlight.recipes.implicit.squared_blocks import SquaredBlocks, SquaredSettings
from featherlight.solvers import Anderson
from featherlight.solvers.hidden_layer import VariableProjection

Predict = Callable[[Tensor], Tensor]
Settings = Mapping[str, Any]
TOLERANCE = 1e-3
"""Of the fixed points in training, for all sides that search for them, forward and backward; torchdeq's own default."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows in units of about 1, and how large the models are.

    Attributes:
        x: (N, I), float32.
        y: (N,) classes, or (N, 1) float64 numbers.
        outputs: Y.
        states: S.
        activation: "relu" or "tanh".
    """

    x: Tensor
    y: Tensor
    outputs: int
    states: int
    activation: str

    @property
    def has_classes(self) -> bool:
        return self.y.ndim == 1

    def part(self, rows: Tensor) -> "Problem":
        return replace(self, x=self.x[rows], y=self.y[rows])


def bounded_rows(a: Tensor) -> Tensor:
    """A with rows whose sizes sum to at most 0.95: what a user of a library without such a map writes."""
    return a * (0.95 / a.abs().sum(1, keepdim=True)).clamp(max=1.0)


class TorchDeq(nn.Module):
    """x = phi(A x + B u) by torchdeq with its implicit differentiation."""

    def __init__(self, problem: Problem, solver: str = "anderson", tolerance: float = TOLERANCE) -> None:
        super().__init__()
        from torchdeq import get_deq  # pyright: ignore[reportMissingImports]

        states, inputs = problem.states, problem.x.shape[1]
        self.a = nn.Parameter((torch.rand(states, states) * 2 - 1) / states)
        self.b, self.read = nn.Linear(inputs, states), nn.Linear(states, problem.outputs)
        self.direct = nn.Linear(inputs, problem.outputs, bias=False)
        self.phi = torch.relu if problem.activation == "relu" else torch.tanh
        limits = {"f_max_iter": 40, "b_max_iter": 40, "f_tol": tolerance, "b_tol": tolerance}
        self.deq = get_deq(f_solver=solver, b_solver=solver, ift=True, **limits)

    def forward(self, u: Tensor) -> Tensor:
        a, b = bounded_rows(self.a), self.b(u)
        found, _ = self.deq(lambda x: self.phi(torch.addmm(b, x, a.mT)), torch.zeros_like(b))
        return self.read(found[-1]) + self.direct(u)


class TorchIdl(nn.Module):
    """torchidl's implicit model, which has ReLU alone."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        from torchidl import ImplicitModel  # pyright: ignore[reportMissingImports]

        self.model = ImplicitModel(
            problem.x.shape[1], problem.outputs, problem.states, bias=True, tol=TOLERANCE, grad_tol=TOLERANCE
        )

    def forward(self, u: Tensor) -> Tensor:
        return self.model(u)


class Ours(nn.Module):
    """An ImplicitLayer with a constant input."""

    def __init__(self, layer: ImplicitLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, u: Tensor) -> Tensor:
        return self.layer(F.pad(u, (0, 1), value=1.0)).values


class Mlp(nn.Module):
    """One hidden layer of as many units, with the inputs read out too."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        inputs = problem.x.shape[1]
        self.hidden, self.read = nn.Linear(inputs, problem.states), nn.Linear(problem.states, problem.outputs)
        self.phi = torch.relu if problem.activation == "relu" else torch.tanh

    def forward(self, u: Tensor) -> Tensor:
        return self.read(self.phi(self.hidden(u)))


def _layer(problem: Problem, **parts: Any) -> Ours:
    activation = RELU if problem.activation == "relu" else TANH
    inputs = problem.x.shape[1] + 1
    return Ours(ImplicitLayer(problem.states, inputs, problem.outputs, activation=activation, **parts))


def block_sizes(states: int) -> list[int]:
    """Of the triangular models: the first trained block, which stands last, is the widest of 100 states."""
    return [16, 84] if states == 100 else [states // 5] * 5


MODELS: Mapping[str, Callable[[Problem], nn.Module]] = {
    "torchidl": TorchIdl,
    "implicit": lambda p: _layer(
        p, well_posed=RowRescaling(), solver=Anderson(memory=1, tolerance=TOLERANCE), gradient=ImplicitDifferentiation()
    ),
    "Jacobian-free": lambda p: _layer(
        p, well_posed=RowRescaling(), solver=Anderson(memory=1, tolerance=TOLERANCE), gradient=JacobianFree()
    ),
    "triangular": lambda p: _layer(p, well_posed=StrictlyTriangular(block_sizes=block_sizes(p.states))),
    "MLP": Mlp,
}
"""Sides that are trained by the loop below."""


def is_there(side: str) -> bool:
    """Whether a peer is installed."""
    return side not in ("torchdeq", "torchidl") or importlib.util.find_spec(side) is not None


def by_gradients(side: str, problem: Problem, settings: Settings, seed: int) -> tuple[Predict, float]:
    """AdamW with OneCycleLR, the same for all; what it learned, and its CPU-seconds."""
    began = time.process_time()
    torch.manual_seed(seed)
    model = TorchDeq(problem, settings["solver"]) if side == "torchdeq" else MODELS[side](problem)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.0, fused=True)
    batch, steps = min(settings["batch"], len(problem.x)), settings["steps"]
    schedule = OneCycleLR(optimizer, settings["lr"], total_steps=steps, pct_start=0.25)
    y = problem.y if problem.has_classes else problem.y.float()
    order, place = torch.randperm(len(y), generator=generator), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            if place + batch > len(y):
                order, place = torch.randperm(len(y), generator=generator), 0
            rows, place = order[place : place + batch], place + batch
            output = model(problem.x[rows])
            loss = F.cross_entropy(output, y[rows]) if problem.has_classes else F.mse_loss(output, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - began
    model.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model(x)

    return predict, seconds


def sequential(problem: Problem, settings: Settings, seed: int) -> tuple[Predict, float]:
    """Block by block; what it learned, and its CPU-seconds."""
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    lifted, blocks = _begun(problem, settings, generator)
    for size in settings["blocks"]:
        blocks.grow(size, generator)
    hidden, read_out = blocks.hidden, blocks.read_out
    seconds = time.process_time() - began
    phi = torch.relu if problem.activation == "relu" else torch.tanh

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        features = F.pad(x.to(lifted.dtype), (0, 1), value=1.0) @ lifted.mT
        for weights in hidden:
            features = torch.cat((features, phi(features @ weights.mT)), 1)
        return features @ read_out

    return predict, seconds


def sequential_layer(problem: Problem, settings: Settings, seed: int) -> ImplicitLayer:
    """The same model as (A, B, C, D), for inputs with a constant 1 behind them."""
    generator = torch.Generator().manual_seed(seed)
    lifted, blocks = _begun(problem, settings, generator)
    for size in settings["blocks"]:
        blocks.grow(size, generator)
    kind = StrictlyTriangular(block_sizes=settings["blocks"][::-1])
    activation = RELU if problem.activation == "relu" else TANH
    parts = matrices(blocks.hidden, blocks.read_out, lifted)
    return ImplicitLayer.from_matrices(*parts, activation=activation, well_posed=kind)


def _begun(
    problem: Problem, settings: Settings, generator: torch.Generator
) -> tuple[Tensor, ClassBlocks | SquaredBlocks]:
    activation = RELU if problem.activation == "relu" else TANH
    if problem.has_classes:
        u = F.pad(problem.x, (0, 1), value=1.0)
        some = torch.randperm(len(u), generator=generator)[: lift.ROWS]
        lifted = lift.whitened(u[some], settings["directions"])
        own = {name: settings[name] for name in ("epochs", "batch", "lr", "read_out_steps")}
        return lifted, ClassBlocks(
            u @ lifted.mT, problem.y, problem.outputs, ClassSettings(activation=activation, **own)
        )
    u = F.pad(problem.x.double(), (0, 1), value=1.0)
    lifted = lift.whole(u.shape[1], dtype=torch.float64)
    search = VariableProjection(
        decay=settings["decay"], max_steps=settings["steps"], curvature_rows=settings.get("curvature_rows", 2048)
    )
    return lifted, SquaredBlocks(
        u @ lifted.mT, problem.y, SquaredSettings(activation=activation, ridge=settings["ridge"], search=search)
    )


def on_directions(problem: Problem, settings: Settings, seed: int) -> tuple[Predict, float]:
    """The MLP on the whitened directions that the sequential side takes: which part of its gain is theirs."""
    began = time.process_time()
    u = F.pad(problem.x, (0, 1), value=1.0)
    some = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))[: lift.ROWS]
    lifted = lift.whitened(u[some], settings["directions"])
    short = replace(problem, x=u @ lifted.mT)
    lifting = time.process_time() - began
    predict, seconds = by_gradients("MLP", short, settings, seed)
    return lambda x: predict(F.pad(x, (0, 1), value=1.0) @ lifted.mT), lifting + seconds


def train(side: str, problem: Problem, settings: Settings, seed: int) -> tuple[Predict, float]:
    """What a side learned, and its CPU-seconds from rows to model."""
    if side == "MLP on directions":
        return on_directions(problem, settings, seed)
    if side == "sequential":
        return sequential(problem, settings, seed)
    return by_gradients(side, problem, settings, seed)

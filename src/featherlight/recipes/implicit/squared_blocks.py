"""Sequential training for squared error: exact read-outs, and blocks by variable projection.

Legend of shapes: N rows, F features, H states of a block, Y outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featherlight.nn.implicit import TANH, Activation
from featherlight.recipes.implicit.blocks import BlockOutcome, outcome
from featherlight.solvers.hidden_layer import VariableProjection, promising_units
from featherlight.solvers.incremental_least_squares import LeastSquares


@dataclass(frozen=True, kw_only=True)
class SquaredSettings:
    """How blocks are trained for squared error.

    Args:
        activation: phi.
        ridge: on the squares of the read-out; the loss is the sum over the rows.
        search: of a block's weights.
        candidates: random states for each that a block has, of which those that explain most begin the search.
    """

    activation: Activation = TANH
    ridge: float = 1e-2
    search: VariableProjection = field(default_factory=VariableProjection)
    candidates: int = 8


class SquaredBlocks:
    """Sequential training for squared error.

    The regularised loss is |T - X W|^2 + ridge |W|^2 + decay |all hidden weights|^2. It never rises: a block that does not
    lower it is left out, with states of 0, and the read-out of what there is is exact.

    Args:
        inputs_NF: features of the inputs, a constant one among them, of about unit size.
        targets_NY: T.
        settings: how blocks are trained.

    Attributes:
        features: (N, F), float64, inputs and states.
        hidden: of each block so far.
        targets: T, float64.
        least_squares: of the features.

    Source: Gautam, Anderson, Sojoudi, El Ghaoui 2022, where the read-out and a block are fitted in turn; here the read-out is
    eliminated from the block's problem.
    """

    def __init__(self, inputs_NF: Tensor, targets_NY: Tensor, settings: SquaredSettings) -> None:
        self.settings = settings
        self.features = inputs_NF.double()
        self.hidden: list[Tensor] = []
        self.targets = targets_NY.double()
        nothing = LeastSquares.empty(self.targets, ridge=settings.ridge)
        self.least_squares = nothing.append(self.features[:, :0], self.features, self.targets)
        self._decayed = 0.0

    @property
    def read_out(self) -> Tensor:
        """(F, Y), exact but for rounding."""
        return self.least_squares.refined(self.features, self.targets)

    @property
    def loss(self) -> float:
        """The regularised training loss, a row's mean."""
        return (max(self.least_squares.minimum, 0.0) + self._decayed) / len(self.targets)

    def grow(self, size: int, generator: torch.Generator) -> BlockOutcome:
        """Trains a block of `size` states.

        Args:
            size: at least 1.
            generator: of the candidates.
        """
        before, how = self.loss, self.settings
        phi, slope = how.activation.function, how.activation.slope
        start = self._start(size, generator)
        found = how.search(self.features, self.targets, self.least_squares, start, phi, slope)
        better = found.loss < max(self.least_squares.minimum, 0.0)
        if better:
            self._decayed += how.search.decay * float(found.weights.square().sum())
            self._append(found.weights, found.units, found.read_out)
        else:
            self._append_states(torch.zeros_like(found.weights))
        return outcome(
            size=size,
            before=before,
            after=self.loss,
            steps=len(found.losses) - 1,
            converged=found.status == 0,
            rounding=1e-12 * self.least_squares.square / len(self.targets),
        )

    def restore(self, hidden: Sequence[Tensor], read_out: Tensor) -> None:
        """Brings the features to those of blocks that were trained before; the read-out follows from them."""
        for weights in hidden:
            self._decayed += self.settings.search.decay * float(weights.double().square().sum())
            self._append_states(weights.double())

    def _append_states(self, weights_HF: Tensor) -> None:
        units = self.settings.activation(self.features @ weights_HF.mT)
        self._append(weights_HF, units, self.least_squares.append(self.features, units, self.targets))

    def _append(self, weights: Tensor, units: Tensor, least_squares: LeastSquares) -> None:
        self.features = torch.cat((self.features, units), 1)
        self.hidden.append(weights)
        self.least_squares = least_squares

    def _start(self, size: int, generator: torch.Generator) -> Tensor:
        """Of random weights, those whose states explain most of what is left."""
        count, width = self.settings.candidates * size, self.features.shape[1]
        drawn = torch.randn(count, width, generator=generator, dtype=torch.float64).to(self.features.device)
        sizes = 2 * torch.rand(count, 1, generator=generator, dtype=torch.float64).to(self.features.device)
        usual = self.features.square().mean(0).clamp(min=1e-12).rsqrt()
        candidates = sizes * usual * drawn / drawn.norm(dim=1, keepdim=True)
        every = -(-len(self.features) // self.settings.search.curvature_rows)
        some = self.features[::every]
        left = self.targets[::every] - some @ self.least_squares.weights
        phi = self.settings.activation.function
        return promising_units(some, left, self.least_squares, candidates, size, phi, row_weight=every)

"""Sequential training for cross-entropy: a block and the read-out by gradients, and then the read-out by its curvature's bound.

Legend of shapes: N rows, K features of the inputs, F features, H states of a block, C classes, B rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from featherlight.nn.implicit import RELU, Activation
from featherlight.recipes.implicit.blocks import BlockOutcome, outcome
from featherlight.solvers.incremental_least_squares import LeastSquares
from featherlight.solvers.softmax_read_out import loss_and_gradient, softmax_read_out


@dataclass(frozen=True, kw_only=True)
class ClassSettings:
    """How blocks are trained for cross-entropy.

    Args:
        activation: phi.
        ridge: half of it is on the squares of the read-out; the loss is the sum over the rows.
        epochs: passes over the rows for the first block.
        later_epochs: for each other block.
        batch: rows a step.
        lr: the largest of a cycle, of AdamW.
        read_out_steps: the most with the bound of the curvature, which take the regularised loss down to what is reported.
        direct: whether the inputs are read out too (D); else the states alone.
    """

    activation: Activation = RELU
    ridge: float = 1.0
    epochs: int = 3
    later_epochs: int = 1
    batch: int = 256
    lr: float = 1e-2
    read_out_steps: int = 10
    direct: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.later_epochs, self.batch) < 1 or self.read_out_steps < 0:
            raise ValueError(
                "`epochs`, `later_epochs` and `batch` must be at least 1 and `read_out_steps` at least 0; got "
                f"{self.epochs}, {self.later_epochs}, {self.batch} and {self.read_out_steps}."
            )


class ClassBlocks:
    """Sequential training for cross-entropy.

    The regularised loss is the sum of cross-entropies + ridge / 2 |W|^2. It never rises: the read-out of a new block
    is compared with the earlier read-out with zeros for the block, and both are taken down by steps that cannot rise.

    Args:
        inputs_NK: features of the inputs, a constant one first.
        labels_N: classes as whole numbers.
        num_classes: C.
        settings: how blocks are trained.

    Attributes:
        features: (N, F), inputs and states.
        labels: (N,).
        num_inputs: how many of the features are inputs.
        hidden: of each block so far.
        read_out: (F, C).
        loss: regularised, a row's mean.
    """

    def __init__(self, inputs_NK: Tensor, labels_N: Tensor, num_classes: int, settings: ClassSettings) -> None:
        self.settings = settings
        self.features = inputs_NK
        self.labels = labels_N
        self.hidden: list[Tensor] = []
        self.num_inputs = inputs_NK.shape[1]
        self._first = 0 if settings.direct else self.num_inputs
        self.read_out = inputs_NK.new_zeros(self.num_inputs, num_classes)
        nothing = LeastSquares.empty(inputs_NK[:, :1], ridge=2 * settings.ridge)
        self._curved = nothing.append(inputs_NK[:, :0], self._used(inputs_NK), inputs_NK[:, :1])
        self.loss = self._loss_at(self.read_out)

    def grow(self, size: int, generator: torch.Generator) -> BlockOutcome:
        """Trains a block of `size` states.

        Args:
            size: at least 1.
            generator: of the start and of the order of the rows.
        """
        before, earlier = self.loss, self.read_out
        weights, read_out, steps = self._by_gradients(size, generator)
        self._append(weights)
        self._read_out_from(read_out)
        if self.loss > before:
            self._take_back(torch.zeros_like(weights), torch.cat((earlier, earlier.new_zeros(size, earlier.shape[1]))))
        return outcome(size=size, before=before, after=self.loss, steps=steps, converged=False, rounding=1e-6 * before)

    def restore(self, hidden: Sequence[Tensor], read_out: Tensor) -> None:
        """Brings features and read-out to those of blocks that were trained before."""
        for weights in hidden:
            self._append(weights)
        self.read_out = read_out
        self.loss = self._loss_at(read_out)

    def _by_gradients(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        how, device = self.settings, self.features.device
        width = self.features.shape[1]
        start = torch.randn(size, width, generator=generator).to(self.features) * (3 * width) ** -0.5
        usual = self.features[:: -(-len(self.features) // 4096)].square().mean(0).sqrt()
        start[:, self.num_inputs :] /= usual[self.num_inputs :].clamp(min=1e-3)
        hidden = nn.Parameter(start)
        fresh = torch.randn(size, self.read_out.shape[1], generator=generator).to(self.features) * size**-0.5
        read_out = nn.Parameter(torch.cat((self.read_out[self._first :], fresh * 0.6)))
        optimizer = torch.optim.AdamW([hidden, read_out], lr=how.lr, weight_decay=0.0, fused=True)
        count = max(1, len(self.labels) // how.batch)
        epochs = how.later_epochs if self.hidden else how.epochs
        schedule = OneCycleLR(optimizer, how.lr, total_steps=epochs * count, pct_start=0.25)
        for _ in range(epochs):
            order = torch.randperm(len(self.labels), generator=generator).to(device)
            for rows in order.split(how.batch)[:count]:
                x = self.features[rows]
                states = how.activation(x @ hidden.mT)
                logits = torch.addmm(x[:, self._first :] @ read_out[:-size], states, read_out[-size:])
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, self.labels[rows]).backward()
                optimizer.step()
                schedule.step()
        unread = self.read_out.new_zeros(self._first, self.read_out.shape[1])
        return hidden.detach(), torch.cat((unread, read_out.detach())), epochs * count

    def _append(self, weights_HF: Tensor) -> None:
        states = self.settings.activation(self.features @ weights_HF.mT)
        self._curved = self._curved.append(self._used(self.features), states, self.features[:, :1])
        self.features = torch.cat((self.features, states), 1)
        self.hidden.append(weights_HF)

    def _used(self, features: Tensor) -> Tensor:
        """What is read out: the states, and the inputs too where they are."""
        return features[:, self._first :]

    def _read_out_from(self, start_FC: Tensor) -> None:
        how = self.settings
        found = softmax_read_out(
            self._used(self.features),
            self.labels,
            start_FC[self._first :],
            self._curved.factor,
            ridge=how.ridge,
            max_steps=how.read_out_steps,
        )
        self.read_out = torch.cat((start_FC[: self._first], found.weights))
        self.loss = found.losses[-1] / len(self.labels)

    def _take_back(self, weights_HF: Tensor, read_out_FC: Tensor) -> None:
        """The block's states as 0, and the earlier read-out taken on from."""
        size = len(weights_HF)
        self.hidden.pop()
        self.features = self.features[:, :-size]
        kept = len(self._curved.factor) - size
        self._curved = LeastSquares(
            factor=self._curved.factor[:kept, :kept],
            whitened=self._curved.whitened[:kept],
            square=self._curved.square,
            ridge=self._curved.ridge,
        )
        self._append(weights_HF)
        self._read_out_from(read_out_FC)

    def _loss_at(self, read_out: Tensor) -> float:
        used = read_out[self._first :]
        return loss_and_gradient(self._used(self.features), self.labels, used, self.settings.ridge)[0] / len(
            self.labels
        )

"""Restricted Boltzmann machines: two layers of random units that know nothing of each other within a layer.

Legend of shapes: B examples, N chains, V visible units, H hidden units, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_SPREAD = 0.01


class VisibleUnits(Protocol):
    """What the visible units are: their part of the energy, and what they do given their input."""

    def energy(self, v_BV: Tensor, bias_V: Tensor) -> Float[Tensor, "B"]:
        """The part of the energy without the hidden units."""
        ...

    def mean(self, input_BV: Tensor) -> Float[Tensor, "B V"]:
        """Their mean, given bias and input from the hidden units together."""
        ...

    def sample(self, input_BV: Tensor, generator: torch.Generator) -> Float[Tensor, "B V"]:
        """A draw of them."""
        ...

    def surprise(self, input_BV: Tensor, v_BV: Tensor) -> Float[Tensor, "B"]:
        """-log p(v | input), up to a constant."""
        ...


@dataclass(frozen=True, kw_only=True)
class BinaryUnits:
    """Units that are 0 or 1; data in [0, 1] stand for the probability of a 1."""

    def energy(self, v_BV: Tensor, bias_V: Tensor) -> Float[Tensor, "B"]:
        """Minus the inner product with the bias."""
        return -(v_BV @ bias_V)

    def mean(self, input_BV: Tensor) -> Float[Tensor, "B V"]:
        """The probability of a 1."""
        return input_BV.sigmoid()

    def sample(self, input_BV: Tensor, generator: torch.Generator) -> Float[Tensor, "B V"]:
        """Zeros and ones."""
        return torch.bernoulli(input_BV.sigmoid(), generator=generator)

    def surprise(self, input_BV: Tensor, v_BV: Tensor) -> Float[Tensor, "B"]:
        """The cross-entropy, summed over the units."""
        return functional.binary_cross_entropy_with_logits(input_BV, v_BV, reduction="none").sum(-1)


@dataclass(frozen=True, kw_only=True)
class GaussianUnits:
    """Real units of variance 1, for data whose columns were brought to mean 0 and variance 1."""

    def energy(self, v_BV: Tensor, bias_V: Tensor) -> Float[Tensor, "B"]:
        """Half the squared distance from the bias."""
        return 0.5 * (v_BV - bias_V).square().sum(-1)

    def mean(self, input_BV: Tensor) -> Float[Tensor, "B V"]:
        """The input itself."""
        return input_BV

    def sample(self, input_BV: Tensor, generator: torch.Generator) -> Float[Tensor, "B V"]:
        """The input and a standard normal."""
        noise = torch.randn(input_BV.shape, generator=generator, dtype=input_BV.dtype, device=input_BV.device)
        return input_BV + noise

    def surprise(self, input_BV: Tensor, v_BV: Tensor) -> Float[Tensor, "B"]:
        """Half the squared distance."""
        return 0.5 * (v_BV - input_BV).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class LabelledUnits:
    """Binary units, and a group of units at the end of which exactly one is 1: the label.

    Args:
        num_labels: L, units of the group.
    """

    num_labels: int

    def __post_init__(self) -> None:
        if self.num_labels < 2:
            raise ValueError(f"`num_labels` must be at least 2, or there is nothing to tell; got {self.num_labels}.")

    def energy(self, v_BV: Tensor, bias_V: Tensor) -> Float[Tensor, "B"]:
        """Minus the inner product with the bias."""
        return -(v_BV @ bias_V)

    def mean(self, input_BV: Tensor) -> Float[Tensor, "B V"]:
        """Probabilities of a 1; those of the labels sum to 1."""
        plain, label_BL = self._parts(input_BV)
        return torch.cat((plain.sigmoid(), label_BL.softmax(-1)), -1)

    def sample(self, input_BV: Tensor, generator: torch.Generator) -> Float[Tensor, "B V"]:
        """Zeros and ones, with one label."""
        plain, label_BL = self._parts(input_BV)
        drawn = torch.multinomial(label_BL.softmax(-1), 1, generator=generator)
        one_hot_BL = torch.zeros_like(label_BL).scatter_(1, drawn, 1.0)
        return torch.cat((torch.bernoulli(plain.sigmoid(), generator=generator), one_hot_BL), -1)

    def surprise(self, input_BV: Tensor, v_BV: Tensor) -> Float[Tensor, "B"]:
        """The cross-entropy, summed over the units; that of the labels is of the group."""
        (plain, label_BL), (v_plain, v_label_BL) = self._parts(input_BV), self._parts(v_BV)
        of_label_B = -(v_label_BL * label_BL.log_softmax(-1)).sum(-1)
        return BinaryUnits().surprise(plain, v_plain) + of_label_B

    def _parts(self, input_BV: Tensor) -> tuple[Tensor, Tensor]:
        return input_BV[:, : -self.num_labels], input_BV[:, -self.num_labels :]


class RestrictedBoltzmannMachine(nn.Module):
    """A joint distribution p(v, h) ~ exp(-E), E = energy(v) - h^T W v - h^T c, with binary hidden units.

    Args:
        num_visible: V, labels included.
        num_hidden: H.
        generator: draws the initial weights, of standard deviation 0.01.
        visible: what the visible units are.

    Attributes:
        visible: as given.
        weight: W, (H, V).
        visible_bias: (V,).
        hidden_bias: c, (H,).

    Source: Smolensky 1986; Hinton 2002 and, for practice, 2012 (A practical guide to training RBMs). Gaussian units: Welling,
    Rosen-Zvi and Hinton 2005. Label units: Hinton, Osindero and Teh 2006.
    """

    def __init__(
        self, num_visible: int, num_hidden: int, *, generator: torch.Generator, visible: VisibleUnits | None = None
    ) -> None:
        super().__init__()
        for name, value in (("num_visible", num_visible), ("num_hidden", num_hidden)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        self.visible = BinaryUnits() if visible is None else visible
        self.weight = nn.Parameter(_INITIAL_SPREAD * torch.randn(num_hidden, num_visible, generator=generator))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    def forward(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B H"]:
        """The probabilities of the hidden units."""
        return self._hidden_input(v_BV).sigmoid()

    def sample_hidden(self, v_BV: Float[Tensor, "B V"], generator: torch.Generator) -> Float[Tensor, "B H"]:
        """A draw of the hidden units given the visible ones."""
        return torch.bernoulli(self(v_BV), generator=generator)

    def visible_input(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """Bias and input of the visible units; `visible.mean` and `visible.sample` make something of it."""
        return torch.addmm(self.visible_bias, h_BH, self.weight)

    def free_energy(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B"]:
        """F(v) = -log sum_h exp(-E(v, h)), so that p(v) ~ exp(-F)."""
        energy_B = self.visible.energy(v_BV, self.visible_bias)
        return energy_B - functional.softplus(self._hidden_input(v_BV)).sum(-1)

    @torch.no_grad()
    def gibbs(
        self, v_BV: Float[Tensor, "B V"], steps: int, generator: torch.Generator, *, clamp: Tensor | None = None
    ) -> Float[Tensor, "B V"]:
        """Draws hidden and visible units in turn.

        Args:
            v_BV: where the chains start.
            steps: rounds.
            generator: draws the units.
            clamp: the last columns of every round, (B, L), such as labels; None lets all units go.

        Returns:
            The visible units after the last round.
        """
        for _ in range(steps):
            v_BV = self.visible.sample(self.visible_input(self.sample_hidden(v_BV, generator)), generator)
            if clamp is not None:
                v_BV = torch.cat((v_BV[:, : -clamp.shape[1]], clamp), 1)
        return v_BV

    def label_logits(self, v_BV: Float[Tensor, "B V"], num_labels: int) -> Float[Tensor, "B L"]:
        """Logits of p(label | the other visible units), exact, by the free energy with each label.

        Args:
            v_BV: with or without the label columns at the end, whose values do not matter.
            num_labels: L.

        Cost: B L H softplus, and one product as for a hidden layer.
        """
        plain = self.weight.shape[1] - num_labels
        input_BH = functional.linear(v_BV[:, :plain], self.weight[:, :plain], self.hidden_bias)
        with_label = [functional.softplus(input_BH + column_H).sum(-1) for column_H in self.weight[:, plain:].unbind(1)]
        return torch.stack(with_label, -1) + self.visible_bias[plain:]

    def _hidden_input(self, v_BV: Tensor) -> Tensor:
        return functional.linear(v_BV, self.weight, self.hidden_bias)


NegativePhase = Callable[[RestrictedBoltzmannMachine, Tensor, torch.Generator], Tensor]
"""From a machine, its data and a generator to visible units that stand for what the model believes, (N, V)."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveDivergence:
    """Chains that start at the data at every step: CD-k.

    Args:
        steps: k, rounds of Gibbs sampling.

    Source: Hinton 2002.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(
        self, machine: RestrictedBoltzmannMachine, v_BV: Float[Tensor, "B V"], generator: torch.Generator
    ) -> Float[Tensor, "B V"]:
        """Where the chains are after k rounds."""
        return machine.gibbs(v_BV, self.steps, generator)


class PersistentChains(nn.Module):
    """Chains that go on from step to step, and so mix while the weights change slowly: persistent CD.

    Args:
        num_chains: N.
        num_visible: V.
        generator: draws where they start, zeros and ones.
        steps: rounds of Gibbs sampling a step.

    Attributes:
        v_NV: where they are; a buffer, so that a save keeps it.

    Source: Tieleman 2008.
    """

    v_NV: Tensor

    def __init__(self, num_chains: int, num_visible: int, *, generator: torch.Generator, steps: int = 1) -> None:
        super().__init__()
        _check_steps(steps)
        self.steps = steps
        self.register_buffer("v_NV", torch.bernoulli(torch.full((num_chains, num_visible), 0.5), generator=generator))

    def forward(
        self, machine: RestrictedBoltzmannMachine, v_BV: Float[Tensor, "B V"], generator: torch.Generator
    ) -> Float[Tensor, "N V"]:
        """Moves the chains on."""
        self.v_NV = machine.gibbs(self.v_NV, self.steps, generator)
        return self.v_NV


def contrastive_losses(
    machine: RestrictedBoltzmannMachine, v_BV: Float[Tensor, "B V"], negative_NV: Float[Tensor, "N V"]
) -> Float[Tensor, "B"]:
    """Losses whose gradient is that of contrastive divergence; by themselves they say little.

    F(data) minus the mean F of the negative phase, which counts as constant: with samples of the model the gradient is
    that of -log p(data).

    Args:
        machine: whose weights.
        v_BV: data.
        negative_NV: from a negative phase.
    """
    return machine.free_energy(v_BV) - machine.free_energy(negative_NV.detach()).mean()


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1 round of Gibbs sampling; got {steps}.")

"""Deep belief nets: layers learned one by one, an associative memory with labels on top, and three ways to use them.

Legend of shapes: B examples, V visible units, H hidden units of the layer in question, L labels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from featherlight.nn.models.restricted_boltzmann import (
    BinaryUnits,
    ContrastiveDivergence,
    LabelledUnits,
    NegativePhase,
    RestrictedBoltzmannMachine,
    VisibleUnits,
    contrastive_losses,
)


class WakeSleep(NamedTuple):
    """The states of all layers in one round of up-down, from the lowest layer up.

    Attributes:
        wake: driven by the data, by the recognition weights; the last is the memory's visible layer, labels included.
        sleep: of the model's fantasies, by the generative weights; the last is the memory's, labels included.
    """

    wake: tuple[Tensor, ...]
    sleep: tuple[Tensor, ...]


class DeepBeliefNet(nn.Module):
    """A generative model of labelled data: directed layers below an undirected associative memory.

    Learning goes layer by layer: each of `machines` is trained on the probabilities of the one below, the last of them
    (`memory`) with the labels beside. `untie` then takes the weights apart for `up_down_losses`, and `start_classifier`
    copies those of the way up for backpropagation.

    Args:
        sizes: V and H of each layer, such as (784, 500, 500, 2000).
        num_labels: L.
        generator: draws the initial weights.
        visible: what the lowest units are; None takes binary ones.
        dropout: of the classifier, of its inputs and of its hidden layers.

    Attributes:
        machines: the layers; the last has the labels among its visible units.
        recognition: the way up of all layers but the last, each (H, V).
        generation: the way down, each (V, H).
        classifier: logistic layers and a linear head.

    Raises:
        ValueError: fewer than two layers.

    Source: Hinton, Osindero and Teh 2006 (A fast learning algorithm for deep belief nets), sections 4 to 6 and appendix B;
    backpropagation from there: Hinton and Salakhutdinov 2006; with dropout: Hinton et al. 2012 (arXiv 1207.0580).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_labels: int,
        *,
        generator: torch.Generator,
        visible: VisibleUnits | None = None,
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        if len(sizes) < 3:
            raise ValueError(
                f"`sizes` must name the visible units and two hidden layers or more; got {list(sizes)}. One layer is a "
                "RestrictedBoltzmannMachine."
            )
        self.sizes, self.num_labels = tuple(sizes), num_labels
        *below, (last, top) = pairwise(sizes)
        kinds: list[VisibleUnits | None] = [visible, *[None] * (len(below) - 1)]
        lower = [
            RestrictedBoltzmannMachine(v, h, generator=generator, visible=kind)
            for (v, h), kind in zip(below, kinds, strict=True)
        ]
        labelled = LabelledUnits(num_labels=num_labels)
        memory = RestrictedBoltzmannMachine(last + num_labels, top, generator=generator, visible=labelled)
        self.machines = nn.ModuleList([*lower, memory])
        self.recognition = nn.ModuleList(_blank(v, h) for v, h in below)
        self.generation = nn.ModuleList(_blank(h, v) for v, h in below)
        self.classifier = _classifier(self.sizes, num_labels, dropout)

    @property
    def memory(self) -> RestrictedBoltzmannMachine:
        """The associative memory on top."""
        return self.machine(-1)

    def machine(self, number: int) -> RestrictedBoltzmannMachine:
        """One of the layers."""
        found = self.machines[number]
        assert isinstance(found, RestrictedBoltzmannMachine)
        return found

    def forward(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B L"]:
        """Logits of the classifier."""
        return self.classifier(v_BV)

    @torch.no_grad()
    def data_of(self, number: int, v_BV: Float[Tensor, "B V"], labels_B: Int[Tensor, "B"]) -> Float[Tensor, "B H"]:
        """What machine `number` learns from: the probabilities of the layers below, and labels for the last."""
        for below in range(number):
            v_BV = self.machine(below)(v_BV)
        return self._with_labels(v_BV, labels_B) if number == len(self.machines) - 1 else v_BV

    @torch.no_grad()
    def untie(self) -> None:
        """Sets the ways up and down to the weights that greedy learning found."""
        for number, (up, down) in enumerate(zip(self.recognition, self.generation, strict=True)):
            machine = self.machine(number)
            _set(up, machine.weight, machine.hidden_bias)
            _set(down, machine.weight.mT, machine.visible_bias)

    @torch.no_grad()
    def start_classifier(self) -> None:
        """Sets the classifier to the way up and the memory's weights without labels, with a head of zeros."""
        layers = [module for module in self.classifier if isinstance(module, nn.Linear)]
        *lower, top, head = layers
        for layer, up in zip(lower, self.recognition, strict=True):
            assert isinstance(up, nn.Linear)
            _set(layer, up.weight, up.bias)
        _set(top, self.memory.weight[:, : -self.num_labels], self.memory.hidden_bias)
        head.weight.zero_()
        head.bias.zero_()

    @torch.no_grad()
    def memory_logits(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B L"]:
        """Logits of the labels by the memory's free energy, above an upward pass of probabilities; needs `untie` first."""
        for up in self.recognition:
            v_BV = up(v_BV).sigmoid()
        return self.memory.label_logits(v_BV, self.num_labels)

    @torch.no_grad()
    def wake_sleep(
        self,
        v_BV: Float[Tensor, "B V"],
        labels_B: Int[Tensor, "B"],
        generator: torch.Generator,
        *,
        negative: NegativePhase = ContrastiveDivergence(steps=3),  # noqa: B008
    ) -> WakeSleep:
        """Draws the states that one round of up-down learns from.

        Args:
            v_BV: data.
            labels_B: of them.
            generator: draws the units.
            negative: what happens in the memory between the way up and the way down. Chains that persist, as many as there
                are data, find what the memory believes far from any data, and so unlearn it.
        """
        wake = [v_BV]
        for up in self.recognition:
            wake.append(torch.bernoulli(up(wake[-1]).sigmoid(), generator=generator))
        wake[-1] = self._with_labels(wake[-1], labels_B)
        fantasy = negative(self.memory, wake[-1], generator)
        sleep = self._down(fantasy[:, : -self.num_labels], generator)
        return WakeSleep(tuple(wake), (*sleep[:-1], fantasy))

    def up_down_losses(self, states: WakeSleep) -> Float[Tensor, "B"]:
        """Losses whose gradient is the update of contrastive wake-sleep (appendix B of the source).

        The way down learns to give the states below from those above, as the data drove them; the way up the reverse, of
        fantasies; the memory by contrastive divergence. The states count as constants.
        """
        losses_B = contrastive_losses(self.memory, states.wake[-1], states.sleep[-1])
        for number, (up, down) in enumerate(zip(self.recognition, self.generation, strict=True)):
            below, above = (self._plain(states.wake[n], n) for n in (number, number + 1))
            losses_B = losses_B + self.machine(number).visible.surprise(down(above), below)
            below, above = (self._plain(states.sleep[n], n) for n in (number, number + 1))
            losses_B = losses_B + BinaryUnits().surprise(up(below), above)
        return losses_B

    @torch.no_grad()
    def sample(
        self, labels_B: Int[Tensor, "B"], generator: torch.Generator, *, steps: int = 1000
    ) -> Float[Tensor, "B V"]:
        """What the net believes data of some labels to look like; needs `untie` first.

        Args:
            labels_B: held fixed in the memory.
            generator: draws the units.
            steps: rounds of Gibbs sampling, which start above a random image, as in the source.

        Returns:
            The means of the lowest units, above a drawn layer.
        """
        label_BL = functional.one_hot(labels_B, self.num_labels).to(self.memory.weight.dtype)
        state = torch.bernoulli(label_BL.new_full((len(labels_B), self.sizes[0]), 0.5), generator=generator)
        for up in self.recognition:
            state = torch.bernoulli(up(state).sigmoid(), generator=generator)
        start = torch.cat((state, label_BL), 1)
        found = self.memory.gibbs(start, steps, generator, clamp=label_BL)
        return self._down(found[:, : -self.num_labels], generator)[0]

    def _down(self, state_BH: Tensor, generator: torch.Generator) -> list[Tensor]:
        """States from the lowest layer up to the given one; the lowest are means, as in the source."""
        found = [state_BH]
        for number in reversed(range(len(self.generation))):
            activation = self.generation[number](found[0])
            units = self.machine(number).visible
            found.insert(0, units.sample(activation, generator) if number else units.mean(activation))
        return found

    def _plain(self, state: Tensor, number: int) -> Tensor:
        """A state without labels."""
        return state[:, : -self.num_labels] if number == len(self.recognition) else state

    def _with_labels(self, v_BV: Tensor, labels_B: Tensor) -> Tensor:
        return torch.cat((v_BV, functional.one_hot(labels_B, self.num_labels).to(v_BV.dtype)), 1)


def _blank(num_in: int, num_out: int) -> nn.Linear:
    """A linear layer of zeros."""
    layer = nn.utils.skip_init(nn.Linear, num_in, num_out)
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _set(layer: nn.Linear | nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(layer, nn.Linear)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _classifier(sizes: Sequence[int], num_labels: int, dropout: tuple[float, float]) -> nn.Sequential:
    of_inputs, of_hidden = dropout
    parts: list[nn.Module] = [nn.Dropout(of_inputs)]
    for v, h in pairwise(sizes):
        parts += [_blank(v, h), nn.Sigmoid(), nn.Dropout(of_hidden)]
    return nn.Sequential(*parts, _blank(sizes[-1], num_labels))

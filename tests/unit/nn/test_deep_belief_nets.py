"""Restricted Boltzmann machines against enumeration of all their states, and the parts of a deep belief net."""

import itertools
import math

import pytest
import torch

from featherlight.nn.models import (
    BinaryUnits,
    ContrastiveDivergence,
    DeepBeliefNet,
    GaussianUnits,
    LabelledUnits,
    PersistentChains,
    RestrictedBoltzmannMachine,
    contrastive_losses,
)

V, H = 5, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(count: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def machine(visible: object = None, scale: float = 60.0) -> RestrictedBoltzmannMachine:
    found = RestrictedBoltzmannMachine(V, H, generator=generator(), visible=visible).double()  # pyright: ignore
    with torch.no_grad():
        found.weight.mul_(scale)
        found.visible_bias.copy_(torch.linspace(-0.5, 0.5, V))
        found.hidden_bias.copy_(torch.linspace(0.3, -0.3, H))
    return found


def energies(rbm: RestrictedBoltzmannMachine) -> torch.Tensor:
    """Of all pairs of visible and hidden states, by the definition."""
    v, h = states(V), states(H)
    return -(v @ rbm.visible_bias)[:, None] - (h @ rbm.hidden_bias)[None] - v @ rbm.weight.mT @ h.mT


def test_free_energy_and_conditionals_are_those_of_the_joint_distribution():
    rbm = machine()
    joint = (-energies(rbm)).flatten().softmax(0).view(2**V, 2**H)
    torch.testing.assert_close((-rbm.free_energy(states(V))).softmax(0), joint.sum(1))
    given_v = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(rbm(states(V)), given_v @ states(H))
    given_h = joint.mT / joint.sum(0)[:, None]
    torch.testing.assert_close(rbm.visible.mean(rbm.visible_input(states(H))), given_h @ states(V))


@pytest.mark.parametrize("visible", [BinaryUnits(), LabelledUnits(num_labels=2)])
def test_contrastive_gradient_with_samples_of_the_model_is_the_exact_one(visible):
    rbm = machine(visible)
    allowed = states(V)
    if isinstance(visible, LabelledUnits):
        allowed = allowed[allowed[:, -2:].sum(1) == 1]
    data = allowed[[1, 5, 6]]
    exact = rbm.free_energy(data).mean() + torch.logsumexp(-rbm.free_energy(allowed), 0)
    expected = torch.autograd.grad(exact, list(rbm.parameters()))
    chains = visible.sample(torch.zeros(40_000, V, dtype=torch.float64), generator(3))
    samples = rbm.gibbs(chains, 60, generator(1))
    share = (samples[:, None] == allowed[None]).all(2).double().mean(0)
    torch.testing.assert_close(share, (-rbm.free_energy(allowed)).softmax(0).detach(), rtol=0, atol=0.012)
    found = torch.autograd.grad(contrastive_losses(rbm, data, samples).mean(), list(rbm.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.012)


def test_labels_are_told_by_exact_conditional_probabilities():
    rbm = machine(LabelledUnits(num_labels=2))
    plain = states(V - 2)
    one_hot = torch.eye(2, dtype=torch.float64)
    energy = torch.stack([rbm.free_energy(torch.cat((plain, row.expand(len(plain), 2)), 1)) for row in one_hot], 1)
    torch.testing.assert_close(rbm.label_logits(plain, 2).softmax(1), (-energy).softmax(1))


def test_gaussian_units_have_mean_input_and_variance_one():
    rbm = machine(GaussianUnits(), scale=1.0)
    h = states(H)[5:6].expand(20_000, H)
    drawn = rbm.visible.sample(rbm.visible_input(h), generator())
    torch.testing.assert_close(drawn.mean(0), rbm.visible_bias + h[0] @ rbm.weight, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), torch.ones(V, dtype=torch.float64), rtol=0, atol=0.05)
    integral = rbm.free_energy(torch.zeros(1, V, dtype=torch.float64))
    by_hand = 0.5 * rbm.visible_bias.square().sum() - torch.log1p(rbm.hidden_bias.exp()).sum()
    torch.testing.assert_close(integral, by_hand[None])
    assert float(rbm.visible.surprise(h[:1, :1], h[:1, :1] + 2)) == pytest.approx(2.0)


def test_persistent_chains_go_on_where_they_were_and_stand_in_the_state():
    rbm, chains = machine(), PersistentChains(7, V, generator=generator(), steps=2).double()
    first = chains(rbm, states(V), generator(1))
    assert torch.equal(chains.state_dict()["v_NV"], first)
    assert torch.equal(chains(rbm, states(V)[:2], generator(2)), rbm.gibbs(first, 2, generator(2)))
    assert first.shape == (7, V)
    assert ContrastiveDivergence(steps=2)(rbm, states(V), generator()).shape == (2**V, V)


def net() -> DeepBeliefNet:
    found = DeepBeliefNet((6, 5, 4, 3), 2, generator=generator()).double()
    with torch.no_grad():
        for parameter in found.machines.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(parameter.numel()), dtype=torch.float64))
    found.untie()
    found.start_classifier()
    return found


def test_the_updates_of_up_down_are_those_of_the_source():
    found, rate = net(), 1.0
    v, labels = torch.rand(4, 6, generator=generator(2), dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    drawn = found.wake_sleep(v, labels, generator(5), negative=ContrastiveDivergence(steps=2))
    assert [len(part) for part in drawn] == [3, 3]
    assert all(part.shape == other.shape for part, other in zip(*drawn, strict=True))
    found.zero_grad()
    found.up_down_losses(drawn).mean().backward()
    down, up = found.generation[1], found.recognition[0]
    h1, h2 = drawn.wake[1], drawn.wake[2][:, :4]
    expected = rate * (h1 - down(h2).sigmoid()).mT @ h2 / 4
    torch.testing.assert_close(-down.weight.grad, expected)
    v_sleep, h_sleep = drawn.sleep[0], drawn.sleep[1]
    torch.testing.assert_close(-up.weight.grad, (h_sleep - up(v_sleep).sigmoid()).mT @ v_sleep / 4)
    top_wake, top_sleep = (found.memory(s[-1]).mT @ s[-1] / 4 for s in drawn)
    torch.testing.assert_close(-found.memory.weight.grad, (top_wake - top_sleep).detach())


def test_the_classifier_starts_as_the_way_up_and_fantasies_follow_their_label():
    found = net()
    v = torch.rand(3, 6, generator=generator(2), dtype=torch.float64)
    below = found.data_of(2, v, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(found.classifier[:-1](v), found.memory(torch.cat((below[:, :4], 0 * below[:, 4:]), 1)))
    assert torch.equal(found(v), torch.zeros(3, 2, dtype=torch.float64))
    fantasies = found.sample(torch.tensor([0, 1]), generator(), steps=3)
    assert fantasies.shape == (2, 6)
    assert 0 <= float(fantasies.min()) <= float(fantasies.max()) <= 1
    assert math.isfinite(float(found.memory_logits(v).sum()))


def test_wrong_shapes_of_nets_get_a_sentence():
    with pytest.raises(ValueError, match="two hidden layers or more"):
        DeepBeliefNet((4, 3), 2, generator=generator())
    with pytest.raises(ValueError, match="`num_hidden` must be at least 1"):
        RestrictedBoltzmannMachine(3, 0, generator=generator())
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        ContrastiveDivergence(steps=0)
    with pytest.raises(ValueError, match="`num_labels` must be at least 2"):
        LabelledUnits(num_labels=1)

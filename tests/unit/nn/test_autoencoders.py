"""Networks around a vector quantizer: shapes, causality and samples of the prior, and what is refused."""

import pytest
import torch

from featherlight.nn.models import CodePrior, ConvDecoder, ConvEncoder, PatchDiscriminator, QuantizedAutoencoder
from featherlight.nn.vector_quantizers import Codes, Quantized
from featherlight.objective import seeded_random


class Rounding(torch.nn.Module):
    """Rounds to whole numbers, which are their own codes; channels on axis 1."""

    dim = 6
    bits_per_position = float("inf")

    def forward(self, x, *, mask=None):
        return Quantized(x + (x.round() - x).detach(), Codes(x.round().long().movedim(1, -1)), torch.zeros(()))

    def codes_to_values(self, codes):
        return codes.indices.movedim(-1, 1).float()


def seeded(make):
    with seeded_random(0, torch.device("cpu")):
        return make()


@pytest.mark.parametrize(
    ("axes", "strides", "shape", "inner"),
    [(2, (2, 2), (2, 3, 16, 24), (4, 6)), (1, (4, 2), (2, 3, 64), (8,)), (2, (), (1, 3, 5, 7), (5, 7))],
)
def test_an_autoencoder_gives_back_the_shape_and_its_codes_decode_to_the_output(axes, strides, shape, inner):
    options = {"dim": 6, "strides": strides, "width": 8, "num_blocks": 2, "block_width": 4, "num_axes": axes}
    encoder = seeded(lambda: ConvEncoder(in_channels=3, dilations=(1, 3), **options))
    decoder = seeded(lambda: ConvDecoder(out_channels=3, dilations=(1, 3), **options))
    model = QuantizedAutoencoder(encoder, Rounding(), decoder, shift=0.5, scale=0.25).eval()
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    found = model(x)
    assert found.output.shape == shape
    assert found.latents.shape == (shape[0], 6, *inner)
    torch.testing.assert_close(model.decode(model.encode(x)), found.output)
    assert (model(x + 0.25).latents - found.latents).abs().max() > 1e-3
    found.output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_strides_that_do_not_line_up_are_refused():
    with pytest.raises(ValueError, match=r"`strides` must be even numbers from 2.*got \[3\]"):
        ConvEncoder(in_channels=1, dim=2, strides=(3,))
    with pytest.raises(ValueError, match="`scale` must be positive"):
        QuantizedAutoencoder(torch.nn.Identity(), Rounding(), torch.nn.Identity(), scale=0.0)


def test_a_patch_is_judged_by_its_own_image_and_surroundings_alone():
    judge = seeded(lambda: PatchDiscriminator(in_channels=3, width=8, num_halvings=2))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    together = judge(images)
    assert together.ndim == 3
    torch.testing.assert_close(together[1:2], judge(images[1:2]))
    with pytest.raises(ValueError, match="must be at least 1"):
        PatchDiscriminator(in_channels=3, num_halvings=0)


def prior(**changes):
    return seeded(lambda: CodePrior(**({"slots": (5, 3), "num_positions": 4, "width": 16, "num_blocks": 2} | changes)))


def test_the_prior_is_causal_and_a_distribution():
    model = prior().eval()
    tokens = torch.tensor([[[4, 0], [2, 2], [1, 1], [3, 0]]])
    base = model(tokens)
    for place in range(8):
        position, slot = divmod(place, 2)
        other = tokens.clone()
        other[0, position, slot] = (other[0, position, slot] + 1) % (5, 3)[slot]
        changed = [
            bool((new[0, t] != old[0, t]).any()) for t in range(4) for new, old in zip(model(other), base, strict=True)
        ]
        assert changed == [number > place for number in range(8)]
    small = prior(slots=(3,), num_positions=2)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))[..., None]
    assert torch.exp(-2 * small.losses(pairs)).sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_come_from_the_likelihood_that_the_prior_states():
    model = prior(slots=(3, 2), num_positions=2).eval()
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(20)
    count = 4000
    drawn = model.sample(count, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, model.sample(count, generator=torch.Generator().manual_seed(3)))
    every = torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 3, 2))).view(-1, 2, 2)
    stated = torch.exp(-2 * model.losses(every))
    seen = (drawn[:, None] == every).all((2, 3)).float().mean(0)
    assert stated.max() > 3 * stated.min()
    assert (seen - stated).abs().max() < 4 * (stated.max() / count).sqrt()


def test_a_prior_learns_what_follows_from_what():
    model = prior(slots=(8,), num_positions=6, width=32)
    first = torch.arange(8)[:, None]
    rows = ((first + torch.arange(6)) % 8)[..., None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model.losses(rows).mean().backward()
        optimizer.step()
    drawn = model.eval().sample(50, generator=torch.Generator().manual_seed(0))[..., 0]
    assert ((drawn.diff(dim=1) % 8) == 1).float().mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"num_heads": 3}, "must divide"), ({"slots": ()}, "at least 1"), ({"num_positions": 0}, "at least 1")],
)
def test_a_prior_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        prior(**changes)


def test_tokens_of_another_shape_and_no_temperature_are_refused():
    with pytest.raises(ValueError, match=r"at most 4 positions, 2 slots\); got \(1, 5, 2\)"):
        prior()(torch.zeros(1, 5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        prior().sample(1, generator=torch.Generator(), temperature=0)

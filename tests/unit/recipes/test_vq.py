"""Autoencoders with vector quantizers: configs, the table of quantizers, codes as tokens, losses, and models on disk."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from featherlight.nn.models import PatchDiscriminator
from featherlight.nn.vector_quantizers import Codes
from featherlight.objective import seeded_random
from featherlight.recipes.catalogue import find_recipe, recipes
from featherlight.recipes.config import changed, from_mapping, to_mapping, to_toml
from featherlight.recipes.vq.config import AudioVqConfig, ImageVqConfig, NetworkConfig, PriorConfig
from featherlight.recipes.vq.losses import ImageError, SoundError, deception, gradient_difference, hinge
from featherlight.recipes.vq.networks import Blueprint, build_networks, read_networks, train_only, write_networks
from featherlight.recipes.vq.quantizer_config import QuantizerConfig
from featherlight.recipes.vq.quantizers import QUANTIZERS
from featherlight.recipes.vq.tokens import TokenTable
from featherlight.solvers.simplex_qp import compiled

SMALL = {"codebook_size": 16, "features": 8, "stages": 2, "groups": 2, "levels": (4, 3), "k": 2}


def small(kind: str) -> QuantizerConfig:
    options = {name: value for name, value in SMALL.items() if name in QUANTIZERS[kind].defaults}
    return QuantizerConfig(kind=kind, **options).resolved()  # pyright: ignore[reportArgumentType]


def blueprint(kind: str = "vq", **changes: Any) -> Blueprint:
    values = {
        "quantizer": small(kind),
        "network": NetworkConfig(strides=(2,), width=8, blocks=1, block_width=4),
        "prior": PriorConfig(width=8, blocks=1, heads=2),
        "channels": 1,
        "sizes": (8, 4),
        "shift": 0.4,
        "scale": 0.3,
        "low": 0.0,
        "high": 1.0,
        "seed": 5,
        "about": {"kind": "images"},
    }
    return Blueprint(**(values | changes))  # pyright: ignore[reportArgumentType]


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("vq/")])
def test_recipes_give_configs_that_come_back_from_text_with_any_quantizer(name: str) -> None:
    made = find_recipe(name)()
    assert isinstance(made, ImageVqConfig | AudioVqConfig)
    assert from_mapping(type(made), to_mapping(made), source="here") == made
    for kind in QUANTIZERS:
        if kind != made.quantizer.kind:
            other = changed(made, {"quantizer.kind": kind}, source="--set")
            resolved = dataclasses.replace(other, quantizer=other.quantizer.resolved())
            assert f'kind = "{kind}"' in to_toml(resolved, recipe=name)
            assert from_mapping(type(made), to_mapping(resolved), source="here") == resolved


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_an_option_that_a_kind_does_not_read_is_refused(kind: str) -> None:
    values = SMALL | {
        "commitment": 1.0,
        "decay": 0.9,
        "strength": 0.2,
        "weight_bits": 3,
        "temperature": 0.5,
        "lr_scale": 3.0,
    }
    for name, value in values.items():
        if name in QUANTIZERS[kind].defaults:
            assert getattr(QuantizerConfig(kind=kind, **{name: value}).resolved(), name) == value
        else:
            with pytest.raises(ValueError, match=rf"`quantizer\.{name}` is .* kind {kind} does not read it"):
                QuantizerConfig(kind=kind, **{name: value})
    assert values.keys() == {one.name for one in dataclasses.fields(QuantizerConfig)} - {"kind"}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_kind_is_as_its_row_says_and_its_model_comes_back_from_disk(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "kernels_installed", lambda: False)  # the solver's tests pay for compiling them
    plan = blueprint(kind)
    networks = build_networks(plan)
    networks.autoencoder(images())
    networks.eval()
    codes = networks.autoencoder.encode(images())
    quantizer = networks.autoencoder.quantizer
    *most, last = (6, 4, 2, *quantizer.code_shape)
    assert codes.indices.shape[: len(most)] == tuple(most)
    assert codes.indices.shape[len(most) :] <= (last,)  # mixtures of any number of codes are only as wide as they need
    assert codes.indices.max() < plan.num_codes
    assert (codes.weights is not None) == QUANTIZERS[kind].mixed
    if plan.num_stages is not None:
        assert quantizer.code_shape[0] == plan.num_stages
    if networks.table is not None:
        again = networks.table.to_codes(networks.tokens(images()), plan.positions)
        torch.testing.assert_close(quantizer.codes_to_values(again), quantizer.codes_to_values(codes))
        assert networks.sample(3, seed=1).shape == (3, 1, 8, 4)
    else:
        with pytest.raises(ValueError, match="no prior over its codes"):
            networks.sample(3, seed=1)
    write_networks(tmp_path / "model", networks)
    read = read_networks(tmp_path)
    assert read.blueprint == plan
    assert torch.equal(read.autoencoder(images()).output, networks.autoencoder(images()).output)
    read.train()
    assert read.autoencoder(images()).output.isfinite().all()


def test_models_of_another_kind_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no autoencoder with a vector quantizer at"):
        read_networks(tmp_path)
    write_networks(tmp_path / "model", build_networks(blueprint(), None))
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(about | {"architecture": "SmallConvNet"}))
    with pytest.raises(ValueError, match="does not say that its architecture is QuantizedAutoencoder"):
        read_networks(tmp_path)
    with pytest.raises(ValueError, match=r"sizes \[9, 4\].*must be multiples of 2"):
        build_networks(blueprint(sizes=(9, 4)))
    with pytest.raises(ValueError, match=r"must divide `quantizer\.features`"):
        build_networks(blueprint(quantizer=QuantizerConfig(kind="grouped", groups=3).resolved()))


def test_only_the_parts_that_are_named_are_trained() -> None:
    networks = build_networks(blueprint())
    train_only(networks, ("prior",))
    assert {n.partition(".")[0] for n, p in networks.named_parameters() if p.requires_grad} == {"prior"}
    train_only(networks, ("autoencoder",))
    assert {n.partition(".")[0] for n, p in networks.named_parameters() if p.requires_grad} == {"autoencoder"}


@pytest.mark.parametrize("code_shape", [(3,), (2, 3)])
def test_shares_that_a_prior_draws_become_mixtures_that_sum_to_one(code_shape: tuple[int, ...]) -> None:
    table = TokenTable(num_codes=5, code_shape=code_shape, units=7)
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, size, (200, 6), generator=generator) for size in table.slots]
    tokens = torch.stack(columns, -1)
    codes = table.to_codes(tokens, (2, 3))
    assert codes.weights is not None
    assert codes.indices.shape == (200, 2, 3, *code_shape)
    assert ((codes.indices >= -1) & (codes.indices < 5)).all()
    assert (codes.weights >= 0).all()
    torch.testing.assert_close(codes.weights.sum(-1), torch.ones_like(codes.weights.sum(-1)))
    assert not codes.weights[codes.indices < 0].any()
    back = table.to_codes(table.to_tokens(codes), (2, 3))
    assert torch.equal(back.indices, codes.indices)
    assert torch.equal(back.weights, codes.weights)  # pyright: ignore


def test_whole_codes_of_stages_are_their_own_tokens() -> None:
    table = TokenTable(num_codes=9, code_shape=(4,))
    indices = torch.randint(0, 9, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    tokens = table.to_tokens(Codes(indices))
    assert table.slots == (9,) * 4
    assert torch.equal(tokens, indices.view(2, 15, 4))
    assert torch.equal(table.to_codes(tokens, (3, 5)).indices, indices)


def test_gradient_differences_see_blur_and_no_brightness() -> None:
    target = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert gradient_difference(target + 0.3, target).max() < 1e-6
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    expected = (1 + 2 + 4) / 6  # of a slope of 1 along one of two axes, at three sizes
    assert gradient_difference(ramp, torch.zeros_like(ramp)).item() == pytest.approx(expected)
    blurred = torch.nn.functional.avg_pool2d(target, 3, stride=1, padding=1, count_include_pad=False)
    loss = ImageError(variance=0.25, gradients=0.5)
    expected = (blurred - target).square().mean((1, 2, 3)) / 0.25 + 0.5 * gradient_difference(blurred, target) / 0.5
    torch.testing.assert_close(loss(blurred, target), expected)
    assert gradient_difference(target[..., :1, :1], 0 * target[..., :1, :1]).tolist() == [0, 0]


def test_spectra_tell_tones_apart_and_hardly_phases() -> None:
    time = torch.arange(2048) / 8000
    tone, shifted, other = (
        torch.sin(2 * math.pi * f * time + p)[None, None] for f, p in ((440, 0), (440, 1), (660, 0))
    )
    loss = SoundError(variance=1.0, spectra=1.0)
    spectra = [float(loss(x, tone) - (x - tone).square().mean()) for x in (tone, shifted, other)]
    assert spectra[0] == 0
    assert spectra[1] < 0.5 * spectra[2]


def test_adversaries_want_opposites_and_only_the_maker_learns_from_deception() -> None:
    with seeded_random(0, torch.device("cpu")):
        judge = PatchDiscriminator(in_channels=1, width=4, num_halvings=1)
        fake = torch.rand(2, 1, 16, 16, requires_grad=True)
    wanted = deception(judge, fake)
    torch.testing.assert_close(wanted, -judge(fake).flatten(1).mean(1))
    wanted.sum().backward()
    assert fake.grad is not None
    assert fake.grad.abs().max() > 0
    assert all(p.grad is None for p in judge.parameters())
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    pair = {"real": torch.ones(4, 1, 16, 16), "fake": torch.rand(4, 1, 16, 16)}
    for _ in range(30):
        optimizer.zero_grad()
        hinge(judge, pair).mean().backward()
        optimizer.step()
    assert hinge(judge, pair).max() < 0.3
    assert judge(pair["real"]).mean() > judge(pair["fake"]).mean()

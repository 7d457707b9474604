"""Sorted hidden units compute the same and take fewer bytes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from featherlight.archive import find_chains, sort_hidden_units, write_archive

pytest.importorskip("numba")


def network() -> nn.Sequential:
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        *(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
        ),
        nn.Sequential(nn.Linear(12 * 3 * 3, 150), nn.Tanh()),
        *(nn.Linear(150, 10), nn.Softmax(1), nn.Linear(10, 3)),
    )
    with torch.no_grad():
        for name, one in net.named_parameters():
            one.copy_(torch.randn(one.shape, generator=g))
            if one.dim() > 1:
                keep = torch.rand(len(one), *[1] * (one.dim() - 1), generator=g) ** 3 * 0.5
                one.copy_(one.round().where(torch.rand(one.shape, generator=g) < keep, 0.0))
            assert name
    return net.double().eval()


def test_chains_are_found_sorted_and_compute_the_same(tmp_path: Path) -> None:
    net = network()
    chains = find_chains(net)
    assert chains == [("0", "1", "4"), ("4", "7.0"), ("7.0", "8")]
    images = torch.randn(5, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, tensors = net(images), net.state_dict()
    plain = write_archive(tmp_path / "a.feather", {key: one.clone() for key, one in tensors.items()})
    in_order = sort_hidden_units(tensors, chains)
    assert write_archive(tmp_path / "b.feather", in_order) < plain - 20
    net.load_state_dict(in_order)
    torch.testing.assert_close(net(images), before, rtol=1e-12, atol=1e-12)
    kept = (net[7][0].weight != 0).sum(1)
    assert torch.equal(kept, kept.sort(descending=True).values)


def test_chains_that_do_not_fit_are_refused() -> None:
    tensors = network().state_dict()
    for chain, sentence in (
        (("0", "99"), "got .'0', '99'."),
        (("8", "4"), "no multiple of the 10 units of 8"),
        (("0",), "two layers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sort_hidden_units(tensors, [chain])

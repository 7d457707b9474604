"""The classics in the image recipes: built by name for the images, saved and read, and shown images that are changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featherlight.data import ImageSet
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.classify import use
from featherlight.recipes.classify.architectures import ARCHITECTURES, NORMS, ImageClassifier
from featherlight.recipes.classify.augment import augmented
from featherlight.recipes.classify.config import AugmentConfig, ClassifyConfig, NetworkName, NormName
from featherlight.recipes.classify.network import build_network, read_network, select_trainable, write_network
from featherlight.recipes.runner import run_one
from featherlight.trainer import Display


def images(side: int = 28, channels: int = 1, height: int | None = None) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    shape = (8, channels, height or side, side)
    return ImageSet(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        labels=torch.arange(8) % 4,
        classes=("a", "b", "c", "d"),
    )


def test_the_names_of_configs_are_those_of_the_tables():
    assert set(NetworkName.__args__) == {"small", *ARCHITECTURES}
    assert set(NormName.__args__) == set(NORMS)


@pytest.mark.parametrize("network", ARCHITECTURES)
def test_every_classic_is_built_for_the_images_and_comes_back_from_its_directory(network, tmp_path):
    known = images(32, 3) if network in ("alexnet", "vit", "resnet18") else images()
    width = 1.0 if network.startswith(("lenet", "caffe", "vit")) else 0.25
    made = build_network(ClassifyConfig(network=network, width=width), known)
    assert isinstance(made.model, ImageClassifier)
    write_network(tmp_path / "model", made.model, made.classes)
    again = read_network(tmp_path / "model")
    x = known.floats(slice(0, 3))
    torch.testing.assert_close(again.model(x), made.model.eval()(x), rtol=0, atol=0)
    other = ImageClassifier(**json.loads(json.dumps(made.model.settings)))
    assert {n: t.shape for n, t in other.state_dict().items()} == {
        n: t.shape for n, t in made.model.state_dict().items()
    }
    if network == "resnet18":
        whole = build_network(ClassifyConfig(network=network), images(32, 3))
        assert sum(parameter.numel() for parameter in whole.model.parameters()) == 11_173_962 - 6 * 513
    select_trainable(made.model, "last:1")
    assert 0 < sum(p.requires_grad for p in made.model.parameters()) < len(list(made.model.parameters()))


@pytest.mark.parametrize(
    ("settings", "known", "sentence"),
    [
        ({"network": "lenet5"}, images(20), "an even number smaller by up to 8; got 20x20"),
        ({"network": "resnet8"}, images(28, height=20), "takes square images.*20x28"),
        ({"network": "small", "norm": "batch"}, images(), "`norm` is of the classics"),
        ({"network": "vit", "width": 0.5}, images(), "the network is `vit`, which has one size; got 0.5"),
        ({"network": "resnet8", "width": 0.0}, images(), "`width` must be a finite positive number; got 0.0"),
        ({"network": "resnet8", "norm": "group", "norm_groups": 3}, images(), "must divide the channels"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(settings: dict[str, Any], known, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_network(ClassifyConfig(**settings), known)


def test_a_head_without_weights_is_not_fitted_in_closed_form(tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=images().images.repeat(4, 1, 1, 1).squeeze(1).numpy(), labels=np.arange(32) % 4)
    config = ClassifyConfig(data=str(tmp_path / "x.npz"), network="lenet5", head_start=True, steps=1, device="cpu")
    with pytest.raises(ValueError, match="the head of lenet5 is no linear layer"):
        run_one(find_recipe("classify/digits"), config, tmp_path / "run", command="", display=Display())


@pytest.mark.parametrize("network", ["lenet5", "resnet8"])
def test_a_classic_is_trained_by_forward_passes_and_comes_back_from_its_journal(network, tmp_path):
    pixels = images().images.repeat(4, 1, 1, 1).squeeze(1).numpy()
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(32) % 4)
    settings: dict[str, Any] = {"method": "zo", "steps": 4, "batch": 8, "device": "cpu", "evaluations": 1}
    settings |= {} if network == "lenet5" else {"norm": "group", "norm_groups": 4, "augment": AugmentConfig(shift=1)}
    config = ClassifyConfig(data=str(tmp_path / "x.npz"), network=network, **settings)
    run_one(find_recipe("classify/digits"), config, tmp_path / "run", command="", display=Display())
    use.replay(None, tmp_path / "run" / "journal", tmp_path / "again")
    one, other = (read_network(tmp_path / name).model.state_dict() for name in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("flip", [False, True])
def test_changed_images_are_moved_and_mirrored_ones_and_the_same_each_time(flip):
    x = images(9, 2).floats(slice(0, 8))
    changed = augmented(x, shift=2, flip=flip, key=(3, 5))
    assert torch.equal(changed, augmented(x, shift=2, flip=flip, key=(3, 5)))
    assert not torch.equal(changed, augmented(x, shift=2, flip=flip, key=(3, 6)))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    mirrored = 0
    for one, wide in zip(changed, padded, strict=True):
        windows = [(wide[:, i : i + 9, j : j + 9], 0) for i in range(5) for j in range(5)]
        windows += [(window.flip(-1), 1) for window, _ in windows]
        found = [is_mirrored for window, is_mirrored in windows if torch.equal(window, one)]
        assert found
        mirrored += found[0]
    assert (0 < mirrored < 8) if flip else not mirrored
    assert torch.equal(augmented(x, shift=0, flip=False, key=(0, 0)), x)
    with pytest.raises(ValueError, match="at least 0 pixels; got -1"):
        AugmentConfig(shift=-1)

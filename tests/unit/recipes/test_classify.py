"""Image classifiers: configs, networks that are taken over, head start, journal and replay, on images made here."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featherlight.nn.models import SmallConvNet
from featherlight.recipes.catalogue import find_recipe, recipes
from featherlight.recipes.classify import use
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.classify.experiment import LEARNING_RATES, outputs
from featherlight.recipes.classify.network import read_network, select_trainable, write_network
from featherlight.recipes.config import from_mapping, to_mapping
from featherlight.recipes.methods import METHODS
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.runner import run_one
from featherlight.report import read_run
from featherlight.trainer import Display, Experiment, Workspace, read_journal

TINY = {"channels": (4, 8), "norm_groups": 2, "pool": False, "dropout": 0.0, "device": "cpu", "batch": 16}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 grey images of 8x8: a bright row, column, corner or centre in noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 4
    images = generator.integers(0, 120, (200, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        place = [(3, slice(None)), (slice(None), 3), (slice(0, 3), slice(0, 3)), (slice(3, 6), slice(3, 6))][label]
        image[place] += 130
    path = tmp_path_factory.mktemp("images") / "shapes.npz"
    names = np.array(["row", "column", "corner", "centre"])[labels]
    np.savez(path, images=images[:160], labels=names[:160], test_images=images[160:], test_labels=names[160:])
    return path


def config(shapes: Path, **changes: Any) -> ClassifyConfig:
    return ClassifyConfig(**({"data": str(shapes), "steps": 12, "evaluations": 2} | TINY | changes))


def build(one: ClassifyConfig, folder: Path) -> Experiment:
    return one.experiment(Workspace(scratch=folder, display=Display()))


def run(one: ClassifyConfig, path: Path) -> Path:
    assert run_one(find_recipe("classify/digits"), one, path, command="", display=Display()).stopped == "finished"
    return path


@pytest.fixture(scope="module")
def base(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows rows and columns."""
    one = config(shapes, classes=("row", "column"), steps=40, optimizer=OptimizerConfig(lr=1e-2))
    return run(one, tmp_path_factory.mktemp("runs") / "base")


def test_every_method_has_a_rate() -> None:
    assert LEARNING_RATES.keys() <= METHODS.keys()
    for method in LEARNING_RATES:
        assert ClassifyConfig(method=method).method == method  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("classify/")])
def test_recipes_give_configs_that_come_back_from_text(name: str) -> None:
    made = find_recipe(name)()
    assert isinstance(made, ClassifyConfig)
    assert from_mapping(ClassifyConfig, to_mapping(made), source="here") == made


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm_groups": 0}, "`norm_groups` must be at least 1; got 0"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"valid_fraction": 1.0}, "`valid_fraction` must lie between 0 and 1; got 1.0"),
        ({"channels": ()}, "`channels` must be one or more positive numbers"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\)"),
        ({"seed": -1}, "`seed` must be in"),
    ],
)
def test_wrong_values_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ClassifyConfig(**changes)


def test_images_are_normalized_by_the_training_images(shapes: Path, tmp_path: Path) -> None:
    experiment = build(config(shapes, valid_fraction=0.25), tmp_path)
    model: Any = experiment.model
    batch = experiment.stages[0].objective(0, None).batch["images"]  # pyright: ignore
    everything = torch.cat([experiment.stages[0].objective(step, None).batch["images"] for step in range(8)])  # pyright: ignore
    assert len(everything) == 120 + 8
    assert batch.shape == (16, 1, 8, 8)
    normal = (everything[:120] - model.mean) / model.std
    assert float(normal.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_network_is_taken_over_with_a_fresh_head_for_other_classes(shapes: Path, base: Path, tmp_path: Path) -> None:
    known = load_file(base / "model" / "model.safetensors")
    other: Any = build(config(shapes, initial=str(base), channels=(2,), norm_groups=1, pool=True), tmp_path).model
    same: Any = build(config(shapes, initial=str(base / "model"), classes=("row", "column")), tmp_path).model
    assert other.settings["channels"] == [4, 8]
    assert other.head.weight.shape == (4, 8)
    for name, tensor in known.items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert name.startswith("head.") or torch.equal(other.state_dict()[name], tensor)


def test_a_network_that_cannot_be_taken_over_is_refused(shapes: Path, base: Path, tmp_path: Path) -> None:
    colour = tmp_path / "colour.npz"
    np.savez(colour, images=np.zeros((8, 8, 8, 3), np.uint8), labels=np.arange(8) % 2)
    with pytest.raises(ValueError, match=r"takes images of 1 channels, but those of .* have 3"):
        build(config(colour, initial=str(base)), tmp_path)
    with pytest.raises(ValueError, match="there is no image classifier at nowhere"):
        build(config(shapes, initial="nowhere"), tmp_path)
    write_network(tmp_path / "model", SmallConvNet(in_channels=1, num_classes=2), ("a", "b"))
    about = tmp_path / "model" / "config.json"
    settings = json.loads(about.read_text())
    for wrong in ({"architecture": "Other"}, {"channels": [8, 8]}, {"depth": 3}):
        about.write_text(json.dumps(settings | wrong))
        with pytest.raises(ValueError, match="cannot be read as an image classifier"):
            read_network(tmp_path / "model")
    about.write_text(json.dumps(settings))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as an image classifier"):
        read_network(tmp_path / "model")


@pytest.mark.parametrize(
    ("choice", "trained"),
    [
        ("all", {"0", "1", "3", "4", "6", "7", "head"}),
        ("head", {"head"}),
        ("last:1", {"6", "7", "head"}),
        ("last:3", {"0", "1", "3", "4", "6", "7", "head"}),
        (r"features\.0", {"0"}),
    ],
)
def test_what_is_trained_is_chosen(choice: str, trained: set[str]) -> None:
    model = SmallConvNet(in_channels=1, num_classes=2, channels=(4, 4, 4), pool=False)
    select_trainable(model, choice)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1 if name.startswith("features") else 0] for name in names} == trained


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("last:4", "asks for 4 convolutions, but the network has 3; take 1 to 3"),
        ("last:0", "take 1 to 3"),
        ("heads", "fits none of the 11 parameters"),
        ("[", "is not a regular expression"),
    ],
)
def test_a_choice_that_fits_nothing_is_refused(choice: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        select_trainable(SmallConvNet(in_channels=1, num_classes=2, channels=(4, 4, 4), pool=False), choice)


def test_the_head_start_is_the_minimum_over_heads_on_fixed_features(shapes: Path, base: Path, tmp_path: Path) -> None:
    """The gradient of the penalised loss, computed here, vanishes; and the rest of the network is as it was."""
    experiment = build(config(shapes, initial=str(base), head_start=True, valid_fraction=0.2), tmp_path)
    model: Any = experiment.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = experiment.evaluate()[0].loss
    assert experiment.stages[0].begin() == "head start"
    after = experiment.evaluate()[0].loss
    assert loss is not None
    assert after is not None
    assert after < min(loss, math.log(4)) - 0.05
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert build(config(shapes), tmp_path).stages[0].begin() is None


@pytest.mark.parametrize("norm_groups", [2, None])
@pytest.mark.parametrize("from_base", [True, False])
def test_a_journal_and_the_base_are_the_trained_network(
    shapes: Path, base: Path, tmp_path: Path, from_base: bool, norm_groups: int | None
) -> None:
    initial = str(base) if from_base else None
    one = config(shapes, initial=initial, method="zo", head_start=True, norm_groups=norm_groups, seed=3)
    path = run(one, tmp_path / "run")
    done = use.replay(base if from_base else None, path / "journal", tmp_path / "again")
    assert done.keys() == {"steps", "sha256", "trained_sha256", "damage"}
    assert (done["steps"], done["damage"]) == (12, None)
    assert done["trained_sha256"] == read_journal(path / "journal").digest_at(12) is not None
    trained, again = (load_file(folder / "model.safetensors") for folder in (path / "model", tmp_path / "again"))
    assert trained.keys() == again.keys()
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(read_network(path).model(x), read_network(tmp_path / "again").model(x))
    with pytest.raises(ValueError, match="exists already"):
        use.replay(base, path / "journal", tmp_path / "again")
    with pytest.raises(ValueError, match="is not among the 12 steps"):
        use.replay(base, path / "journal", tmp_path / "other", steps=13)
    with pytest.raises(ValueError, match="was made on another base model"):
        use.replay(None if from_base else base, path / "journal", tmp_path / "other")


def test_forward_only_training_takes_the_loss_down_from_the_head_start(
    shapes: Path, base: Path, tmp_path: Path
) -> None:
    one = config(shapes, initial=str(base), method="zo", head_start=True, steps=150, optimizer=OptimizerConfig(lr=1e-3))
    record = read_run(run(one, tmp_path / "run"))
    start = next(event for event in record.events if event.name == "head start")
    assert start.loss is not None
    assert record.evals[-1].loss is not None
    assert record.evals[-1].loss < start.loss
    assert record.summary is not None
    assert record.summary.counters.backward_passes == 0
    assert record.summary.counters.example_forwards >= 2 * 150 * 16
    assert record.summary.journal_bytes


@pytest.mark.parametrize("method", ["zo", "mezo", "adamw"])
def test_a_run_that_is_interrupted_ends_at_the_same_bits(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    from featherlight.recipes.classify import experiment as module

    one = config(shapes, method=method, head_start=True, dropout=0.3)
    whole, parts = run(one, tmp_path / "whole"), tmp_path / "parts"
    real = module._Classifier.objective

    def objective(self: Any, step: int, meter: Any) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return real(self, step, meter)

    with monkeypatch.context() as patch:
        patch.setattr(module._Classifier, "objective", objective)
        with pytest.raises(KeyboardInterrupt):
            run_one(find_recipe("classify/digits"), one, parts, command="", display=Display())
    run(one, parts)
    first, second = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_statistics_of_batch_normalization_stay_in_forward_only_training(shapes: Path, tmp_path: Path) -> None:
    base = run(config(shapes, norm_groups=None, pool=True, classes=("row", "column")), tmp_path / "base")
    path = run(config(shapes, initial=str(base), method="zo"), tmp_path / "run")
    before, after = (load_file(one / "model" / "model.safetensors") for one in (base, path))
    running = [name for name in before if "running" in name or "batches" in name]
    assert running
    assert all(torch.equal(before[name], after[name]) for name in running)
    assert not torch.equal(before["features.0.weight"], after["features.0.weight"])


def test_the_report_is_of_the_test_images(shapes: Path, tmp_path: Path) -> None:
    path = run(config(shapes, steps=2), tmp_path / "run")
    record = read_run(path)
    (section,) = record.sections
    assert "Of the 40 test images" in section.text
    experiment = build(replace(config(shapes), initial=str(path)), tmp_path)
    assert experiment.facts["test images"] == "40"
    assert outputs(experiment.model, _test_images(shapes)).shape == (40, 4)


def _test_images(shapes: Path) -> Any:
    from featherlight.data import load_images

    return load_images(str(shapes)).test


def test_a_memory_of_activations_is_kept_and_changes_no_bit(shapes: Path, tmp_path: Path) -> None:
    asked = config(shapes, network="resnet8", channels=(32, 64), norm_groups=None, pool=True, dropout=0.2, steps=3)
    kept = run(replace(asked, activation_memory="1500KiB"), tmp_path / "kept") / "model" / "model.safetensors"
    plain = run(asked, tmp_path / "plain") / "model" / "model.safetensors"
    assert kept.read_bytes() == plain.read_bytes()
    facts = build(replace(asked, activation_memory="1500KiB"), tmp_path).facts
    assert "more time" in facts["activations and gradients"]
    with pytest.raises(ValueError, match="fits into 10,240 bytes: the least is"):
        build(replace(asked, activation_memory="10KiB"), tmp_path)
    with pytest.raises(ValueError, match="`zo` makes forward passes only"):
        build(replace(asked, activation_memory="2MiB", method="zo"), tmp_path)
    with pytest.raises(ValueError, match="`much` is no amount of memory"):
        replace(asked, activation_memory="much")

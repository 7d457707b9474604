"""Data and configs of implicit models, and what is said of bad ones."""

import pytest
import torch

from featherlight.recipes.implicit.config import GrowthConfig, ImplicitConfig, LoopConfig
from featherlight.recipes.implicit.data import FUNCTIONS, interpolation, tabular


def table(path, text: str):
    path.write_text(text)
    return str(path)


def test_a_table_of_ones_own(tmp_path):
    lines = "\n".join(f"{i},{2 * i},{i % 5}" for i in range(50))
    data = table(tmp_path / "own.csv", f"a,price,b\n{lines}\n")
    found = tabular(data, target="price", split=0, valid_fraction=0.2, seed=0)
    assert found.names == ("a", "b")
    assert found.test is not None
    assert (len(found.train), len(found.valid), len(found.test)) == (32, 8, 10)
    assert torch.equal(found.train.targets[:, 0], 2 * found.train.inputs[:, 0])
    again = tabular(data, target="price", split=0, valid_fraction=0.2, seed=0)
    assert again.digest() == found.digest()
    with pytest.raises(ValueError, match=r"has no column 'prize'.* Did you mean 'price'"):
        tabular(data, target="prize", split=0, valid_fraction=0.2, seed=0)


def test_bad_tables_and_functions_get_a_sentence(tmp_path):
    def read(data: str) -> None:
        tabular(data, target=None, split=0, valid_fraction=0.2, seed=0)

    with pytest.raises(ValueError, match=r"'nowhere.csv' is neither a file nor one of boston, concrete"):
        read("nowhere.csv")
    with pytest.raises(ValueError, match=r"the column 'b' of .* holds something that is not a number: 'x' in row 2"):
        read(table(tmp_path / "words.csv", "a,b\n1,3\n2,x\n"))
    with pytest.raises(ValueError, match=r"not a number: '' in row 2\. Fill it in, drop the row"):
        read(table(tmp_path / "blank.csv", "a,b\n1,3\n,4\n"))
    with pytest.raises(ValueError, match=r"the column 'a' of .* has no finite number in row 2"):
        read(table(tmp_path / "gaps.csv", "a,b\n1,2\nnan,3\n"))
    with pytest.raises(ValueError, match="has the one column 'a', so there is nothing to foretell it from"):
        read(table(tmp_path / "one.csv", "a\n1\n2\n"))
    with pytest.raises(ValueError, match="there is no function 'cosine' to interpolate; there are sine, ripple"):
        interpolation("cosine", num_points=10, seed=0)
    with pytest.raises(ValueError, match="`points` must be at least 4; got 3"):
        interpolation("sine", num_points=3, seed=0)


def test_sets_by_name_need_the_folder(monkeypatch):
    monkeypatch.delenv("FEATHERLIGHT_DATA", raising=False)
    with pytest.raises(
        ValueError, match=r"yacht is read from uci-regression/uci_regression.npz in the folder that FEATH"
    ):
        tabular("yacht", target=None, split=0, valid_fraction=0.2, seed=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_finite_and_their_parts_apart(name):
    found = interpolation(name, num_points=20, seed=1)
    assert bool(found.train.targets.isfinite().all())
    assert not torch.equal(found.train.inputs, found.valid.inputs)
    assert found.train.inputs.shape[1] == FUNCTIONS[name][0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ImplicitConfig(blocks=()), r"`blocks` must be one or more sizes of at least 1; got \[\]"),
        (lambda: ImplicitConfig(valid_fraction=1.0), "`valid_fraction` must lie between 0 and 1; got 1.0"),
        (lambda: ImplicitConfig(sparse=(2.0,)), r"`sparse` must be numbers between 0 and 1; got \[2.0\]"),
        (lambda: ImplicitConfig(seed=-1), "`seed` must be in"),
        (lambda: GrowthConfig(ridge=0.0), "`growth.ridge` and `growth.lr` must be positive; got 0.0"),
        (lambda: GrowthConfig(patience=0), "`growth.patience` must be at least 1; got 0"),
        (lambda: GrowthConfig(decay=-1.0), "`growth.decay` and `growth.read_out_steps` must be at least 0; got -1.0"),
        (lambda: LoopConfig(epochs=0), "`loop.epochs` and `loop.batch` must be at least 1; got 0"),
        (lambda: LoopConfig(lr=0.0), "`loop.lr` must be positive"),
    ],
)
def test_bad_configs_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

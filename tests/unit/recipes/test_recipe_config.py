"""Configs of recipes: what is written is what is read, and what is misspelt is refused with the right key named."""

import dataclasses
import random
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from featherlight.recipes.catalogue import Recipe, find, find_recipe, make_config, recipe, recipes
from featherlight.recipes.config import (
    VERSION,
    changed,
    from_mapping,
    known_keys,
    nearest,
    parse_set,
    read_toml,
    to_toml,
)

_LETTERS = string.ascii_lowercase + string.digits + "_"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    seed: int = 0
    steps: int | None = 10
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0; got {self.seed}.")

    def experiment(self, workspace: Any) -> Any:
        raise NotImplementedError


def typos(word: str) -> set[str]:
    """All that is one substitution, insertion, deletion or exchange of neighbours away, dots left alone."""
    found = set()
    for i in range(len(word) + 1):
        found |= {word[:i] + letter + word[i:] for letter in _LETTERS}
        if i < len(word) and word[i] != ".":
            found |= {word[:i] + letter + word[i + 1 :] for letter in _LETTERS} | {word[:i] + word[i + 1 :]}
        if "." not in word[i : i + 2]:
            found.add(word[:i] + word[i : i + 2][::-1] + word[i + 2 :])
    return {typo for typo in found - {word} if all(typo.split("."))}


ONE_OF_EACH_KIND = {type(one()): name for name, one in recipes().items()}.values()
"""A recipe for each class of configs."""


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_every_one_character_typo_is_refused_and_the_right_key_proposed(name: str) -> None:
    config = recipes()[name]()
    keys = known_keys(type(config))
    every = [(typo, key) for key in keys for typo in sorted(typos(key))]
    assert not {typo for typo, _ in every} & set(keys), "no typo of a key may be another key"
    sample = random.Random(0).sample(every, 300)
    proposed = 0
    for typo, key in sample:
        with pytest.raises(ValueError, match="unknown key") as refused:
            changed(config, {typo: 1}, source="--set")
        proposed += f"Did you mean `{key}`?" in str(refused.value)
    assert proposed / len(sample) >= 0.95


@pytest.mark.parametrize("name", recipes())
def test_a_written_config_is_read_as_itself(name: str, tmp_path: Path) -> None:
    config = recipes()[name]()
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config, recipe=name))
    one, again = find(str(path))
    assert (one.name, again) == (name, config)


def test_what_is_off_stays_off_when_the_recipe_has_it_on(tmp_path: Path) -> None:
    config = changed(Outer(), {"steps": None, "maybe.rate": 2.0}, source="--set")
    assert config == Outer(steps=None, maybe=Inner(rate=2.0))
    path = tmp_path / "c.toml"
    path.write_text(to_toml(config, recipe="x"))
    recipe_name, values = read_toml(path)
    assert recipe_name == "x"
    assert changed(Outer(), values, source="c.toml") == config


def test_changes_are_nested_or_dotted() -> None:
    assert changed(Outer(), {"inner": {"rate": 1}}, source="x").inner.rate == 1.0
    assert changed(Outer(), {"inner.rate": 1, "sizes": [3]}, source="x").sizes == (3,)
    assert Outer() == changed(Outer(), {}, source="x")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inner": 3}, "`inner` is a group of keys and takes no value itself. Set one of `inner.rate`, `inner.kind`"),
        ({"seed.x": 3}, "`seed.x` asks for a key below `seed`, which is a value"),
        ({"inner.rat": 3}, "unknown key `inner.rat`. Did you mean `inner.rate`?"),
        ({"qqqq": 3}, "Known keys: seed, steps, sizes, inner, maybe"),
        ({"inner.rate": "fast"}, "`inner.rate` is 'fast'"),
        ({"inner.kind": "c"}, "`inner.kind` is 'c'"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
        ({"seed": None}, "`seed` is None"),
    ],
)
def test_wrong_changes_get_a_sentence_with_the_path(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^--set: ") as refused:
        changed(Outer(), changes, source="--set")
    assert sentence in str(refused.value)


def test_a_missing_key_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needs:
        model: str

    with pytest.raises(ValueError, match="`model` is missing"):
        from_mapping(Needs, {}, source="c.toml")


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("a.b=1", "a.b", [1]),
        ("a=1e-3,1e-2", "a", [1e-3, 1e-2]),
        ("a=x=y", "a", ["x=y"]),
        ("a=true", "a", [True]),
        ("a=none,2", "a", [None, 2]),
        ('a=["x", "y"]', "a", [["x", "y"]]),
        ("a=[1,2],[3]", "a", [[1, 2], [3]]),
        ('a="x,y",z', "a", ["x,y", "z"]),
    ],
)
def test_values_of_set(text: str, key: str, values: list[Any]) -> None:
    assert parse_set(text) == (key, values)


@pytest.mark.parametrize("text", ["a", "=1", "a=", " = 3"])
def test_a_set_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="takes key=value"):
        parse_set(text)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'recipe = "classify/digits"\nversion = {VERSION + 1}\n')
    with pytest.raises(ValueError, match="newer featherlight"):
        read_toml(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("epochs = 3\n", "names no recipe"),
        ('recipe = "classify/digit"\n', "Did you mean classify/digits?"),
        ('recipe = "classify/digits"\nepoch = 3\n', "Did you mean `epochs`?"),
        ('recipe = "classify/digits"\noff = ["epochs.x"]\nepochs = 3\n', "`epochs` is a value"),
        ("recipe = \n", "not valid TOML"),
        ("recipe = 3\n", "it is the name of a recipe"),
        ('recipe = "classify/digits"\noff = ["epochs", 3]\n', "lists the names of keys"),
    ],
)
def test_wrong_files_get_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"c\.toml|there is no recipe") as refused:
        find(str(path))
    assert sentence in str(refused.value)


def test_recipes_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Mine:\n    seed: int = 7\n    def experiment(self, workspace): ...\n"
        "def good():\n    'My own.'\n    return Mine()\n"
        "def raising():\n    return 1 / 0\n"
        "def wrong():\n    return 3\n"
    )
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    one, config = find("mine:good")
    assert (one.name, one.summary, config) == ("mine:good", "My own.", type(config)(seed=7))
    for name, sentence in {
        "mine:raising": r"raised ZeroDivisionError: division by zero \(mine.py:10\)",
        "mine:wrong": "returned a int; it must return a frozen dataclass",
        "mine:god": "has no function god. Did you mean good?",
        "nowhere:f": "cannot be found",
        "broken:f": "nowhere_at_all",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            find(name)


def test_the_catalogue_knows_what_recipes_need() -> None:
    for name, one in recipes().items():
        assert one.name == name
        assert one.summary.endswith(".")
        assert one.cost
        assert one.data
        assert dataclasses.is_dataclass(make_config(one))
    with pytest.raises(ValueError, match="Did you mean classify/digits"):
        find_recipe("clasify/digits")


def test_a_decorated_function_is_a_recipe() -> None:
    @recipe(cost="none", data="none")
    def small() -> Outer:
        """One line.

        More.
        """
        return Outer()

    assert isinstance(small, Recipe)
    assert (small.summary, small()) == ("One line.", Outer())


def test_nearest_is_none_for_what_is_like_nothing() -> None:
    assert nearest("zzzz", ["seed", "lr"]) is None
    assert nearest("sed", ["seed", "lr"]) == "seed"


def test_names_that_a_config_file_needs_for_itself_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Cake:
        recipe: str = "cake"

    @dataclass(frozen=True, kw_only=True)
    class Place:
        data: Path = Path("here")

    with pytest.raises(ValueError, match="has a key `recipe`"):
        to_toml(Cake(), recipe="x")
    with pytest.raises(ValueError, match="TOML has no word for"):
        to_toml(Place(), recipe="x")


@pytest.mark.parametrize("changes", [{"inner.rate": True}, {"steps": "7"}, {"seed": False}])
def test_values_are_not_quietly_converted(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="and it takes a"):
        changed(Outer(), changes, source="--set")

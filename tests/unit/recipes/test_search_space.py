"""`--space`: what is read, and what is refused with a sentence before anything runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from featherlight.recipes.search_space import Choice, Range, num_points, parse_space


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float | None = 0.5
    kind: Literal["a", "b", "c"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    seed: int = 0
    batch: int | None = 32
    dropout: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    fast: bool = False
    name: str = "some"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1); got {self.dropout}.")

    def experiment(self, workspace: Any) -> Any:
        raise NotImplementedError


CONFIG = Outer()


@pytest.mark.parametrize(
    ("text", "parameter"),
    [
        ("dropout=0.0:0.5", Range(key="dropout", low=0.0, high=0.5)),
        ("dropout = 0:0.5", Range(key="dropout", low=0.0, high=0.5)),
        ("inner.rate=log:1e-5:1e-2", Range(key="inner.rate", low=1e-5, high=1e-2, log=True)),
        ("inner.rate=int:1:8", Range(key="inner.rate", low=1, high=8, whole=True)),
        ("batch=int:16:128", Range(key="batch", low=16, high=128, whole=True)),
        ("batch=16:128", Range(key="batch", low=16, high=128, whole=True)),
        ("batch=log:int:16:128", Range(key="batch", low=16, high=128, whole=True, log=True)),
        ("batch=int:log:16:128", Range(key="batch", low=16, high=128, whole=True, log=True)),
        ("batch=16,32,none", Choice(key="batch", values=(16, 32, None))),
        ("sizes=[16],[32,64]", Choice(key="sizes", values=([16], [32, 64]))),
        ("fast=true,false", Choice(key="fast", values=(True, False))),
        ("inner.kind=a,c", Choice(key="inner.kind", values=("a", "c"))),
        ("maybe.rate=0.1:0.2", Range(key="maybe.rate", low=0.1, high=0.2)),
        ("name=a:b,c:d", Choice(key="name", values=("a:b", "c:d"))),
    ],
)
def test_what_is_read(text: str, parameter: Range | Choice) -> None:
    assert parse_space([text], CONFIG) == (parameter,)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ((), "at least one `--space`"),
        (("dropout",), "got 'dropout'"),
        (("=1:2",), "got '=1:2'"),
        (("dropout=",), "got 'dropout='"),
        (("droput=0.0:0.5",), "Did you mean `dropout`?"),
        (("inner.rat=0.0:0.5",), "Did you mean `inner.rate`?"),
        (("inner=0.0:0.5",), "is a group of keys"),
        (("dropout.x=0:1",), "which is a value"),
        (("dropout=0.0:1.5",), r"`dropout` must lie in \[0, 1\); got 1.5"),
        (("dropout=0.1,2.0",), r"`dropout` must lie in \[0, 1\); got 2.0"),
        (("dropout=0.5:0.1",), "low end that is below its high end"),
        (("dropout=0.1:0.1",), "low end that is below its high end"),
        (("dropout=0.1:inf",), "finite"),
        (("dropout=log:0.0:0.5",), "must be above 0; got 0"),
        (("dropout=log:0.1",), "has a range that is none: 'log:0.1'"),
        (("dropout=log:a:b",), "has a range that is none: 'log:a:b'"),
        (("dropout=log:nan:1",), "has a range that is none"),
        (("dropout=0.1",), r"has one value only \(0.1\)"),
        (("dropout=a:b",), "has one value only"),
        (("dropout=0.1,0.1",), "names 0.1 twice"),
        (("batch=int:1.5:8",), "in whole numbers"),
        (("batch=1.5:8",), "`batch` is 1.5"),
        (("fast=0:1",), "takes a bool"),
        (("name=0:1",), "`name` is 0"),
        (("inner.kind=a,d",), "`inner.kind` is 'd'"),
        (("dropout=0.1,0.2", "dropout=0.3,0.4"), "`dropout` is given twice"),
        (("seed=0,1,2",), "`seed` is not searched over"),
    ],
)
def test_what_is_refused(texts: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_space(texts, CONFIG)


def test_values_are_found_again_as_they_are_stored() -> None:
    numbers, sizes = parse_space(["dropout=0.0:0.5", "sizes=[16],[32,64]"], CONFIG)
    assert numbers.stored(0.5) == 0.5
    assert numbers.stored(0.6) is None
    assert numbers.stored(None) is None
    assert numbers.stored(True) is None
    assert sizes.stored((32, 64)) == "[32, 64]"
    assert sizes.stored((32,)) is None


def test_the_number_of_points() -> None:
    assert num_points(parse_space(["batch=1:8", "fast=true,false"], CONFIG)) == 16
    assert num_points(parse_space(["dropout=0.0:0.5", "fast=true,false"], CONFIG)) == float("inf")


def test_proposals_depend_on_the_seed_and_the_trials_before_alone(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from featherlight.recipes.study import Outcome, Study

    space = parse_space(["dropout=0.0:0.5", "inner.rate=log:1e-5:1e-2", "inner.kind=a,b"], CONFIG)

    def open_study(name: str, seed: int) -> Study:
        journal = tmp_path / name
        return Study(journal, space, seed=seed, lower_is_better=lambda: True, start={})

    def trials(name: str, *, seed: int, reopen: bool) -> list[Any]:
        study, seen = open_study(name, seed), []
        for _ in range(14):
            study = open_study(name, seed) if reopen else study
            proposal = study.propose()
            seen.append(proposal.values)
            if reopen:
                study = open_study(name, seed)
                proposal = study.propose()
                assert proposal.values == seen[-1], "a trial that was stopped is gone on with"
            study.end(proposal, Outcome(stopped="finished", metric=abs(proposal.values["dropout"] - 0.3)))
        return seen

    assert trials("whole", seed=0, reopen=False) == trials("parts", seed=0, reopen=True)
    assert trials("other", seed=1, reopen=False)[0] != trials("another", seed=2, reopen=False)[0]

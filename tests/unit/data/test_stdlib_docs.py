from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from featherlight.data import stdlib_docs
from featherlight.data.stdlib_docs import _FAMILIES, _texts_by_family


def test_eight_families_equally_large_and_taking_turns():
    texts, labels = stdlib_docs()
    counts = Counter(labels)
    assert len(counts) == 8
    assert len(set(counts.values())) == 1
    assert len(texts) == len(labels) > 8 * 300
    assert set(labels[:8]) == set(labels[-8:]) == set(counts)


def test_texts_are_distinct_normalised_and_of_some_length():
    texts, _ = stdlib_docs()
    assert len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) and 30 <= len(text) <= 400 for text in texts)


def test_the_order_is_the_same_each_time_and_a_smaller_set_is_a_prefix():
    texts, labels = stdlib_docs()
    _texts_by_family.cache_clear()
    assert stdlib_docs() == (texts, labels)
    assert stdlib_docs(per_class=5) == (texts[:40], labels[:40])


def test_no_module_is_in_two_families_and_all_families_have_present_modules():
    modules = [module for family in _FAMILIES.values() for module in family.split()]
    assert len(set(modules)) == len(modules)
    root = Path(sysconfig.get_path("stdlib"))
    for family, names in _FAMILIES.items():
        assert sum((root / f"{name}.py").exists() or (root / name).is_dir() for name in names.split()) > 5, family


def test_a_text_does_not_name_its_module():
    by_family = _texts_by_family()
    assert not any("asyncio" in text.lower() for text in by_family["concurrency"])
    assert not any("unittest.mock" in text for text in by_family["testing"])


@pytest.mark.parametrize("per_class", [0, 10**6])
def test_a_size_that_cannot_be_had_is_refused(per_class: int):
    with pytest.raises(ValueError, match=rf"`per_class` must lie in 1\.\.\d+, .* got {per_class}"):
        stdlib_docs(per_class=per_class)


def test_a_library_without_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _texts_by_family.cache_clear()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match="has no source files"):
        stdlib_docs()
    _texts_by_family.cache_clear()

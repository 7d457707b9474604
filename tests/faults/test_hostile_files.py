"""Hostile files: a sentence or what is intact; never code, a hang, a traceback, or memory without bound."""

import resource
from pathlib import Path

import pytest

from tests.faults.hostile import corpus, read_watched
from tests.faults.processes import REFUSED, forked

FILES = corpus()
_SECONDS, _BYTES = 20, 1 << 30


def test_the_corpus_is_not_small() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_or_read_and_nothing_else_happens(tmp_path: Path, name: str) -> None:
    read, data, file = FILES[name]
    (tmp_path / file).write_bytes(data)
    log = tmp_path / "log"

    def watched(told: int) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, used + _BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        read_watched(read, tmp_path / file)

    ended = forked(watched, log=log)
    assert ended.code in (0, REFUSED), log.read_text()[-500:]

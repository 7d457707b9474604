"""The command line as a user meets it, in this process, on tiny models and data."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import tiny_models
from tests.e2e.command_line import Ended, call
from tests.e2e.digits_runs import DIGITS


@pytest.fixture
def run() -> Callable[..., Ended]:
    """Runs the command line with arguments; whatever happens, there must be no traceback."""

    def once(*arguments: object) -> Ended:
        ended = call([*map(str, arguments)])
        assert "Traceback" not in ended.err
        return ended._replace(err=" ".join(ended.err.split()))

    return once


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models bert, sentence, gpt2, llama and t5."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.bert(folder / "bert")
    tiny_models.sentence_model(folder / "sentence")
    tiny_models.gpt2(folder / "gpt2")
    tiny_models.llama(folder / "llama")
    tiny_models.t5(folder / "t5")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the digits, which nobody may change; for reading and for copies."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("finished") / "run"
    done = call([*DIGITS, "--out", str(out)])
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 rows whose label is whether the text says good or bad, with a number as well."""
    chooser = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    rows = []
    for number in range(120):
        mood = ("good", "bad")[number % 2]
        words = [*chooser.choices(tiny_models.WORDS[4:], k=chooser.randint(2, 8)), mood]
        chooser.shuffle(words)
        rows.append(
            {"sentence": " ".join(words), "feeling": mood, "stars": round(number % 2 * 3 + chooser.random(), 2)}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

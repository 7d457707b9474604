"""The command line as a user meets it, in this process, on tiny models and data."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from featherlight import cli
from tests.e2e import tiny_models


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs the command line with arguments; whatever happens, there must be no traceback."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featherlight", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, " ".join(captured.err.split()))

    return call


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

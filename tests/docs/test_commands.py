"""Commands and config files on the pages: verbs and options exist, recipes are there, keys are keys."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from featherlight import cli
from featherlight.recipes import find

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
APP = typer.main.get_command(cli.app)
_CODE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every `featherlight` command of a page, in blocks and in running text."""
    text = page.read_text()
    lines = [line for block in _CODE.findall(text) for line in block.splitlines()]
    lines += _INLINE.findall(_CODE.sub("", text))
    found = (line.removeprefix(".venv/bin/").strip() for line in lines)
    return [shlex.split(line, comments=True) for line in found if line.startswith("featherlight ")]


ALL = [(f"{page.stem}: {' '.join(words)}", words) for page in PAGES for words in commands(page)]
RUNS = sorted({tuple(words) for _, words in ALL if words[2:3] == ["classify/digits"]})


@pytest.mark.parametrize("words", [words for _, words in ALL], ids=[name for name, _ in ALL])
def test_verb_and_options_exist(words: list[str]) -> None:
    verbs: dict[str, Any] = getattr(APP, "commands")  # noqa: B009
    assert words[1] in {*verbs, "--version"}
    options = {name for one in verbs[words[1]].params for name in (*one.opts, *one.secondary_opts)}
    assert {word.partition("=")[0] for word in words[2:] if word.startswith("--")} <= options


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_runs_and_searches_of_the_digits_can_be_planned(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*words, "--dry-run", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert not ended.value.code
    assert json.loads(out)["recipe"] == "classify/digits"


@pytest.mark.parametrize("page", [page for page in PAGES if _TOML.search(page.read_text())], ids=lambda page: page.stem)
def test_config_files_are_read(page: Path, tmp_path: Path) -> None:
    for text in _TOML.findall(page.read_text()):
        (tmp_path / "config.toml").write_text(text)
        find(str(tmp_path / "config.toml"))

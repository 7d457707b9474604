"""Every Python block of the pages is a program that runs, and the commands of the page of seams run on its modules."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from featherlight import cli
from featherlight.report import read_run

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r'"""(\w+\.py): ')
_COMMAND = re.compile(r"^featherlight .*$", re.MULTILINE)
BLOCKS = {
    f"{page.name}:{page.read_text()[: match.start(1)].count(chr(10)) + 1}": (page, match)
    for page in sorted(DOCS.glob("*.md"))
    for match in _BLOCK.finditer(page.read_text())
}


@pytest.mark.parametrize(("page", "block"), BLOCKS.values(), ids=BLOCKS)
def test_example_runs(page: Path, block: re.Match[str]) -> None:
    """As a program of its own, with the line numbers of the page in a traceback."""
    lines_before = block.string[: block.start(1)].count("\n")
    program = compile("\n" * lines_before + block[1], page, "exec", dont_inherit=True)
    exec(program, {"__name__": "example"})


@pytest.fixture
def folder_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the modules of the page of seams, as a reader would save them."""
    modules = {found[1]: block[1] for _, block in BLOCKS.values() if (found := _MODULE.match(block[1]))}
    assert {"waves.py", "thaw.py", "losses.py"} <= modules.keys()
    for name, text in modules.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_the_commands_run_on_the_modules_of_the_page(
    folder_of_modules: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = _COMMAND.findall((DOCS / "extending.md").read_text())
    assert len(commands) >= 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, capsys.readouterr().err
    runs = [read_run(path.parent) for path in sorted(folder_of_modules.glob("runs/**/config.toml"))]
    assert len(runs) == 1 + 4 + 1 + 1
    for run in runs:
        assert run.summary is not None
        assert run.summary.stopped == "finished"
        assert run.summary.metric is not None
        assert run.summary.metric.last < run.summary.metric.start
    wave, thaw = (next(run for run in runs if run.path.name == name) for name in ("waves-wave", "thaw-thaw"))
    assert [section.title for section in wave.sections] == ["Fit"]
    assert [(event.step, event.name) for event in thaw.events] == [(50, "all layers")]
    (losses,) = folder_of_modules.glob("runs/*/losses.tsv")
    assert len(losses.read_text().splitlines()) == 20

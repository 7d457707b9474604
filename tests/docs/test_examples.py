"""Every Python block of the pages is a program that runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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

"""A public name without a docstring fails the build of the pages."""

import subprocess
import sys
from pathlib import Path

import public_names
import pytest

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"

COMPLETE = '''
"""A room. Marks such as *x, |x| and x_ are text, and `x_` is code."""

from typing import Protocol

__all__ = ["LIMIT", "Part", "Seam", "do"]

LIMIT = 3
"""How often."""


class Seam(Protocol):
    """A contract."""

    def __call__(self) -> int:
        """The number."""


class Base:
    def inherited(self) -> None:
        """Does nothing."""


class Part(Base):
    """A part.

    Args:
        size: of it.

    Attributes:
        count: how many.
    """

    unit: int = 1
    """What it is counted in."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._hidden = 0

    @property
    def half(self) -> int:
        """Half of it."""
        return self.size // 2

    def inherited(self) -> None:
        return None

    def _private(self) -> None:
        return None

    def __len__(self) -> int:
        return self.size


def do() -> None:
    """Does it."""


def not_exported() -> None:
    return None
'''
OMISSIONS = {
    "module": ('"""A room. Marks such as *x, |x| and x_ are text, and `x_` is code."""', "", "made_up.room"),
    "constant": ('"""How often."""', "", "made_up.room.LIMIT"),
    "protocol": ('    """A contract."""', "", "made_up.room.Seam"),
    "call": ('"""The number."""', "...", "made_up.room.Seam.__call__"),
    "argument": ("    Args:\n        size: of it.\n", "", "made_up.room.Part.size"),
    "attribute": ("    Attributes:\n        count: how many.\n", "", "made_up.room.Part.count"),
    "class attribute": ('    """What it is counted in."""', "", "made_up.room.Part.unit"),
    "property": ('        """Half of it."""', "", "made_up.room.Part.half"),
    "method": ('"""Does nothing."""', "...", "made_up.room.Part.inherited"),
    "function": ('"""Does it."""', "...", "made_up.room.do"),
}
every_omission = pytest.mark.parametrize(("text", "instead", "path"), OMISSIONS.values(), ids=OMISSIONS)


def make_package(folder: Path, room: str) -> Path:
    """A package `made_up` with one room; returns the folder that holds it."""
    package = folder / "source" / "made_up"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Made up."""\n')
    (package / "room.py").write_text(room)
    return package.parent


def without(text: str, instead: str) -> str:
    assert COMPLETE.count(text) == 1
    return COMPLETE.replace(text, instead)


def build(folder: Path, room: str) -> subprocess.CompletedProcess[str]:
    """Builds the pages of the made-up package as ours are built."""
    source = make_package(folder, room)
    pages = folder / "docs"
    pages.mkdir()
    (pages / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(EXTENSIONS)!r}, {str(source)!r}]\n"
        "extensions = ['sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'api_pages']\n"
        f"api_package, api_source, default_role = 'made_up', {str(source)!r}, 'literal'\n"
        "exclude_patterns = ['_build']\n"
    )
    (pages / "index.rst").write_text("Pages\n=====\n\n.. toctree::\n\n   api/index\n")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(pages), str(pages / "_build")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_complete_package_lacks_nothing(tmp_path: Path) -> None:
    package = public_names.load("made_up", make_package(tmp_path, COMPLETE))
    assert public_names.undocumented(package) == []


@every_omission
def test_every_kind_of_omission_is_found_and_nothing_else(tmp_path: Path, text: str, instead: str, path: str) -> None:
    package = public_names.load("made_up", make_package(tmp_path, without(text, instead)))
    (line,) = public_names.undocumented(package)
    assert f"`{path}` is public" in line
    assert line.startswith("made_up/room.py:")


def test_a_module_without_all_shows_its_own_names_but_none_it_imports(tmp_path: Path) -> None:
    room = '"""A room."""\n\nimport os\nfrom pathlib import Path\n\n\ndef do() -> Path:\n    return Path(os.curdir)\n'
    package = public_names.load("made_up", make_package(tmp_path, room))
    assert [line.split("`")[1] for line in public_names.undocumented(package)] == ["made_up.room.do"]


def test_a_name_in_all_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    package = public_names.load("made_up", make_package(tmp_path, '"""A room."""\n\n__all__ = ["gone"]\n'))
    with pytest.raises(ValueError, match="`gone`, which is nowhere"):
        public_names.undocumented(package)


def test_a_room_that_is_left_out_is_not_read(tmp_path: Path) -> None:
    package = public_names.load("made_up", make_package(tmp_path, "def do() -> None:\n    pass\n"))
    assert len(public_names.undocumented(package)) == 2
    assert public_names.undocumented(package, left_out=["room"]) == []


def test_the_build_passes_with_all_docstrings_and_fails_without_one(tmp_path: Path) -> None:
    passed = build(tmp_path / "complete", COMPLETE)
    assert passed.returncode == 0, passed.stderr
    assert "Marks such as *x, |x| and x_ are text" in (tmp_path / "complete/docs/_build/api/room.html").read_text()
    failed = build(tmp_path / "lacking", without(*OMISSIONS["function"][:2]))
    assert failed.returncode != 0
    assert "`made_up.room.do` is public and has no docstring" in failed.stderr

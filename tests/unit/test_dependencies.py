"""What the package imports is what it asks pip for."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported() -> dict[str, str]:
    """Names of the top packages that source files import, each with a file that does so."""
    found: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.partition(".")[0]: path.name for name in names}
    return found


def normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_every_imported_package_is_a_dependency_or_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name, extra in extras.items() if name != "dev" for one in extra)]
    declared = {normal(re.split(r"[<>=\[; ]", one)[0]) for one in asked}
    names = packages_distributions()
    missing = {
        module: file
        for module, file in imported().items()
        if module not in sys.stdlib_module_names | {"featherlight"}
        and not declared & set(map(normal, names.get(module, [module])))
    }
    assert not missing

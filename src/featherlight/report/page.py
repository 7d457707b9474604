"""The HTML page of one run or several: one file, nothing loaded from anywhere."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from featherlight.report.files import replace_file
from featherlight.report.quantities import in_count
from featherlight.report.runs import RunRecord
from featherlight.report.views import Quantity, page_view

_TEMPLATES = ("page.html.j2", "parts.html.j2", "blocks.html.j2")
_STYLE = "page.css"


def write_report(runs: Sequence[RunRecord], path: str | Path) -> Path:
    """Write one self-contained HTML page of a run, or of several side by side.

    Args:
        runs: what `read_run` returned, at least one; with several, their curves are laid over each other.
        path: the file to write; its folder is made if need be. An older file is replaced in one step, so a reader
            sees the old page or the new one, never a part.

    Returns:
        `path`.

    Raises:
        ValueError: there is no run, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(
            f"{target}: this is a folder, and the report is one file; "
            f"give a file name, such as {target / 'report.html'}"
        )
    html = render_report(runs)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, html.encode("utf-8"))
    return target


def render_report(runs: Sequence[RunRecord]) -> str:
    """Return the page that `write_report` writes.

    Args:
        runs: what `read_run` returned, at least one.

    Returns:
        A whole HTML document.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("`runs` is empty, so there is nothing to report; give at least one run read by `read_run`")
    return _environment().get_template("page.html.j2").render(page=page_view(runs), style=Markup(_read(_STYLE)))


@cache
def _environment() -> Environment:
    """Made once: templates are compiled for the first page of a process, and a sweep writes many."""
    environment = Environment(
        loader=DictLoader({name: _read(name) for name in _TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"exact": _exact, "in_count": in_count}
    return environment


def _exact(quantity: Quantity) -> Markup:
    """Show a quantity to people and keep its exact value for machines."""
    return Markup('<data value="{}">{}</data>').format(quantity.value, quantity.text)


@cache
def _read(name: str) -> str:
    return files("featherlight.report").joinpath(name).read_text(encoding="utf-8")

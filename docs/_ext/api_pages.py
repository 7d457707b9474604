"""Sphinx extension: writes a page for each room from its docstrings, and warns of every public name that has none.

With `sphinx-build -W` a warning fails the build. A new room, module or name appears without an edit here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import public_names
from sphinx.application import Sphinx
from sphinx.util import logging

_logger = logging.getLogger(__name__)
_QUOTED = re.compile(r"(`[^`]*`)")
_NOTE = re.compile(r"\s*(Cost|Memory|Source): ")
_BEFORE_NAPOLEON = 400


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension: `api_package`, `api_source` and `api_left_out` in conf.py say what is documented."""
    app.add_config_value("api_package", None, "env", str)
    app.add_config_value("api_source", None, "env", str)
    app.add_config_value("api_left_out", [], "env", list)
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _quote_for_rst, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", _make_parsable)
    return {"parallel_read_safe": True}


def _write_pages(app: Sphinx) -> None:
    package = public_names.load(app.config.api_package, Path(app.config.api_source))
    for line in public_names.undocumented(package, app.config.api_left_out):
        _logger.warning("%s", line)
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    rooms = public_names.rooms(package, app.config.api_left_out)
    homes = _homes(rooms)
    pages = {room.name: "\n".join(_page(room, homes)) for room in rooms}
    pages["index"] = "\n".join(_index(package, list(pages)))
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def _index(package: griffe.Module, names: list[str]) -> Iterator[str]:
    yield from (*_title("API", "="), "One page for each room of the package, made from its docstrings.", "")
    for name in names:
        text = package[name].docstring
        yield from (f":doc:`{package.name}.{name} <{name}>`", f"    {_rst(_first_line(text))}", "")
    yield from (".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names), "")


def _homes(rooms: list[griffe.Module]) -> dict[str, str]:
    """Where each object is shown, by its own path: in the room it is written in, at the shortest public path."""
    exported: dict[str, list[str]] = {}
    for room in rooms:
        for module in public_names.public_modules(room):
            for name, one in public_names.public_names(module).items():
                exported.setdefault(one.path, []).append(f"{module.path}.{name}")

    def key(own: str, path: str) -> tuple[bool, int]:
        return own.split(".")[1] != path.split(".")[1], path.count(".")

    return {own: min(paths, key=lambda path: key(own, path)) for own, paths in exported.items()}


def _page(room: griffe.Module, homes: dict[str, str]) -> Iterator[str]:
    for module in public_names.public_modules(room):
        yield from _title(module.path, "=" if module is room else "-")
        yield from (f".. automodule:: {module.path}", "")
        again = []
        for name, one in public_names.public_names(module).items():
            if homes[one.path] != f"{module.path}.{name}":
                again.append(f":py:obj:`{homes[one.path]}`")
                continue
            yield from _title(name, "~")
            yield from _directive(f"{module.path}.{name}", one)
        if again:
            yield from (f"Also exported here: {', '.join(again)}.", "")


def _directive(path: str, one: griffe.Object) -> Iterator[str]:
    if isinstance(one, griffe.Class):
        yield from (f".. autoclass:: {path}", "   :members:", "   :special-members: __call__")
        yield "   :member-order: bysource"
        if one.bases:
            yield "   :show-inheritance:"
    elif isinstance(one, griffe.Function):
        yield f".. autofunction:: {path}"
    else:
        yield from (f".. py:data:: {path}", "")
        yield from (f"   {_rst(line)}" for line in (one.docstring.value if one.docstring else "").splitlines())
    yield ""


def _title(text: str, underline: str) -> tuple[str, ...]:
    escaped = _rst(text)
    return escaped, underline * len(escaped), ""


def _first_line(docstring: griffe.Docstring | None) -> str:
    return docstring.value.splitlines()[0] if docstring is not None else ""


def _quote_for_rst(app: Sphinx, what: str, name: str, one: Any, options: Any, lines: list[str]) -> None:
    """Text that is not for reStructuredText is quoted, and each note of a docstring becomes a paragraph."""
    lines[:] = [part for line in lines for part in (("", _rst(line)) if _NOTE.match(line) else (_rst(line),))]


def _make_parsable(
    app: Sphinx, what: str, name: str, one: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that is made anew for each object is shown as `...`: Sphinx breaks a signature it cannot parse at commas."""
    return signature.replace("<factory>", "...") if signature is not None else None, returns


def _rst(line: str) -> str:
    """A docstring's line with what reStructuredText would read as markup taken literally; backquotes mean code."""
    parts = _QUOTED.split(line)
    return "".join(part if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts)

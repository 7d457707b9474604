"""A labelled set of texts that every Python carries: the docstrings of its standard library."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "concurrency": (
            "_threading_local asyncio concurrent contextvars multiprocessing queue sched signal subprocess threading"
        ),
        "data types": (
            "_collections_abc _pydatetime _pydecimal _strptime _weakrefset array bisect calendar collections copy "
            "dataclasses datetime decimal enum fractions heapq numbers random statistics types weakref zoneinfo"
        ),
        "files": (
            "_compression _pyio bz2 compression filecmp fileinput fnmatch genericpath glob gzip lzma ntpath os pathlib "
            "posixpath shutil stat tarfile tempfile zipfile"
        ),
        "language": (
            "ast code codeop compileall dis importlib inspect modulefinder opcode pickletools pkgutil py_compile "
            "pyclbr runpy symtable tokenize typing zipimport"
        ),
        "mail": "base64 email imaplib mailbox mailcap mimetypes poplib quopri smtplib",
        "networking": (
            "ftplib http ipaddress netrc nntplib selectors socket socketserver ssl telnetlib urllib uuid webbrowser "
            "wsgiref xmlrpc"
        ),
        "testing": (
            "_pyrepl bdb cProfile cgitb doctest logging pdb profile pstats timeit trace traceback tracemalloc unittest "
            "warnings"
        ),
        "text": (
            "argparse codecs configparser csv difflib encodings gettext html json locale optparse plistlib pprint re "
            "shlex string textwrap tomllib xml"
        ),
    }
)
"""The classes, and the top-level modules and packages of each; one that an interpreter lacks is left out."""

_SHORTEST_TEXT, _LONGEST_TEXT = 30, 400
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages"})


def stdlib_docs(*, per_class: int | None = None) -> tuple[list[str], list[str]]:
    """Return docstrings of the running interpreter's standard library and the family of the module each is from.

    Source files are parsed, never imported. White space is normalised. Left out are texts of fewer than 30 or more than
    400 characters (so that 128 tokens hold nearly all), texts that name their own module, texts found in two families
    (so that a text is told by its sense), and repetitions. There are 8 families, equally large; which texts there are
    depends on the version of Python alone. The first call parses for a few seconds, later ones do not.

    Args:
        per_class: texts a family; None for as many as the smallest family has.

    Returns:
        The texts and their labels (the family's name). Families take turns, so that any prefix is balanced; within a
        family the order is that of a hash of the text.

    Raises:
        ValueError: `per_class` is less than 1 or more than the smallest family has, or the library's source is absent.
    """
    by_family = _texts_by_family()
    smallest = min(by_family, key=lambda family: len(by_family[family]))
    most = len(by_family[smallest])
    if not most:
        raise ValueError(
            f"this Python's standard library at {sysconfig.get_path('stdlib')} has no source files to take docstrings "
            "from (it may be zipped). Use a file of your own."
        )
    if per_class is not None and not 1 <= per_class <= most:
        raise ValueError(
            f"`per_class` must lie in 1..{most}, since the smallest family ({smallest!r}) has {most} texts and the "
            f"families are equally large; got {per_class}."
        )
    count = most if per_class is None else per_class
    pairs = [(texts[i], family) for i in range(count) for family, texts in by_family.items()]
    return [text for text, _ in pairs], [family for _, family in pairs]


@cache
def _texts_by_family() -> Mapping[str, tuple[str, ...]]:
    """Return the distinct texts of each family, ordered by hash."""
    families: dict[str, set[str]] = {}
    for family, modules in _FAMILIES.items():
        for module in modules.split():
            for text in _module_texts(module):
                families.setdefault(text, set()).add(family)
    ordered = sorted(families, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return MappingProxyType(
        {family: tuple(text for text in ordered if families[text] == {family}) for family in _FAMILIES}
    )


def _module_texts(module: str) -> Iterator[str]:
    """Yield the normalised docstrings of a module or package that do not name it."""
    own_name = re.compile(rf"(?<![a-z0-9]){re.escape(_public_name(module))}(?![a-z0-9])", re.IGNORECASE)
    for path in _source_files(module):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = " ".join((ast.get_docstring(node, clean=False) or "").split())
            if _SHORTEST_TEXT <= len(text) <= _LONGEST_TEXT and not own_name.search(text):
                yield text


def _public_name(module: str) -> str:
    """Return the name users know a module by: `decimal` for `_pydecimal`."""
    return module.removeprefix("_py").strip("_") if module.startswith("_") else module


def _source_files(module: str) -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    single = root / f"{module}.py"
    if single.is_file():
        return [single]
    files = (root / module).rglob("*.py")
    return sorted(path for path in files if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts))

"""Which names of a package are public, and which of those lack a docstring. Read from the source; nothing is imported.

A module is public if it is a room of the package (`package.room`), a subpackage of a public module, or any module below a
public one that has no `__all__`. Its names are those in `__all__`, or all of its own without a leading underscore.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import griffe

_QUOTED = re.compile(r"`([A-Za-z_]\w*)`")
_DESCRIBES = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)
_SPECIAL = {"__call__"}


def load(package: str, source: Path) -> griffe.Module:
    """The package as griffe reads it; `source` is the folder that holds it."""
    loader = griffe.GriffeLoader(
        search_paths=[source], docstring_parser="google", docstring_options={"warnings": False}, allow_inspection=False
    )
    module = loader.load(package)
    loader.resolve_aliases(implicit=False, external=False)
    assert isinstance(module, griffe.Module)
    return module


def rooms(package: griffe.Module, left_out: Collection[str] = ()) -> list[griffe.Module]:
    """The public modules directly below the package, by name."""
    return [module for module in _submodules(package) if module.name not in left_out]


def public_modules(room: griffe.Module) -> Iterator[griffe.Module]:
    """The room and every public module below it, the shallower first."""
    yield room
    below = [one for one in _submodules(room) if room.exports is None or one.is_init_module]
    for module in below:
        yield from public_modules(module)


def public_names(module: griffe.Module) -> dict[str, griffe.Object]:
    """The public names of a module, other than modules, with what they stand for.

    Raises:
        ValueError: `__all__` names something that is not in the source of the package.
    """
    if module.exports is None:
        own = {name: one for name, one in module.members.items() if not name.startswith("_") and not one.is_alias}
        return {name: one for name, one in own.items() if isinstance(one, griffe.Object) and not one.is_module}
    found: dict[str, griffe.Object] = {}
    for name in map(str, module.exports):
        try:
            one = module[name]
            target = one.final_target if isinstance(one, griffe.Alias) else one
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            raise ValueError(f"{module.path}.__all__ names `{name}`, which is nowhere in the package.") from None
        if target.is_module and name in target.members and not target.members[name].is_alias:
            target = target.members[name]  # what a module is named after stands in its place
        if isinstance(target, griffe.Object) and not target.is_module:
            found[name] = target
    return found


def undocumented(package: griffe.Module, left_out: Collection[str] = ()) -> list[str]:
    """A line for each public module, name, method and attribute without a docstring: where it is, and its path."""
    found: dict[str, None] = {}
    for room in rooms(package, left_out):
        for module in public_modules(room):
            if not _has_text(module):
                found[_line(module)] = None
            for one in public_names(module).values():
                found |= dict.fromkeys(_line(lacking) for lacking in _lacking(one))
    return list(found)


def _submodules(module: griffe.Module) -> list[griffe.Module]:
    return [one for name, one in sorted(module.modules.items()) if not name.startswith("_") and not one.is_alias]


def _lacking(one: griffe.Object) -> Iterator[griffe.Object]:
    if not _has_text(one):
        yield one
    if not isinstance(one, griffe.Class):
        return
    described = _described(one)
    for name, member in one.members.items():
        if (name.startswith("_") and name not in _SPECIAL) or member.is_alias or not isinstance(member, griffe.Object):
            continue
        is_field = member.is_attribute and "property" not in member.labels
        if not _has_text(member) and not (is_field and name in described) and not _inherits_text(one, name):
            yield member


def _described(one: griffe.Class) -> set[str]:
    """The attributes that a class's docstring names: under Args or Attributes, or in backquotes."""
    if one.docstring is None:
        return set()
    sections = [section for section in one.docstring.parse("google") if section.kind in _DESCRIBES]
    listed = {name.strip() for section in sections for item in section.value for name in item.name.split(",")}
    return listed | set(_QUOTED.findall(one.docstring.value))


def _inherits_text(one: griffe.Class, name: str) -> bool:
    return any(name in base.members and _has_text(base.members[name]) for base in one.mro())


def _has_text(one: griffe.Object | griffe.Alias) -> bool:
    return one.docstring is not None and bool(one.docstring.value.strip())


def _line(one: griffe.Object) -> str:
    return f"{one.relative_package_filepath}:{one.lineno or 1}: `{one.path}` is public and has no docstring"

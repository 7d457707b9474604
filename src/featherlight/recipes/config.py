"""Configs: frozen dataclasses, checked, and the same in a TOML file, in `--set` and in Python.

What is None in a config is off; TOML has no word for it, so a file lists the keys that are off under `off`.
"""

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import tomli_w
from pydantic import TypeAdapter, ValidationError

VERSION = 1
"""Of the format of config files; a file of a newer one is refused."""

_OWN_KEYS = ("recipe", "version", "off")
_OFF = "none"
_ELSEWHERE = "elsewhere"


@runtime_checkable
class RunConfig(Protocol):
    """A frozen dataclass with a `seed` that says all of a run and puts it together."""

    @property
    def seed(self) -> int:
        """Of everything random. `--seeds N` runs N configs that differ in it alone."""
        ...

    def experiment(self, workspace: Any) -> Any:
        """The run, ready to start: a `featherlight.trainer.Experiment`.

        Args:
            workspace: a `featherlight.trainer.Workspace`.

        Raises:
            ValueError: data or choices are wrong.
        """
        ...


Config = TypeVar("Config")
"""A config class: what goes in is what comes out."""


def changed(config: Config, changes: Mapping[str, Any], *, source: str) -> Config:
    """The config with some keys changed.

    Args:
        config: a dataclass, nested or not.
        changes: nested like the config, or by dotted keys; None turns a key off.
        source: where the changes come from, for messages.

    Raises:
        ValueError: an unknown key (with the nearest known one), a part that is no leaf, or a wrong value, with its path.
    """
    values = to_mapping(config)
    for path, value in _leaves(changes):
        _set(values, type(config), path, value, source)
    return from_mapping(type(config), values, source=source)


def from_mapping(kind: type[Config], values: Mapping[str, Any], *, source: str) -> Config:
    """Makes a config of nested values, all keys known.

    Raises:
        ValueError: with a sentence for each wrong value.
    """
    _refuse_unknown(kind, values, source)
    try:
        config = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(one) for one in error.errors())
        raise ValueError(f"{source}: {'; '.join(sentences)}") from None
    _refuse_conversions(values, to_mapping(config), source)
    return config


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as nested dicts, tuples and plain values."""
    return dataclasses.asdict(config)


def to_toml(config: Any, *, recipe: str) -> str:
    """The config as a TOML file that runs again as it is.

    Raises:
        ValueError: it has a key that the file needs for itself, or a value TOML has no word for.
    """
    off: list[str] = []
    values = _without_none(to_mapping(config), "", off)
    if taken := [key for key in _OWN_KEYS if key in values or key in off]:
        raise ValueError(f"the config has a key `{taken[0]}`, which its file needs for itself. Rename it.")
    head: dict[str, Any] = {"recipe": recipe, "version": VERSION}
    try:
        return tomli_w.dumps(head | ({"off": off} if off else {}) | values)
    except TypeError as error:
        raise ValueError(
            f"the config holds a value that TOML has no word for ({error}). Use text, numbers, booleans and tuples of them."
        ) from None


def read_toml(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The recipe that a config file names, and the keys it sets.

    Raises:
        ValueError: there is no such file, it is not TOML, or it is of a newer version.
    """
    try:
        return split_toml(path.read_text(encoding="utf-8"), source=str(path))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"no config file at {path}. Pass the config.toml of a run, or a TOML file of your own."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None


def split_toml(text: str, *, source: str) -> tuple[str | None, dict[str, Any]]:
    """As `read_toml`, of a text."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not valid TOML: {error}.") from None
    except RecursionError:
        raise ValueError(f"{source} is nested so deeply that it is no config.") from None
    version, recipe, off = values.pop("version", VERSION), values.pop("recipe", None), values.pop("off", [])
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{source} was written by a newer featherlight (its version is {version!r}, this one reads up to {VERSION}). "
            "Update featherlight, or set the keys by hand."
        )
    if not isinstance(recipe, str | None):
        raise ValueError(f"`recipe` in {source} is {recipe!r}; it is the name of a recipe.")
    if not isinstance(off, list) or not all(isinstance(key, str) for key in off):
        raise ValueError(f"`off` in {source} is {off!r}; it lists the names of keys that are off.")
    for key in off:
        _put(values, key.split("."), None, source)
    return recipe, values


def parse_set(change: str) -> tuple[str, list[Any]]:
    """The key and the values of `a.b=value` or `a.b=value,value`; a value is read as TOML where it is TOML, else as text.

    Raises:
        ValueError: it has no `=` or no key or no value.
    """
    key, equals, text = change.partition("=")
    if not equals or not key.strip() or not text.strip():
        raise ValueError(f"`--set` takes key=value, such as optimizer.lr=1e-3; got {change!r}.")
    return key.strip(), [_value(part.strip()) for part in _split_commas(text)]


def known_keys(kind: type) -> list[str]:
    """All keys of a config class, dotted, branches and leaves, in order."""
    return list(_keys(kind))


def value_type(kind: type, key: str) -> Any:
    """The annotation of a known key, dotted."""
    *groups, last = key.split(".")
    for name in groups:
        nested = _config_class(_fields(kind)[name])
        assert nested is not None, "a part of a known key is a group"
        kind = nested
    return _fields(kind)[last]


@functools.cache
def _keys(kind: type) -> tuple[str, ...]:
    found = []
    for name, annotation in _fields(kind).items():
        found.append(name)
        nested = _config_class(annotation)
        found += [f"{name}.{key}" for key in _keys(nested)] if nested is not None else []
    return tuple(found)


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind) if one.init}


def _config_class(annotation: Any) -> type | None:
    """The dataclass in an annotation such as `Distillation | None`; None if it is a leaf."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    found = [option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type)]
    return found[0] if len(found) == 1 else None


def _leaves(changes: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in changes.items():
        own = (*path, *name.split("."))
        if isinstance(value, Mapping):
            yield from _leaves(value, own)
        else:
            yield own, value


def _set(values: dict[str, Any], kind: type, path: Sequence[str], value: Any, source: str) -> None:
    """Sets one key, after a check of every part of its path."""
    dotted, here, at = ".".join(path), kind, values
    for number, name in enumerate(path):
        fields = _fields(here)
        if name not in fields:
            raise ValueError(f"{source}: {_unknown(dotted, kind)}")
        nested, last = _config_class(fields[name]), number == len(path) - 1
        if last and nested is not None and value is not None:
            inside = ", ".join(f"`{dotted}.{key}`" for key in _fields(nested))
            raise ValueError(f"{source}: `{dotted}` is a group of keys and takes no value itself. Set one of {inside}.")
        if not last and nested is None:
            raise ValueError(
                f"{source}: `{dotted}` asks for a key below `{name}`, which is a value. Set `{name}` itself."
            )
        if last:
            at[name] = value
        elif nested is not None:
            at[name] = {} if at.get(name) is None else at[name]
            at, here = at[name], nested


def _refuse_unknown(
    kind: type, values: Mapping[str, Any], source: str, *, top: type | None = None, path: str = ""
) -> None:
    fields = _fields(kind)
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{source}: {_unknown(f'{path}{name}', top or kind)}")
        nested = _config_class(fields[name])
        if nested is not None and isinstance(value, Mapping):
            _refuse_unknown(nested, value, source, top=top or kind, path=f"{path}{name}.")


def _refuse_conversions(given: Mapping[str, Any], taken: Mapping[str, Any], source: str, path: str = "") -> None:
    """Raises ValueError where a boolean, a number or a text was quietly made into another of these."""
    for name, value in given.items():
        kept = taken.get(name)
        if isinstance(value, Mapping) and isinstance(kept, Mapping):
            _refuse_conversions(value, kept, source, f"{path}{name}.")
        for kind in (bool, str):
            if _is_plain(value) and _is_plain(kept) and isinstance(value, kind) != isinstance(kept, kind):
                raise ValueError(f"{source}: `{path}{name}` is {value!r}, and it takes a {type(kept).__name__}.")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def elsewhere_called(*names: str) -> Any:
    """A field that is None by default, with the names that it has in other software, for hints where one is typed."""
    return dataclasses.field(default=None, metadata={_ELSEWHERE: names})


def _by_other_name(path: str, kind: type) -> str | None:
    """The key that other software calls so, in the group that was typed or, without one, in any."""
    for other, key in _other_names(kind):
        if path in (other, other.rpartition(".")[2]):
            return key
    return None


@functools.cache
def _other_names(kind: type) -> tuple[tuple[str, str], ...]:
    """Pairs of a name elsewhere and a key, both dotted."""
    pairs: list[tuple[str, str]] = []
    for one in dataclasses.fields(kind):
        pairs += [(name, one.name) for name in one.metadata.get(_ELSEWHERE, ())]
        nested = _config_class(_fields(kind)[one.name]) if one.init else None
        inner = _other_names(nested) if nested is not None else ()
        pairs += [(f"{one.name}.{name}", f"{one.name}.{key}") for name, key in inner]
    return tuple(pairs)


def _unknown(path: str, kind: type) -> str:
    near = _by_other_name(path, kind) or nearest(path, known_keys(kind))
    hint = f"Did you mean `{near}`?" if near is not None else f"Known keys: {', '.join(_fields(kind))}."
    return f"unknown key `{path}`. {hint}"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most like one that was typed; None if none is like it."""

    def likeness(one: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, one, word, autojunk=False).ratio(), -abs(len(one) - len(word))

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= 0.5 else None


def _sentence(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"] if not str(part)[:1].isupper())
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"`{path}` is missing, and the run needs it."
    if error["type"] == "value_error":
        return message
    if error["type"] in ("tuple_type", "list_type"):
        return (
            f"`{path}` takes a list and got {error['input']!r}. Write it in brackets, such as [2,2]; with commas alone each "
            "value is a run of its own."
        )
    return f"`{path}` is {error['input']!r}: {message}."


def _without_none(values: Mapping[str, Any], path: str, off: list[str]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        if value is None:
            off.append(f"{path}{name}")
        else:
            kept[name] = _without_none(value, f"{path}{name}.", off) if isinstance(value, Mapping) else value
    return kept


def _put(values: dict[str, Any], path: Sequence[str], value: Any, source: str) -> None:
    *parents, last = path
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"{source}: `off` lists `{'.'.join(path)}`, but `{part}` is a value. Correct one of them.")
    values[last] = value


def _value(text: str) -> Any:
    if text.lower() == _OFF:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _split_commas(text: str) -> list[str]:
    """Splits at commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts

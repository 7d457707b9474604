"""Directories with a list of what is in them, so that damage is found and named."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featherlight.files import flush_file, sync_directory, write_atomically
from featherlight.trainer.digests import file_digest

MANIFEST = "manifest.json"
"""The file of a directory that lists the others with their sizes and SHA-256."""
_VERSION = 1


def write_manifest(folder: Path, files: Sequence[Path] | None = None) -> None:
    """Writes `manifest.json`: sizes and SHA-256 of files.

    Args:
        folder: where it goes.
        files: in that folder; None takes all in it and below it.
    """
    listed = sorted(folder.rglob("*")) if files is None else files
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in listed
        if path.is_file() and path != folder / MANIFEST
    }
    text = json.dumps({"version": _VERSION, "files": entries}, indent=1)
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))


def check_manifest(folder: Path, *, from_disk: bool = False) -> Sequence[str]:
    """A sentence for each file that is not as the manifest says; empty if the folder is sound.

    Args:
        folder: with a manifest.
        from_disk: reads what the disk holds, not what the system remembers of it.

    Raises:
        ValueError: there is no manifest, or it is damaged itself.
    """
    damage = []
    for name, facts in _entries(folder).items():
        path = folder / name
        if not path.is_file():
            damage.append(f"{path} is missing.")
        elif path.stat().st_size != facts["bytes"]:
            damage.append(f"{path} has {path.stat().st_size:,} bytes; it was written with {facts['bytes']:,}.")
        elif file_digest(path, from_disk=from_disk) != facts["sha256"]:
            damage.append(f"{path} is altered: its SHA-256 is not the one in {MANIFEST}.")
    return damage


def has_manifest(folder: Path) -> bool:
    """Whether a folder can be checked."""
    return (folder / MANIFEST).is_file()


def replace_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a directory beside `path`, adds a manifest, flushes everything to disk, and renames it to `path`.

    What was at `path` before stays until the new one is on disk; a kill between the two renames leaves it as `.NAME.old`.
    """
    beside, old = (path.with_name(f".{path.name}.{what}") for what in ("part", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write(beside)
        write_manifest(beside)
        _sync(beside)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        beside.rename(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    mode = (folder / MANIFEST).stat().st_mode
    for one in (*folder.rglob("*"), folder):
        if one.is_dir():
            sync_directory(one)
        else:
            flush_file(one, mode if one.suffix == ".safetensors" else 0)


def _entries(folder: Path) -> dict[str, Any]:
    """Names to sizes and digests; no name leads out of the folder."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        files = document["files"] if document["version"] == _VERSION else None
        sound = files is not None and all(_is_entry(name, facts) for name, facts in files.items())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}, so there is nothing to check it by.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound, files = False, None
    if files is None or not sound:
        raise ValueError(f"{path} is cut off or altered, so the files beside it cannot be checked.")
    return files


def _is_entry(name: str, facts: dict[str, Any]) -> bool:
    inside = not name.startswith("/") and ".." not in Path(name).parts
    return inside and isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str)

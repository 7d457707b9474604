"""What of a run, a model or a journal is intact, and what is damaged, where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featherlight.archive import Archive, is_archive
from featherlight.trainer.journal import JournalContents, read_journal
from featherlight.trainer.manifest import check_manifest, has_manifest
from featherlight.trainer.run_directory import RunDirectory
from featherlight.trainer.saves import saves
from featherlight.trainer.share import is_share, read_share


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one part.

    Attributes:
        part: a file or directory.
        state: "intact", "damaged", or "unchecked" where it can be read but nothing was noted to check it by.
        text: what it holds, or what is wrong with it and where.
    """

    part: str
    state: str
    text: str


def verify(path: Path) -> Sequence[Finding]:
    """Checks everything at a path that can be checked; nothing is written.

    Args:
        path: a run directory, a model directory with a manifest, a journal, a shared run or a .feather file.

    Raises:
        ValueError: it is none of these.
    """
    if path.is_file() and is_archive(path):
        return [_of_archive(path)]
    if path.is_file():
        return [_of_share(path) if is_share(path) else _of_journal(path)]
    directory = RunDirectory(path=path)
    if directory.config.is_file() or directory.metrics.is_file():
        return list(_of_run(directory))
    if has_manifest(path):
        return list(_of_manifest(path))
    what = "is not there" if not path.exists() else "has neither a config.toml nor a manifest.json"
    raise ValueError(f"{path} {what}, so there is nothing to verify. Pass a run, a model it wrote, or a journal.")


def _of_archive(path: Path) -> Finding:
    try:
        archive = Archive(path)
        for _ in archive.tensors():
            pass
    except ValueError as error:
        return Finding(part=str(path), state="damaged", text=str(error))
    return Finding(
        part=str(path), state="intact", text=f"tensors: {len(archive.entries):,}, bytes: {archive.num_bytes:,}"
    )


def _of_run(directory: RunDirectory) -> Iterator[Finding]:
    from featherlight.report import read_run  # takes 0.3 s

    record = read_run(directory.path)
    noted = has_manifest(directory.path)
    if noted:
        yield from _of_manifest(directory.path)
    elif not record.damage:
        yield Finding(part="config, metrics", state="unchecked", text="can be read; a finished run notes their digests")
    for sentence in record.damage:
        yield Finding(part="config, metrics", state="damaged", text=sentence)
    if directory.journal.is_file():
        yield _of_journal(directory.journal)
    for save in saves(directory.saves):
        yield from _of_manifest(save)
    if directory.model.is_dir() and has_manifest(directory.model):
        yield from _of_manifest(directory.model)


def _of_manifest(folder: Path) -> Iterator[Finding]:
    try:
        damage = check_manifest(folder)
    except ValueError as error:
        damage = [str(error)]
    for sentence in damage:
        yield Finding(part=str(folder), state="damaged", text=sentence)
    if not damage:
        yield Finding(part=str(folder), state="intact", text="all files are as they were written")


def _of_journal(path: Path) -> Finding:
    try:
        return _said(read_journal(path))
    except ValueError as error:
        return Finding(part=str(path), state="damaged", text=str(error))


def _of_share(path: Path) -> Finding:
    try:
        return _said(read_share(path))
    except ValueError as error:
        return Finding(part=str(path), state="damaged", text=str(error))


def _said(contents: JournalContents) -> Finding:
    text = f"steps: {len(contents.records):,}, states of the weights noted: {len(contents.states):,}"
    if contents.damage is not None:
        return Finding(part=str(contents.path), state="damaged", text=f"{contents.damage} ({text} before it)")
    return Finding(part=str(contents.path), state="intact", text=text)

"""A fine-tune as one small file: the journal, its config and its digests. With the base model it is the trained one."""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from featherlight.files import write_atomically
from featherlight.trainer.digests import file_digest
from featherlight.trainer.journal import JournalContents, parse_journal, read_journal
from featherlight.trainer.run_directory import RunDirectory

_JOURNAL, _CONFIG, _DIGESTS = "journal", "config.toml", "digests.json"
_MOST_BYTES = 1 << 31
_WHEN = (1980, 1, 1, 0, 0, 0)
_MAGIC = b"PK\x03\x04"
_SEAL = 64


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What was written.

    Attributes:
        path: of the file.
        size: bytes.
        steps: in it.
        weights: SHA-256 of the trained weights, hex; None where the journal did not note them at its end.
    """

    path: Path
    size: int
    steps: int
    weights: str | None


def share(run: Path, out: Path) -> Shared:
    """Writes the file from which `featherlight replay BASE FILE` makes the trained model elsewhere, to the same bits.

    Args:
        run: a run directory with a journal.
        out: the file, which must not exist.

    Raises:
        ValueError: the run has no journal, it is damaged, or `out` exists.
    """
    directory = RunDirectory(path=run)
    if not directory.config.is_file():
        raise ValueError(f"{run} is not a run directory (it has no config.toml), so there is nothing to share.")
    if not directory.journal.is_file():
        raise ValueError(
            f"{run} has no journal: its method cannot be replayed from records, so no small file stands for its weights. "
            f"Share the directory {directory.model} instead, or train with a forward-only method such as `--method zo`."
        )
    if out.exists():
        raise ValueError(f"{out} exists already. Give another `--out`.")
    contents = read_journal(directory.journal)
    if contents.damage is not None:
        raise ValueError(f"{contents.damage} Resume the run, which mends its journal, and share it then.")
    digests = {
        "version": 1,
        "base": contents.header.get("base"),
        "data": contents.header.get("data"),
        "steps": len(contents.records),
        "weights": contents.digest_at(len(contents.records)),
        "journal": file_digest(directory.journal),
    }
    parts = {
        _JOURNAL: directory.journal.read_bytes(),
        _CONFIG: directory.config.read_bytes(),
        _DIGESTS: json.dumps(digests, indent=1).encode(),
    }
    size = write_atomically(out, lambda file: file.write(_pack(parts)))
    return Shared(path=out, size=size, steps=len(contents.records), weights=contents.digest_at(len(contents.records)))


def read_share(path: Path) -> JournalContents:
    """The journal in a shared file.

    Raises:
        ValueError: it is not such a file, or cut off or altered.
    """
    data = path.read_bytes()
    if data[-_SEAL:] != _seal(data):
        raise ValueError(f"{path} is cut off or altered: it does not fit the SHA-256 at its end.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = archive.getinfo(_JOURNAL)
            if info.file_size > _MOST_BYTES:
                raise ValueError(f"{path} says that its journal has {info.file_size:,} bytes, which none has.")
            journal = archive.read(info)
    except KeyError:
        raise ValueError(f"{path} holds no journal, so it is no shared run.") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{path} is no shared run: {error}.") from None
    return parse_journal(journal, path)


def read_journal_or_share(path: Path) -> JournalContents:
    """The journal at a path, be it plain or in a shared file; raises ValueError as both do."""
    return read_share(path) if is_share(path) else read_journal(path)


def is_share(path: Path) -> bool:
    """Whether a path is a file that begins as shared runs do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _pack(parts: dict[str, bytes]) -> bytes:
    """A zip whose comment is the SHA-256 of all before it; the same parts give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            entry = zipfile.ZipInfo(name, _WHEN)
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)
        archive.comment = b"0" * _SEAL
    data = buffer.getvalue()
    return data[:-_SEAL] + _seal(data)


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(data[:-_SEAL]).hexdigest().encode()

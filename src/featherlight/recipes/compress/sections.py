"""What the report shows of a compressed network: what was kept, what it takes, and where the bytes are."""

from pathlib import Path

from featherlight.archive import Archive
from featherlight.archive.inspecting import Account, Row, inspect_archive
from featherlight.report import BarChart, Section, Table
from featherlight.report.sections import Cell

_COLUMNS = (
    "tensor",
    "weights",
    "kept, %",
    "bits a weight",
    "bits a kept weight",
    "of these to say which",
    "bytes",
    "times smaller",
)


def compression_section(path: Path) -> Section:
    """A table as in Han et al. 2015, table 4, and a picture of where the bytes are.

    Args:
        path: of the compressed file.

    Raises:
        ValueError: the file is damaged.
    """
    account = inspect_archive(Archive(path))
    weights, kept = sum(one.elements for one in account.rows), sum(one.kept for one in account.rows)
    rest = sum(account.other_bytes.values())
    rows: list[tuple[Cell, ...]] = [_row(one) for one in account.rows if one.elements]
    rows.append(("header and checksum", None, None, None, None, None, rest, None))
    rows.append(_cells("all", weights, kept, sum(one.index_bytes for one in account.rows), account.num_bytes))
    table = Table(
        columns=_COLUMNS, rows=tuple(rows), caption="Bytes of a tensor include its codebook and its checksum."
    )
    text = (
        f"{kept:,} of {weights:,} weights are kept ({kept / weights:.2%}). The network takes {4 * weights:,} bytes as 32-bit "
        f"floats, and {account.num_bytes:,} bytes as the file {path.name}: {4 * weights / account.num_bytes:.1f} times less."
    )
    return Section(title="Compression", text=text, blocks=(table, _where(account), _kinds(account)))


def _row(one: Row) -> tuple[Cell, ...]:
    return _cells(one.name, one.elements, one.kept, one.index_bytes, one.num_bytes)


def _cells(name: str, weights: int, kept: int, index_bytes: int, num_bytes: int) -> tuple[Cell, ...]:
    each = [8 * size / kept if kept else None for size in (num_bytes, index_bytes)]
    times = 4 * weights / num_bytes if num_bytes else None
    return (name, weights, 100 * kept / weights, 8 * num_bytes / weights, *each, num_bytes, times)


def _where(account: Account) -> BarChart:
    """Bytes of each tensor."""
    bytes_of = {one.name: one.num_bytes for one in account.rows} | {"the rest": sum(account.other_bytes.values())}
    return _bars(bytes_of, "Where the bytes are: tensors.")


def _kinds(account: Account) -> BarChart:
    """Bytes by what they say."""
    rows = account.rows
    bytes_of = {
        "which weights are kept": sum(one.index_bytes for one in rows),
        "their codes, and floats": sum(one.value_bytes for one in rows),
        "codebooks": sum(one.codebook_bytes for one in rows),
        "checksums": sum(one.digest_bytes for one in rows) + account.other_bytes["SHA-256 of the file"],
        "header": sum(account.other_bytes.values()) - account.other_bytes["SHA-256 of the file"],
    }
    return _bars(bytes_of, "Where the bytes are: what they say.")


def _bars(bytes_of: dict[str, int], caption: str) -> BarChart:
    values = tuple(float(one) for one in bytes_of.values())
    return BarChart(labels=tuple(bytes_of), values=values, unit="bytes", caption=caption)

"""What the report shows of a compressed network: what was kept, what it takes, and where the bytes are."""

from pathlib import Path

from featherlight.recipes.compress.files import TensorCost, tensor_costs
from featherlight.report import BarChart, Section, Table

_COLUMNS = ("tensor", "weights", "kept, %", "values", "bits a weight", "bits a kept weight", "bytes", "times smaller")


def compression_section(path: Path) -> Section:
    """A table as in Han et al. 2015, table 4, and the bytes of each tensor.

    Args:
        path: of the compressed file.
    """
    costs = [one for one in tensor_costs(path) if one.weights]
    size = path.stat().st_size
    rest = size - sum(one.bytes for one in costs)
    weights, kept = sum(one.weights for one in costs), sum(one.kept for one in costs)
    rows = [_row(one.name, one) for one in costs]
    rows.append(("header and checksum", None, None, None, None, None, rest, None))
    rows.append(_row("all", TensorCost(name="", weights=weights, kept=kept, values=None, bytes=size)))
    table = Table(
        columns=_COLUMNS, rows=tuple(rows), caption="Bytes include the codebook and the checksum of a tensor."
    )
    bars = BarChart(
        labels=(*(one.name for one in costs), "header and checksum"),
        values=(*(float(one.bytes) for one in costs), float(rest)),
        unit="bytes",
        caption="Where the bytes are.",
    )
    text = (
        f"{kept:,} of {weights:,} weights are kept ({kept / weights:.2%}). The network takes {4 * weights:,} bytes as 32-bit "
        f"floats, and {size:,} bytes as the file {path.name}: {4 * weights / size:.1f} times less."
    )
    return Section(title="Compression", text=text, blocks=(table, bars))


def _row(name: str, one: TensorCost) -> tuple[str | int | float | None, ...]:
    each = 8 * one.bytes / one.kept if one.kept else None
    times = 4 * one.weights / one.bytes if one.bytes else None
    share = 100 * one.kept / one.weights
    return (name, one.weights, share, one.values, 8 * one.bytes / one.weights, each, one.bytes, times)

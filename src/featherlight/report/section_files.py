"""Sections in a file: one JSON document, a section a line, so that a torn file still gives those before the tear."""

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featherlight.report.files import replace_file
from featherlight.report.sections import (
    MOST_PIXELS,
    BarChart,
    Block,
    Cell,
    ConfusionTable,
    Heatmap,
    Images,
    LineChart,
    Section,
    Table,
)

SECTIONS_FILE = "sections.json"
_VERSION = 1
_HEAD = f'{{"version": {_VERSION}, "sections": ['
_Json = dict[str, Any]


def write_sections(path: str | Path, sections: Sequence[Section]) -> Path:
    """Write sections, which `read_run` and the page then find in the run directory.

    Args:
        path: a run directory, where the file is called `sections.json`, or a file whose name ends in `.json`.
        sections: in the order of the page. Those written before are replaced, in one step.

    Returns:
        The file.
    """
    target = _file(path)
    lines = (json.dumps(_encode_section(section), ensure_ascii=False, allow_nan=False) for section in sections)
    replace_file(target, (_HEAD + "\n" + ",\n".join(lines) + "\n]}\n").encode())
    return target


def read_sections(path: str | Path) -> tuple[Section, ...]:
    """Read what `write_sections` wrote.

    Args:
        path: as it was handed to `write_sections`.

    Raises:
        ValueError: the file is damaged; says how.
        OSError: there is no such file, or it cannot be read.
    """
    target = _file(path)
    sections, damage = salvage_sections(target, target.read_bytes())
    if damage:
        raise ValueError(damage[0])
    return sections


def salvage_sections(path: Path, data: bytes) -> tuple[tuple[Section, ...], list[str]]:
    """Return the intact sections among a file's bytes, and a sentence for each damage.

    Args:
        path: where the bytes come from, to name it.
        data: the bytes.
    """
    found, damage = _documents(path, data)
    sections = []
    for where, document in found:
        try:
            sections.append(_decode_section(document))
        except (KeyError, TypeError, ValueError, OSError, Image.DecompressionBombError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            damage.append(f"{where}: this section cannot be drawn ({what}), and is left out.")
    return tuple(sections), damage


def png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return an image as PNG; (H, W) is grey, (H, W, 3) colour and (H, W, 4) colour with opacity."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / SECTIONS_FILE


def _documents(path: Path, data: bytes) -> tuple[list[tuple[str, Any]], list[str]]:
    """Return each section's JSON with where it stands, and what is wrong with the file as a whole."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        return _whole_lines(path, data), [
            f"{path}: this is not valid JSON ({error}); the sections on its intact lines are shown, the others are lost."
        ]
    if not isinstance(whole, dict) or not isinstance(whole.get("sections"), list):
        return [], [f"{path}: there is no list `sections` in this file, so the run's own sections are not shown."]
    damage = []
    if whole.get("version") != _VERSION:
        damage.append(
            f"{path}: its version is {whole.get('version')!r} and this featherlight reads {_VERSION}, so sections may be "
            "missing; make the report with the version that wrote the run."
        )
    return [(f"{path}, section {number}", one) for number, one in enumerate(whole["sections"], start=1)], damage


def _whole_lines(path: Path, data: bytes) -> list[tuple[str, Any]]:
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            document = json.loads(line.rstrip(b", \r"))
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and "title" in document:
            found.append((f"{path}:{number}", document))
    return found


def _encode_section(section: Section) -> _Json:
    return {"title": section.title, "text": section.text, "blocks": [_encode(block) for block in section.blocks]}


def _encode(block: Block) -> _Json:
    match block:
        case Table():
            rows = [[_encode_cell(cell) for cell in row] for row in block.rows]
            return {"kind": "table", "columns": block.columns, "rows": rows, "caption": block.caption}
        case LineChart():
            lines = {label: [_finite(part) for part in line] for label, line in block.lines.items()}
            names = {"x_label": block.x_label, "y_label": block.y_label, "caption": block.caption}
            return {"kind": "line_chart", "lines": lines, **names, "log_x": block.log_x, "log_y": block.log_y}
        case BarChart():
            values = {"labels": block.labels, "values": _finite(block.values)}
            return {"kind": "bar_chart", **values, "unit": block.unit, "caption": block.caption}
        case Heatmap():
            labels = {"row_labels": block.row_labels, "column_labels": block.column_labels}
            return {"kind": "heatmap", "values": list(map(_finite, block.values)), **labels, "caption": block.caption}
        case ConfusionTable():
            return {"kind": "confusion", "labels": block.labels, "counts": block.counts, "caption": block.caption}
        case Images():
            num, height, width = block.images.shape[:3]
            strip = block.images.reshape(num * height, width, *block.images.shape[3:])
            looks = {"columns": block.columns, "labels": block.labels, "scale": block.scale, "caption": block.caption}
            return {"kind": "images", "num": num, "png": base64.b64encode(png(strip)).decode("ascii"), **looks}


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _encode_cell(cell: Cell) -> object:
    """Return a cell as JSON has it; a number that is not finite is put into words, in a form no text has."""
    return {"number": str(cell)} if isinstance(cell, float) and not math.isfinite(cell) else cell


def _decode_section(document: Any) -> Section:
    if not isinstance(document, dict):
        raise ValueError(f"it is {type(document).__name__} and not an object")
    blocks = tuple(_decode(dict(block)) for block in document.get("blocks", ()))
    return Section(title=document["title"], text=document.get("text", ""), blocks=blocks)


def _decode(block: _Json) -> Block:
    kind = block.pop("kind")
    decode = _DECODERS.get(kind)
    if decode is None:
        raise ValueError(f"`kind` is {kind!r}, and the kinds known are {', '.join(_DECODERS)}")
    return decode(block)


def _decode_table(block: _Json) -> Table:
    rows = tuple(tuple(float(c["number"]) if isinstance(c, dict) else c for c in row) for row in block["rows"])
    return Table(columns=block.pop("columns"), caption=block.pop("caption"), rows=rows)


def _decode_images(block: _Json) -> Images:
    num = block.pop("num")
    try:
        data = base64.b64decode(block.pop("png"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"its image is not base64: {error}") from error
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        width, height = image.size
        if image.mode not in ("L", "RGB") or width * height > MOST_PIXELS or num < 1 or height % num:
            raise ValueError(f"its image is {width} x {height} of mode {image.mode}, which is no strip of {num} images")
        strip = np.asarray(image)
    return Images(images=strip.reshape(num, height // num, *strip.shape[1:]), **block)


_DECODERS: Mapping[str, Callable[[_Json], Block]] = {
    "table": _decode_table,
    "line_chart": lambda block: LineChart(**block),
    "bar_chart": lambda block: BarChart(**block),
    "heatmap": lambda block: Heatmap(**block),
    "confusion": lambda block: ConfusionTable(**block),
    "images": _decode_images,
}

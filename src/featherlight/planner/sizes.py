"""Amounts of memory as people write and read them."""

import re

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {letter: 1024**power for power, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of "2GiB", "2GB", "500MB", "1.5g" or "4096"; B after the letter is a thousand to the next, iB or no B 1024.

    Raises:
        ValueError: it is no amount of memory, or none at all.
    """
    found = _SIZE.fullmatch(text)
    scale = None if found is None else _UNITS.get(found[2].upper())
    if found is None or scale is None:
        raise ValueError(f"`{text}` is no amount of memory. Write a number and a unit, such as 2GiB, 2GB or 500MB.")
    size = int(float(found[1]) * scale)
    if size < 1:
        raise ValueError(f"an amount of memory must be at least one byte; got `{text}`.")
    return size

"""Figures as people read them: bytes, durations, counts and metric values, each on one line with its unit."""

import math

PERCENT_METRICS = frozenset({"accuracy", "balanced_accuracy", "error_rate"})
"""Metrics in [0, 1] that are shown as percentages."""

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUS = "\N{MINUS SIGN}"
_GAP = "\N{NO-BREAK SPACE}"
_TIMES = "\N{MULTIPLICATION SIGN}"


def is_percentage(name: str) -> bool:
    """Tell whether a metric in [0, 1] is shown as a percentage."""
    return name in PERCENT_METRICS or name.endswith("_accuracy")


def signed(text: str) -> str:
    """Set a typographic minus for a leading hyphen."""
    return _MINUS + text[1:] if text.startswith("-") else text


def in_bytes(num_bytes: int) -> str:
    """Show a number of bytes in binary units with three significant digits, as in 1.02 GiB."""
    size, unit = float(abs(num_bytes)), 0
    while size >= 1000 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    sign = _MINUS if num_bytes < 0 else ""
    return f"{sign}{size:.{digits}f}{_GAP}{_BYTE_UNITS[unit]}"


def in_time(seconds: float) -> str:
    """Show a duration in its two largest units, as in 12 min 4 s."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.2g}{_GAP}s"
    whole = round(seconds)
    for name, size, lesser, lesser_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lesser_size
            parts = (whole // size, name, rest, lesser) if rest else (whole // size, name)
            return _GAP.join(map(str, parts))
    return f"{whole}{_GAP}s"


def in_count(count: float) -> str:
    """Show a count with thousands separators, as in 1,234,567."""
    return signed(f"{count:,}")


def in_short(count: float) -> str:
    """Show a count in at most three digits, as in 1.2M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size * 0.9995:
            return signed(f"{count / size:.3g}{letter}")
    return signed(f"{count:.3g}")


def in_digits(value: float) -> str:
    """Show a measured value with four significant digits."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{_MINUS}infinite"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return signed(f"{value:.3g}")
    return signed(f"{value:.4g}") if abs(value) < 1e4 else signed(f"{value:,.0f}")


def in_step(value: float, step: float) -> str:
    """Show a value on a scale of evenly spaced values with the digits that tell it from its neighbours."""
    if step <= 0:
        return in_digits(value)
    if abs(value) < step / 2:
        return "0"
    place = math.floor(math.log10(step) + 1e-9)
    if -4 <= place <= 4:
        return signed(f"{value:,.{max(0, -place)}f}")
    return signed(f"{value:.{max(1, math.floor(math.log10(abs(value))) - place + 1)}g}")


def in_metric_step(name: str, value: float, step: float) -> str:
    """Show a metric's value on such a scale."""
    if is_percentage(name):
        return f"{in_step(100 * value, 100 * step)}{_GAP}%"
    return in_step(value, step)


def in_metric(name: str, value: float) -> str:
    """Show a metric's value: a percentage for accuracies, four significant digits otherwise."""
    if is_percentage(name) and math.isfinite(value):
        return signed(f"{100 * value:.1f}{_GAP}%")
    return in_digits(value)


def in_metric_change(name: str, change: float) -> str:
    """Show the size of a metric's change, without its sign: percentage points for accuracies."""
    if is_percentage(name) and math.isfinite(change):
        points = f"{100 * abs(change):.1f}"
        return f"{points}{_GAP}point{'' if points == '1.0' else 's'}"
    return in_digits(abs(change))


def in_range(texts: tuple[str, str]) -> str:
    """Show the lowest and the highest of several as one span."""
    low, high = texts
    return low if low == high else f"{low} to {high}"


def spoken(name: str) -> str:
    """Return a metric's name as running text has it."""
    return name.replace("_", " ")


def capital(text: str) -> str:
    """Return a text with its first letter large."""
    return text[:1].upper() + text[1:]


def in_times(ratio: float) -> str:
    """Show a ratio, as in 3.9×."""
    return f"{ratio:.3g}{_TIMES}" if ratio < 100 else f"{ratio:,.0f}{_TIMES}"

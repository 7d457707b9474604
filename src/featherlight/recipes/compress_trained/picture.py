"""A picture of where the bytes of a file are."""

from html import escape

from featherlight.archive import Account

_COLOURS = ("#b07aa1", "#4e79a7", "#f28e2b", "#9c9c9c")
_PARTS = ("codebook", "index", "values", "digests and header")
_MOST_BARS = 60
_LEFT, _WIDTH, _TOP, _PITCH = 260, 540, 50, 22


def draw(account: Account, title: str) -> str:
    """An SVG with a bar for each tensor, as long as its bytes: codebook, index, values and digest.

    Args:
        account: of the file.
        title: above the bars.
    """
    bars = [
        (one.name, (one.codebook_bytes, one.index_bytes, one.value_bytes, one.digest_bytes)) for one in account.rows
    ]
    bars += [(name, (0, 0, 0, size)) for name, size in account.other_bytes.items() if size]
    bars = sorted(bars, key=lambda one: -sum(one[1]))[:_MOST_BARS]
    longest = max(sum(sizes) for _, sizes in bars)
    height = _TOP + _PITCH * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" font-family="sans-serif" font-size="12">',
        f'<text x="8" y="18">{escape(title)}: {account.num_bytes:,} bytes</text>',
    ]
    for k, (colour, name) in enumerate(zip(_COLOURS, _PARTS, strict=True)):
        x = 8 + 130 * k
        lines.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{x + 14}" y="38">{name}</text>')
    for row, (name, sizes) in enumerate(bars):
        lines += _bar(_TOP + _PITCH * row, name, sizes, longest)
    return "\n".join([*lines, "</svg>", ""])


def _bar(y: int, name: str, sizes: tuple[int, ...], longest: int) -> list[str]:
    lines, x = [f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(name[-38:])}</text>'], float(_LEFT)
    for size, colour in zip(sizes, _COLOURS, strict=True):
        width = _WIDTH * size / longest
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>')
        x += width
    return [*lines, f'<text x="{x + 6:.1f}" y="{y + 13}">{sum(sizes):,}</text>']

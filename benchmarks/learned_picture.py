"""The picture of benchmarks/learned.py: median gaps against gradient evaluations, a panel for each class."""

from pathlib import Path

from benchmarks.common import Row


def picture(rows: list[Row], path: Path) -> None:
    """Draws the first seed of each class."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["seed"] == 0]
    if not shown:
        return
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(4 * columns, 3.4 * lines), squeeze=False)
    for panel, row in zip(panels.flat, shown, strict=False):
        for name, one in row["optimizers"].items():
            style = "-" if "no safeguard" not in name else ":"
            panel.semilogy(range(len(one["path"])), one["path"], style, label=name, linewidth=1.2)
        panel.axhline(row["target"], color="0.6", linewidth=0.8)
        panel.set_title(row["problem"], fontsize=10)
        panel.set_xlim(0, 60)
        panel.set_ylim(1e-10, 10)
        panel.set_xlabel("gradient evaluations")
        panel.legend(fontsize=6)
    for panel in list(panels.flat)[len(shown) :]:
        panel.axis("off")
    panels[0][0].set_ylabel("median gap over that at the start")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

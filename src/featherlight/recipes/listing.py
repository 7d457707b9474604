"""`featherlight recipes`; imports no torch, so that it answers at once."""

import json

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from featherlight.recipes.catalogue import recipes


def show_recipes(*, as_json: bool) -> None:
    """Prints all recipes."""
    found = recipes().values()
    if as_json:
        typer.echo(json.dumps([{"name": r.name, "summary": r.summary, "cost": r.cost, "data": r.data} for r in found]))
        return
    table = Table(Column("recipe", no_wrap=True), "what it is, what it costs, its data", leading=1)
    for one in found:
        table.add_row(one.name, Text.assemble(one.summary, "\n", (f"{one.cost}; {one.data}", "dim")))
    Console().print(table)

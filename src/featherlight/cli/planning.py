"""The verb that says what fits before it runs."""

from typing import Annotated

import typer

from featherlight.cli.app import Device, Json, app, console


@app.command()
def plan(
    model: Annotated[
        str, typer.Option(help="Directory, hub id, `minilm`, a recipe, or module:function.", show_default=False)
    ],
    data: Annotated[str | None, typer.Option(help="Training rows, for the number of classes.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step; 16, or a recipe's own.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of the longest example; 128 if left out.")] = None,
    task: Annotated[str, typer.Option(help="auto, or lm for a language model.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="What the process may take: 8GiB, 500MB.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Predict memory and time of the ways to train a model here, and say which to take."""
    from featherlight.recipes.plan.command import Asked
    from featherlight.recipes.plan.command import plan as carry_out

    asked = Asked(model=model, data=data, batch=batch, length=length, task=task, memory=memory, device=device or "auto")
    carry_out(asked, as_json=as_json, console=console)

"""The model card: README.md of a saved model, with the head that model hubs read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherlight.files import write_atomically
from featherlight.trainer.digests import file_digest

if TYPE_CHECKING:
    from featherlight.trainer.run import Run


def write_model_card(run: Run, folder: Path) -> None:
    """Writes README.md into the folder of the run's model; if that fails, it says so and the model stays as it is."""
    try:
        text = model_card(run, folder)
        write_atomically(folder / "README.md", lambda file: file.write(text.encode()))
    except Exception as error:
        run.display.say(
            f"warning: the model is saved, but its card could not be written ({type(error).__name__}: {error})"
        )


def model_card(run: Run, folder: Path) -> str:
    """What the model is, what it was made from, how well it does, and the command that makes it again."""
    from huggingface_hub import ModelCardData

    experiment, scores, identity = run.experiment, run.scores, run.identity
    base = experiment.facts.get("model")
    head = ModelCardData(
        library_name="featherlight",
        base_model=base if base and "/" in base and not Path(base).exists() else None,
        tags=[tag for tag in ("featherlight", identity.recipe.partition("/")[0], experiment.method) if tag],
        model_name=experiment.title,
        metrics=[scores.metric] if scores.metric else None,
    )
    rows = [
        *experiment.facts.items(),
        ("method", experiment.method or "-"),
        (scores.metric, _number(scores.values[-1]) + f" (before training {_number(scores.values[0])})"),
        ("steps", f"{run.steps:,} in {run.seconds:,.0f} s"),
        ("seed", str(identity.seed)),
    ]
    digests = [
        f"| `{path.relative_to(folder)}` | `{file_digest(path)}` |" for path in sorted(folder.rglob("*.safetensors"))
    ]
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {experiment.title}",
        f"Made by featherlight with the recipe `{identity.recipe}`.",
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows),
        "To make it again:\n\n```\n" + identity.command + "\n```",
        "| file | SHA-256 |\n|---|---|\n" + "\n".join(digests) if digests else "",
        *(f"Note: {note}" for note in run.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) and math.isfinite(value) else "-"

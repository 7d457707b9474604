"""The command line: the verbs, and no logic. Torch is imported inside them, so that `--help` is quick."""

import os
import sys

from featherlight.cli import exporting, planning, shipping, training, using, verifying
from featherlight.cli.app import app, console

__all__ = ["app", "exporting", "main", "planning", "shipping", "training", "using", "verifying"]

_OUT_OF_MEMORY = ("memory", "can't start new thread")
"""What errors say where memory, or the addresses that a process may use, are at an end."""


def main() -> None:
    """Runs the command line; whatever goes wrong ends in a sentence and an exit code, never in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except ValueError as error:
        _fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        _fail(
            "the memory is used up. Lower `--batch` or `--set micro_batch=1`, or train fewer blocks (`--trainable last:2`).",
            1,
        )
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"the system refused: {error.strerror or error}{where}. What was complete is still on disk.", 1)


def _fail(sentence: str, code: int) -> None:
    from rich.markup import escape

    console.print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(code)

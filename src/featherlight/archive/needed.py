"""Packages that only some codings need, asked for when they are."""

from importlib import import_module
from typing import Any


def needed(package: str, purpose: str) -> Any:
    """The package.

    Args:
        package: its name.
        purpose: what is done with it, to be put behind "to".

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"the package `{package}` is needed to {purpose}, and is not installed. `pip install 'featherlight[compress]'` "
            "brings it."
        ) from error

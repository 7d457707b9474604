"""Parameters chosen by a regular expression of their names."""

import re
from collections.abc import Mapping

from torch import nn


def matching(choice: str, names: Mapping[str, nn.Parameter]) -> set[str]:
    """The names that a regular expression fits; raises ValueError where it fits none or is none."""
    try:
        pattern = re.compile(choice)
    except re.error as error:
        raise ValueError(f"`--trainable {choice}` is not a regular expression ({error}).") from None
    chosen = {name for name in names if pattern.search(name)}
    if not chosen:
        some = ", ".join(list(names)[:3])
        raise ValueError(
            f"`--trainable {choice}` fits none of the {len(names)} parameters (such as {some}), so nothing would be trained."
        )
    return chosen

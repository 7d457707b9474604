"""The compressed file of a network, and what each of its tensors takes in it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from featherlight.archive import Archive, write_archive

FEATHER = "model.feather"
"""Name of the compressed file in the model directory of a run."""


@dataclass(frozen=True, kw_only=True)
class TensorCost:
    """What a tensor takes in a compressed file.

    Attributes:
        name: of the tensor.
        weights: how many there are.
        kept: how many are not zero.
        values: distinct ones that are not zero; None for several tensors together.
        bytes: in the file, its codebook and its digest included.
    """

    name: str
    weights: int
    kept: int
    values: int | None
    bytes: int


def write_feather(path: Path, model: nn.Module) -> int:
    """Writes a network's tensors as one compressed file, and returns its bytes."""
    return write_archive(path, {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})


def tensor_costs(path: Path) -> list[TensorCost]:
    """What each tensor takes in a file.

    Raises:
        ValueError: the file is damaged.
    """
    archive = Archive(path)
    found = []
    for name, entry in archive.entries.items():
        tensor = archive.read(name)
        kept = tensor[tensor != 0]
        found.append(
            TensorCost(
                name=name,
                weights=tensor.numel(),
                kept=kept.numel(),
                values=len(torch.unique(kept)),
                bytes=entry.num_bytes,
            )
        )
    return found

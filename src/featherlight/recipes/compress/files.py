"""The compressed file of a network."""

from pathlib import Path

from torch import nn

from featherlight.archive import write_archive

FEATHER = "model.feather"
"""Name of the compressed file in the model directory of a run."""


def write_feather(path: Path, model: nn.Module) -> int:
    """Writes a network's tensors as one compressed file, and returns its bytes."""
    return write_archive(path, {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})

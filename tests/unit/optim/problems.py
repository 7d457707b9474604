"""A small regression problem, and ways to compare what training left behind."""

from typing import Any

import torch
from torch import Tensor, nn

from featherlight.objective import BatchObjective


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    error = (model(batch["x"]) - batch["y"]).square().flatten(1)
    return error.to(torch.promote_types(error.dtype, torch.float32)).mean(1)


def make_model(*, dtype: torch.dtype = torch.float32, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(dropout), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def make_batch(step: int = 0, *, rows: int = 8, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
    return {"x": x, "y": torch.stack((x.sum(1), x[:, 0] - x[:, 1]), 1)}


def make_objective(model: nn.Module, step: int = 0, **options: Any) -> BatchObjective:
    dtype = next(model.parameters()).dtype
    return BatchObjective(model, make_batch(step, dtype=dtype), squared_error, dropout_seed=step, **options)


def bits_of(model: nn.Module) -> dict[str, list[int]]:
    """The bit patterns of all parameters and buffers, by name."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: tensor.detach().contiguous().reshape(-1).view(width[tensor.element_size()]).tolist()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }

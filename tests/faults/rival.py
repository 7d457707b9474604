"""The tiny run as Hugging Face's Trainer makes it, for the same campaigns: `python -m tests.faults --rival`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from featherlight.objective import seeded_random
from featherlight.trainer import file_digest

if TYPE_CHECKING:
    from tests.faults.tiny_run import TinyConfig

_ROWS = 120


class _Regression(nn.Module):
    """The net of the tiny run, with its loss."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with seeded_random(seed, torch.device("cpu")):
            self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.body(x) - y).square().mean()}


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, seed: int) -> None:
        self.x = torch.randn(_ROWS, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": self.x[row], "y": self.x[row, :2].sin()}


def go(path: Path, config: "TinyConfig", acknowledged: int | None = None) -> None:
    """Runs or takes up from the newest checkpoint, with a save every four steps, of which two are kept."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Tell(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if acknowledged is not None:
                os.write(acknowledged, int(state.global_step).to_bytes(4, "little"))

    arguments = TrainingArguments(
        output_dir=str(path),
        max_steps=config.steps,
        per_device_train_batch_size=5,
        learning_rate=1e-2,
        save_steps=4,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=config.seed,
    )
    trainer = Trainer(
        model=_Regression(config.seed), args=arguments, train_dataset=_Rows(config.data_seed), callbacks=[Tell()]
    )
    last = get_last_checkpoint(str(path)) if path.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(path / "model"))
    (path / "over").touch()


def is_over(path: Path) -> bool:
    """Whether the run is finished."""
    return (path / "over").is_file()


def weights(path: Path) -> str:
    """SHA-256 of the trained model's file."""
    return file_digest(path / "model" / "model.safetensors")


def newest_save(path: Path) -> tuple[int, Path] | None:
    """The step of the newest checkpoint that is named as one, and its weights."""
    found = max(_checkpoints(path), default=None)
    return None if found is None else (found[0], found[1] / "model.safetensors")


def _checkpoints(path: Path) -> Iterator[tuple[int, Path]]:
    for one in path.glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", one.name):
            yield int(match[1]), one

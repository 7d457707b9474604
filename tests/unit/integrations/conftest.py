"""Arguments for the tests of Hugging Face's Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Arguments of a short, quiet run on the CPU."""

    def make(**options: Any) -> TrainingArguments:
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
        short = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 4}
        return TrainingArguments(output_dir=str(tmp_path / "out"), **(quiet | short | options))

    return make

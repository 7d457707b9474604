"""Scores without a gradient, raised by forward passes alone: accuracy itself, and a metric of generated text.

    python -m benchmarks.rewards --short     one seed, a few minutes
    python -m benchmarks.rewards             three seeds

`trec` trains a fresh linear head on features of MiniLM-L6 (1,000 training and 500 test rows) by the accuracy of its
batches, with raw and with rank-shaped pairs, beside the same optimizer on the cross-entropy. `stories` trains all but the
embedding of stories260K so that the text it generates greedily has more vowels, and scores prompts it has not seen. The
learning rate and `sigma` of each row are the best of the grid in `TREC` and `STORIES`, by a seed that is not reported.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import RESULTS, spread, target, write_results
from featherlight.integrations.llama2c import convert_llama2c
from featherlight.meter import Meter
from featherlight.nn.models import load_pretrained, quiet_loading, resolve_model
from featherlight.objective import BatchObjective, Objective, RewardObjective
from featherlight.optim import CentredRanks, RankOneSigns, SpreadNormalized, ZerothOrderSGD

SEEDS = (0, 1, 2)
TUNING_SEED = 100
TREC = [(sigma, lr) for sigma in (0.1, 0.3) for lr in (0.1, 0.3)]
STORIES = [(0.01, lr) for lr in (0.003, 0.01)]
TREC_ROWS = {"train": 1000, "test": 500}
NEW_TOKENS = 10
NAMES = ("Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Lucy", "Jack", "Amy", "Bob", "Jane", "Leo")

Rows = dict[str, Tensor]
MakeObjective = Callable[[nn.Module, Rows, int, Meter], Objective]


def train(
    optimizer: ZerothOrderSGD, lr: float, steps: int, objective: Callable[[int], Objective], score: Callable[[], float]
) -> dict[str, Any]:
    """Trains with a rate that falls to zero; scores eleven times on the way."""
    curve, began = [], time.perf_counter()
    for step in range(steps):
        if step * 10 % steps < 10:
            curve.append([step, score()])
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step(objective(step))
    curve.append([steps, score()])
    return {"curve": curve, "start": curve[0][1], "end": curve[-1][1], "seconds": time.perf_counter() - began}


@torch.no_grad()
def trec_features(folder: Path) -> dict[str, Rows]:
    """Features and classes, scaled by those of the training rows."""
    loaded = load_pretrained(resolve_model("minilm"), num_outputs=6, generator=torch.Generator().manual_seed(0))
    assert loaded.head is not None
    seen: list[Tensor] = []
    loaded.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = {}
    for part, count in TREC_ROWS.items():
        rows = pq.read_table(folder / "trec" / f"{part}.parquet").slice(0, count).to_pydict()
        order = sorted(range(count), key=lambda i: len(rows["text"][i]))
        seen.clear()
        for start in range(0, count, 50):
            texts = [rows["text"][i] for i in order[start : start + 50]]
            loaded.model.eval()(**loaded.tokenizer(texts, return_tensors="pt", padding=True))
        found[part] = {"x": torch.cat(seen), "y": torch.tensor([rows["label"][i] for i in order])}
    middle, width = found["train"]["x"].mean(0), found["train"]["x"].std(0)
    return {part: {"x": (rows["x"] - middle) / width, "y": rows["y"]} for part, rows in found.items()}


def right(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"]).argmax(-1) == batch["y"]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def on_accuracy(model: nn.Module, rows: Rows, step: int, meter: Meter) -> Objective:
    return RewardObjective(model, rows, right, dropout_seed=step, meter=meter)


def on_cross_entropy(model: nn.Module, rows: Rows, step: int, meter: Meter) -> Objective:
    return BatchObjective(model, rows, cross_entropy, dropout_seed=step, meter=meter)


TREC_SIDES: dict[str, tuple[MakeObjective, Any]] = {
    "accuracy, raw": (on_accuracy, None),
    "accuracy, ranks": (on_accuracy, CentredRanks()),
    "cross-entropy, raw": (on_cross_entropy, None),
}


def trec_run(data: dict[str, Rows], side: str, seed: int, setting: tuple[float, float], steps: int) -> dict[str, Any]:
    sigma, lr = setting
    make, shaping = TREC_SIDES[side]
    head = nn.Linear(384, 6)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(std=0.02, generator=generator)
        head.bias.zero_()
    meter = Meter()
    optimizer = ZerothOrderSGD(
        head,
        lr,
        sigma=sigma,
        directions=RankOneSigns(8),
        shaping=shaping,
        normalize=SpreadNormalized(),
        seed=seed,
        meter=meter,
    )

    def objective(step: int) -> Objective:
        rows = torch.randint(len(data["train"]["y"]), (256,), generator=generator)
        return make(head, {name: tensor[rows] for name, tensor in data["train"].items()}, step, meter)

    row = train(optimizer, lr, steps, objective, lambda: float(right(head, data["test"]).double().mean()))
    return {
        "what": "trec",
        "side": side,
        "seed": seed,
        "sigma": sigma,
        "lr": lr,
        "forwards": meter.example_forwards,
    } | row


class Stories:
    """stories260K and prompts of equal lengths, some of which are never trained on."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder / "stories"
        convert_llama2c(source / "stories260K" / "stories260K.bin", source / "stories260K" / "tok512.bin", self.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        texts = [f"{a} and {b} went to the" for number, a in enumerate(NAMES) for b in NAMES[number + 1 :]]
        by_length: dict[int, list[list[int]]] = {}
        for ids in (self.tokenizer(text)["input_ids"] for text in texts):
            by_length.setdefault(len(ids), []).append(ids)
        groups = [torch.tensor(group) for group in by_length.values() if len(group) >= 10]
        self.unseen, self.seen = [group[-4:] for group in groups], [group[:-4] for group in groups]

    def model(self) -> nn.Module:
        with quiet_loading():
            return AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def texts(self, model: Any, ids: Tensor) -> list[str]:
        """What is generated greedily behind the prompts."""
        made, now, past = [], ids, None
        for _ in range(NEW_TOKENS):
            out = model(input_ids=now, past_key_values=past, use_cache=True)
            now, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            made.append(now)
        return [self.tokenizer.decode(row) for row in torch.cat(made, 1)]

    def vowels(self, model: nn.Module, batch: Any) -> list[float]:
        """Share of vowels in what is generated for each prompt."""
        return [sum(c in "aeiou" for c in text.lower()) / max(1, len(text)) for text in self.texts(model, batch["ids"])]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Mean share over the prompts that are not trained on."""
        shares = [share for ids in self.unseen for share in self.vowels(model, {"ids": ids})]
        return sum(shares) / len(shares)


def stories_run(stories: Stories, seed: int, setting: tuple[float, float], steps: int) -> dict[str, Any]:
    sigma, lr = setting
    model, meter, draw = stories.model(), Meter(), random.Random(seed)
    body = [parameter for name, parameter in model.named_parameters() if "embed" not in name]
    optimizer = ZerothOrderSGD(
        model,
        lr,
        sigma=sigma,
        directions=RankOneSigns(None),
        normalize=SpreadNormalized(),
        params=body,
        seed=seed,
        meter=meter,
    )

    def score(module: nn.Module, batch: Any) -> list[float]:
        meter.example_forwards += (NEW_TOKENS - 1) * len(batch["ids"])
        return stories.vowels(module, batch)

    def objective(step: int) -> Objective:
        ids = stories.seen[step % len(stories.seen)]
        return RewardObjective(model, {"ids": ids[draw.choices(range(len(ids)), k=16)]}, score, meter=meter)

    before = stories.texts(model, stories.unseen[0][:1])[0]
    row = train(optimizer, lr, steps, objective, lambda: stories.score(model))
    shown = {"said_before": before, "says": stories.texts(model, stories.unseen[0][:1])[0]}
    named = {"what": "stories", "side": "vowels, raw", "seed": seed, "sigma": sigma, "lr": lr}
    return named | {"forwards": meter.example_forwards} | row | shown


def tuned(
    run: Callable[[int, tuple[float, float]], dict[str, Any]], grid: Sequence[tuple[float, float]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Runs of all seeds at the best setting of the tuning seed."""
    best = max(grid, key=lambda setting: run(TUNING_SEED, setting)["end"])
    rows = [run(seed, best) for seed in seeds]
    print(
        f"{rows[0]['what']}, {rows[0]['side']}: sigma {best[0]:g}, lr {best[1]:g}, from "
        f"{spread([row['start'] for row in rows])} to {spread([row['end'] for row in rows])}",
        flush=True,
    )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Score against steps, one line a run."""
    from matplotlib.figure import Figure

    colours = dict(zip([*TREC_SIDES, "vowels, raw"], ("#0072b2", "#009e73", "#999999", "#d55e00"), strict=True))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    titles = {"trec": "TREC: test accuracy", "stories": "stories260K: share of vowels, unseen prompts"}
    for axes, (what, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        labelled = set()
        for row in rows:
            if row["what"] == what:
                label = None if row["side"] in labelled else row["side"]
                labelled.add(row["side"])
                axes.plot(*zip(*row["curve"], strict=True), color=colours[row["side"]], alpha=0.8, label=label)
        axes.set_title(title)
        axes.set_xlabel("steps")
        axes.legend()
    figure.savefig(path)


def lowest_rise(rows: list[dict[str, Any]], side: str) -> float:
    return min(row["end"] - row["start"] for row in rows if row["side"] == side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed and fewer steps")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds trec/ and stories260K/")
    source = Path(os.environ["FEATHERLIGHT_DATA"])
    seeds, trec_steps, stories_steps = (SEEDS[:1], 100, 15) if arguments.short else (SEEDS, 300, 40)
    data = trec_features(source)
    rows: list[dict[str, Any]] = []
    for side in TREC_SIDES:
        rows += tuned(lambda seed, setting, side=side: trec_run(data, side, seed, setting, trec_steps), TREC, seeds)
    with tempfile.TemporaryDirectory() as scratch:
        stories = Stories(source, Path(scratch))
        grid = STORIES[1:2] if arguments.short else STORIES
        rows += tuned(lambda seed, setting: stories_run(stories, seed, setting, stories_steps), grid, seeds)
    asked = {
        "TREC: test accuracy gained by accuracy itself, raw, worst seed": ("accuracy, raw", 0.1),
        "TREC: test accuracy gained by accuracy itself, ranks, worst seed": ("accuracy, ranks", 0.1),
        "stories260K: share of vowels gained on unseen prompts, worst seed": ("vowels, raw", 0.05),
    }
    targets = [target(title, lowest_rise(rows, side), ">=", least, "") for title, (side, least) in asked.items()]
    name = "rewards_short" if arguments.short else "rewards"
    write_results(name, rows, targets)
    draw(rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()

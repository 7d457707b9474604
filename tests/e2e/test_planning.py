"""`plan`, and fine-tunes within a memory, as a user meets them."""

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from featherlight.planner import known_values
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.plan import fitting
from featherlight.recipes.plan.choice import MOST_ROWS, largest_batch
from featherlight.recipes.plan.text import text_subject
from featherlight.recipes.plan.ways import FULL
from featherlight.trainer import Display

ROOT = Path(__file__).parents[2]

STARVED = """
import resource, sys
from pathlib import Path

import peft, torch, torch._dynamo
from transformers import BertForSequenceClassification, BertModel

from featherlight import cli
from featherlight.recipes.finetune import experiment, out_of_memory
from featherlight.recipes.plan import choice, fitting

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["featherlight", *sys.argv[2:]]
cli.main()
"""
"""The command line, in a process that may take so many bytes more than it has taken when all is imported."""


FEW_THREADS = {"MALLOC_ARENA_MAX": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
"""A thread reserves addresses of its own, which the limit counts."""


def test_a_config_alone_is_planned(run, models, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(models / "gpt2" / "config.json", tmp_path / "bare")
    done = run(
        "plan", "--model", tmp_path / "bare", "--task", "lm", "--batch", 4, "--length", 16, "--memory", "8GiB", "--json"
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    ways = {way["key"]: way for way in told["ways"]}
    assert told["recommended"] == "adamw"
    assert told["largest_batch"] >= 2
    assert {"adamw", "adamw/1", "bf16", "lora", "last:2", "sgd", "zo"} <= ways.keys()
    assert ways["zo"]["peak"] < ways["adamw"]["peak"]
    assert ways["adamw/1"]["peak"] < ways["adamw"]["peak"]
    assert ways["sgd"]["categories"]["optimizer"] < ways["adamw"]["categories"]["optimizer"]
    assert "checkpointed" not in ways  # it needs a model in memory
    assert all(way["measured"] is None and way["process"] > way["peak"] for way in told["ways"])
    assert all(sum(way["categories"].values()) == way["peak"] for way in told["ways"])


def test_masks_too_large_to_follow_bound_the_batch_that_is_looked_for(monkeypatch, models):
    subject = text_subject(str(models / "bert"), rows=4, length=None, num_outputs=2)
    assert largest_batch(subject, FULL, 64 << 30, 0) == MOST_ROWS
    monkeypatch.setattr(known_values, "_MOST", 64 * subject.length)
    assert largest_batch(subject, FULL, 8 << 30, 0, most=128) == 64


def test_a_recipe_and_a_function_of_ones_own_are_planned(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_plan.py").write_text(
        "import torch\n"
        "def mine():\n"
        "    batch = {'x': torch.ones(4, 3)}\n"
        "    return torch.nn.Linear(3, 1), batch, lambda model, batch: model(batch['x']).square().sum(1)\n"
        "def deep():\n"
        "    layers = [torch.nn.Linear(64, 64) if i % 2 else torch.nn.GELU() for i in range(12)]\n"
        "    batch = {'x': torch.ones(512, 64)}\n"
        "    return torch.nn.Sequential(*layers), batch, lambda model, batch: model(batch['x']).square().sum(1)\n"
        "def needs_more(what):\n"
        "    return None\n"
        "def wrong():\n"
        "    return torch.nn.Linear(3, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done = run("plan", "--model", "mine_to_plan:mine", "--batch", 32)
    assert done.code == 0, done.err
    assert "mine_to_plan:mine: 32 rows a step" in " ".join(done.out.split())
    assert "recommended (*): AdamW" in done.err
    assert "activation checkpointing is left out: Linear has no nn.Sequential" in done.err
    told = json.loads(run("plan", "--model", "mine_to_plan:deep", "--json").out)
    ways = {way["key"]: way for way in told["ways"]}
    assert ways["checkpointed"]["peak"] < ways["adamw"]["peak"]
    assert sum(ways["checkpointed"]["categories"].values()) == ways["checkpointed"]["peak"]
    assert "cannot be called" in run("plan", "--model", "mine_to_plan:needs_more").err
    wrong = run("plan", "--model", "mine_to_plan:wrong")
    assert wrong.code == 2
    assert "needs `(model, batch, loss)`" in wrong.err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--batch", 0), "`--batch` must be at least 1; got 0"),
        (("--length", -3), "`--length` must be at least 1; got -3"),
        (("--length", 4000), "is more than"),
        (("--memory", "lots"), "`lots` is no amount of memory"),
        (("--device", "cuda"), "so a plan is for the CPU"),
    ],
)
def test_what_cannot_be_planned_is_told(run, models, extra, said):
    done = run("plan", "--model", models / "bert", *extra)
    assert done.code == 2
    assert said in done.err


def test_a_memory_below_the_weights_is_told_with_the_least(run, models, reviews, tmp_path):
    done = run(
        "finetune",
        "--model",
        models / "bert",
        "--train",
        reviews,
        "--label",
        "feeling",
        "--memory",
        "1MiB",
        "--method",
        "auto",
    )
    assert done.code == 2
    assert "so this model cannot even be held. Give more than that" in done.err
    without = run("finetune", "--model", models / "bert", "--train", reviews, "--method", "auto")
    assert "which is not given. Say `--memory 4GiB`" in without.err


def test_the_recommendation_is_run_and_stands_in_what_is_left(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    words = ("--memory", "8GiB", "--method", "auto", "--steps", 2, "--out", out)
    done = run("finetune", "--model", models / "bert", "--train", reviews, "--label", "feeling", *words)
    assert done.code == 0, done.err
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["method"], config["memory"]) == ("adamw", "8GiB")
    assert tomllib.loads((out / "asked.toml").read_text())["method"] == "auto"
    summary = json.loads((out / "summary.json").read_text())
    assert "8GiB asked; AdamW, 16 rows a pass, of up to" in summary["facts"]["memory"]
    page = (out / "report.html").read_text()
    assert "Memory over the first two steps" in page
    assert "measured" in page


def test_a_planned_run_is_taken_up_as_it_began(models, reviews, monkeypatch):
    asked = FinetuneConfig(
        model=str(models / "bert"), train=str(reviews), label="feeling", memory="8GiB", method="auto"
    )
    said = io.StringIO()
    display = Display(Console(file=said, width=200))
    begun, _ = fitting.fit_to_memory(asked, display)
    monkeypatch.setattr(fitting, "require_weights_fit", lambda *_: None)
    monkeypatch.setattr(fitting, "resident_bytes", lambda: 9 << 30)
    again, _ = fitting.fit_to_memory(begun, display)
    assert again == begun
    assert (begun.method, begun.micro_batch) == ("adamw", 16)
    assert "that is more than 8GiB; method and `micro_batch` are as they were given" in said.getvalue()
    with pytest.raises(ValueError, match="no way of training fits"):
        fitting.fit_to_memory(asked, display)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 that train together could choose differently"):
        fitting.fit_to_memory(asked, display)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="sizes of processes are read from /proc")
def test_out_of_memory_is_explained_and_the_first_remedy_is_run(models, tmp_path):
    rows = [{"text": "good film the plot was very fine " * 3 + str(n), "label": n % 2} for n in range(1500)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["finetune", "--model", str(models / "bert"), "--train", str(tmp_path / "rows.jsonl"), "--method", "adamw"]
    words += [
        "--batch",
        "1200",
        "--steps",
        "1",
        "--set",
        "evaluations=1",
        "--no-head-start",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", STARVED, "170000000", *words, "--auto-retry"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **FEW_THREADS, "PYTHONPATH": f"{ROOT / 'src'}"},
        check=False,
    )
    said = " ".join(done.stderr.split())
    assert "Traceback" not in said
    assert "the memory is used up" in said, said
    assert "of tensors at its peak: activations" in said
    assert said.count("saves ") == 3
    assert "--set micro_batch=300" in said
    assert done.returncode == 0, said
    assert tomllib.loads((tmp_path / "run-retry" / "config.toml").read_text())["micro_batch"] == 300

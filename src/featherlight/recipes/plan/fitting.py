"""A fine-tune that is made to fit: the best way, and as many rows a pass as go, by prediction."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from featherlight.data import Labels, encode_text, load_text
from featherlight.nn.models import quiet_loading, resolve_model
from featherlight.planner.process import resident_bytes
from featherlight.planner.sizes import parse_size
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.plan.choice import in_gib, largest_pass, predict, require_weights_fit
from featherlight.recipes.plan.planned import Planned
from featherlight.recipes.plan.text import TextSubject, text_subject
from featherlight.recipes.plan.ways import FULL, Way, ways
from featherlight.trainer import Display

_LM_LENGTH = 256


def fit_to_memory(config: FinetuneConfig, display: Display) -> tuple[FinetuneConfig, Planned]:
    """The config with method, trained weights and rows a pass chosen so that the predicted process stays within `memory`.

    What the config says already is kept: a method that is not "auto", adapters, trained weights, and a smaller `micro_batch`.
    Where it says both method and `micro_batch`, as that of a run that was planned does, nothing is left to choose: a run that
    is taken up goes on as it began.

    Raises:
        ValueError: nothing fits; says what the least is. Or there are several processes.
    """
    assert config.memory is not None, "a run without a limit is not planned"
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"`memory` is planned by each process for itself, and {processes} that train together could choose differently. "
            "Leave `--memory` out under torchrun and give `--method` and `--set micro_batch=`, which `featherlight plan` finds."
        )
    memory = parse_size(config.memory)
    display.say(f"planning for {in_gib(memory)}")
    subject = subject_of_config(config)
    model = subject.case(FULL, 1).model
    baseline = resident_bytes()
    require_weights_fit(model, baseline, memory)
    if config.method != "auto" and config.micro_batch is not None:
        return _chosen(config, subject, as_it_is(config), memory, baseline, display)
    tried = []
    for way in ways_of_config(config):
        found = largest_pass(subject, way, memory, baseline)
        if found is not None:
            return _chosen(config, subject, found, memory, baseline, display)
        tried.append(way)
    smallest = [
        predict(subject, replace(way, micro_batch=1), subject.rows, memory=memory, rate=1.0, baseline=baseline)
        for way in tried
    ]
    least = min(smallest, key=lambda row: row.process.total)
    raise ValueError(
        f"`memory` is {config.memory}, and no way of training fits: {least.way.title}, one row a pass, is predicted to take "
        f"{in_gib(least.process.total)} ({in_gib(baseline)} of it Python, torch and this program). Give at least that, shorten "
        "the rows (`--set max_length=`), or take a smaller model."
    )


def ways_of_config(config: FinetuneConfig) -> list[Way]:
    """The ways that a config leaves open, best first."""
    fixed = config.trainable != "default" or config.lora is not None
    if config.method != "auto":
        way = Way(
            key=config.method,
            title=config.method,
            method=config.method,
            quality="as asked",
            rank=0,
            trainable=config.trainable,
            lora=config.lora,
        )
        return [way]
    runnable = (way for way in ways(2, is_text=True) if way.flags is not None and way.micro_batch is None)
    if not fixed:
        return list(runnable)
    return [
        replace(way, trainable=config.trainable, lora=config.lora) for way in runnable if way.key in ("adamw", "zo")
    ]


def subject_of_config(config: FinetuneConfig) -> TextSubject:
    """Model and longest row of a fine-tune; the rows are tokenised for it, the weights are not read."""
    from transformers import AutoTokenizer

    outputs, length = None, _LM_LENGTH
    if config.task != "lm":
        rows = load_text(config.train, text_columns=config.text, label_column=config.label)
        if rows.labels is None:
            raise ValueError(
                f"{rows.source} has no label column. Name it with `--label`, or use `--task lm` for plain text."
            )
        regression = {"regression": True, "classification": False}.get(config.task)
        outputs = Labels.fit(rows.labels, regression=regression, source=f"the labels of {config.train}").num_outputs
        with quiet_loading():
            tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(config.model))
        most = min(config.max_length or tokenizer.model_max_length, tokenizer.model_max_length, 1 << 20)
        length = int(encode_text(rows, tokenizer, max_length=most, allow_truncation=True).lengths.max())
    limit = config.max_length
    subject = text_subject(config.model, rows=config.batch, length=None, num_outputs=outputs, dtype=config.dtype)
    return replace(subject, length=min(length, subject.most, limit or length))


def remedies(config: FinetuneConfig) -> Iterator[tuple[Way, str]]:
    """Other ways to run a fine-tune, the least different first, with the flags that a person adds."""
    if config.micro_batch is None or config.micro_batch > 1:
        rows = max(1, (config.micro_batch or config.batch) // 4)
        yield replace(as_it_is(config), micro_batch=rows), f"--set micro_batch={rows}"
    if config.lora is None and config.trainable == "default" and config.method not in ("zo", "mezo"):
        yield replace(as_it_is(config), trainable="last:2"), "--trainable last:2"
    if config.method != "zo":
        yield replace(as_it_is(config), method="zo", micro_batch=None), "--method zo"
    if config.micro_batch is None or config.micro_batch > 1:
        yield replace(as_it_is(config), micro_batch=1), "--set micro_batch=1"


def as_it_is(config: FinetuneConfig) -> Way:
    """The way that a config says."""
    return replace(ways_of_config(config)[0], micro_batch=config.micro_batch)


def _chosen(
    config: FinetuneConfig, subject: TextSubject, way: Way, memory: int, baseline: int, display: Display
) -> tuple[FinetuneConfig, Planned]:
    row = predict(subject, way, subject.rows, memory=memory, rate=1.0, baseline=baseline)
    rows = min(config.micro_batch or config.batch, way.micro_batch or config.batch)
    resolved = replace(
        config,
        method=way.method,  # pyright: ignore[reportArgumentType]
        trainable=way.trainable,
        lora=way.lora,
        micro_batch=rows,
    )
    title = way.title if way.title.endswith("a pass") else f"{way.title}, {rows} rows a pass"
    text = (
        f"{config.memory} asked; {title}, of up to {subject.length} tokens a row; predicted "
        f"{in_gib(row.process.total)} for the process: tensors {in_gib(row.step.peak)}, Python and torch {in_gib(baseline)}, "
        f"slack {in_gib(row.process.slack)}"
    )
    display.say(text)
    if not row.fits:
        display.say(f"note: that is more than {config.memory}; method and `micro_batch` are as they were given")
    return resolved, Planned(text=text, timeline=[moment.num_bytes for moment in row.step.timeline])

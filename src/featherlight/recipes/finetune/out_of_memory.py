"""When a fine-tune runs out of memory: what took it, and what to do, with the savings computed."""

import gc
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console

from featherlight.recipes.finetune.config import FinetuneConfig, config_from_text
from featherlight.recipes.runner import Plan
from featherlight.trainer import RunDirectory

_MOST_REMEDIES = 3
_FAILED = 1


@dataclass
class Again:
    """What is to be run after all; None is nothing."""

    plan: Plan | None = None


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One way out.

    Attributes:
        flags: to be added to the command.
        config: with them.
        saved: bytes of the predicted peak that it saves.
    """

    flags: str
    config: FinetuneConfig
    saved: int


_SIGNS = ("out of memory", "can't allocate memory", "bad_alloc", "could not create a primitive")
"""What torch, its allocator, the C++ library and oneDNN say where memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's on a CPU, or a device's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextmanager
def explained_out_of_memory(plan: Plan, console: Console, *, auto_retry: bool) -> Iterator[Again]:
    """Inside the block a fine-tune is run; if it runs out of memory, that is explained, and the block ends.

    Args:
        plan: of the one run.
        console: where people look.
        auto_retry: hands the first remedy back as a plan, in a directory beside; else the command ends with code 1.
    """
    again = Again()
    failed = False
    try:
        yield again
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if not failed:
        return
    gc.collect()  # the model went with the error
    config = plan.variants[0].config
    assert isinstance(config, FinetuneConfig)
    found = _tell(config, plan.path, console)
    if not (auto_retry and found):
        raise typer.Exit(_FAILED)
    path = plan.path.with_name(plan.path.name + "-retry")
    console.print(f"again with {found[0].flags}, in {path}", highlight=False, markup=False, soft_wrap=True)
    again.plan = replace(plan, variants=[replace(plan.variants[0], config=found[0].config)], path=path)


def explain(config: FinetuneConfig, resolved: FinetuneConfig) -> tuple[str, list[Remedy]]:
    """What the steps of a fine-tune take, as a sentence, and up to three remedies, the least different first.

    Args:
        config: as it was asked for.
        resolved: with the choices that were made for it.
    """
    from featherlight.recipes.plan.choice import in_gib, predict
    from featherlight.recipes.plan.fitting import as_it_is, remedies, subject_of_config

    subject = subject_of_config(resolved)
    now = predict(subject, as_it_is(resolved), subject.rows, memory=None, rate=1.0)
    largest = sorted(now.step.categories.items(), key=lambda one: -one[1])
    parts = ", ".join(f"{name} {in_gib(size)}" for name, size in largest if size >= now.step.peak // 100)
    sentence = f"a step is predicted to take {in_gib(now.step.peak)} of tensors at its peak: {parts}"
    found = []
    for way, flags in remedies(resolved):
        row = predict(subject, way, subject.rows, memory=None, rate=1.0)
        changed = replace(
            config,
            method=way.method,  # pyright: ignore[reportArgumentType]
            trainable=way.trainable,
            lora=way.lora,
            micro_batch=way.micro_batch,
        )
        if config.method == "auto" and "--method" not in flags:
            flags = f"--method {way.method} {flags}"
        found.append(Remedy(flags=flags, config=changed, saved=now.step.peak - row.step.peak))
    return sentence, [one for one in found if one.saved > now.step.peak // 50][:_MOST_REMEDIES]


def _as_begun(config: FinetuneConfig, path: Path) -> FinetuneConfig:
    """With the choices that its run has made, if it came so far."""
    kept = RunDirectory(path=path).config
    return config_from_text(kept.read_text(), source=str(kept)) if kept.is_file() else config


def _without_place(words: list[str]) -> list[str]:
    """A command without the directory that it runs in."""
    kept = [one for number, one in enumerate(words) if one != "--out" and words[number - 1] != "--out"]
    return [one for one in kept if one != "--auto-retry"]


def _tell(config: FinetuneConfig, path: Path, console: Console) -> list[Remedy]:
    from featherlight.recipes.plan.choice import in_gib

    def say(line: str, style: str = "") -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)

    say("error: the memory is used up.", "red")
    try:
        sentence, found = explain(config, _as_begun(config, path))
    except MemoryError:
        say("There is not even enough left to say what took it. Use `--method zo`, or a smaller model.")
        return []
    say(f"{sentence}.")
    typed = "featherlight " + shlex.join(_without_place(sys.argv[1:]))
    for one in found:
        say(f"saves {in_gib(one.saved)}:\n  {typed} {one.flags} --out {path.with_name(path.name + '-retry')}")
    if not found:
        say("No other setting takes much less; shorten the rows (`--set max_length=`), or take a smaller model.")
    return found

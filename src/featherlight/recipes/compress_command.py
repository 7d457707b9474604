"""`featherlight compress`, `expand` and `inspect` as functions: what a person is told."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from featherlight.archive import Account, Archive, expand, inspect_archive, write_archive
from featherlight.archive.codings import CODINGS
from featherlight.files import write_atomically
from featherlight.nn.models import module_folders
from featherlight.recipes.compress_trained.models import Scores, model_folder, read_tensors, scores_of
from featherlight.recipes.compress_trained.picture import draw
from featherlight.recipes.compress_trained.rounding import round_all, roundable
from featherlight.recipes.compress_trained.search import BITS, MOST_TRIALS, Trial, within_bytes, within_loss
from featherlight.trainer import MANIFEST, replace_directory, tracker

_ATTEMPTS = 4
_BESIDE, _BESIDE_EACH = 1024, 256
_WEIGHTS = (".safetensors", ".feather", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
_NO_DATA = (
    "without `--data` nothing can be measured, so the file is {mode}. Name data to choose by how well the model does; train with "
    "`featherlight run compress/...` for far smaller files."
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of `featherlight compress`.

    Attributes:
        model: a run, a model directory or a .safetensors file.
        out: the file.
        data: to measure by; None measures nothing.
        max_loss: points of the score that may be lost; None where there are no data or there is a target.
        target: bytes that the file may have; None for no limit.
        coding: of levels.
    """

    model: Path
    out: Path
    data: str | None
    max_loss: float | None
    target: int | None
    coding: str


def compress(asked: Asked, *, dry_run: bool, as_json: bool, console: Console) -> None:
    """Writes the file and says what it cost.

    Raises:
        ValueError: the model cannot be read, the data do not fit it, the target cannot be reached, or `out` exists.
    """
    if asked.out.exists() and not dry_run:
        raise ValueError(f"{asked.out} exists already. Give another file.")
    if asked.coding not in CODINGS:
        raise ValueError(f"`--coding` must be one of {', '.join(CODINGS)}; got {asked.coding!r}.")
    tensors = read_tensors(asked.model)
    plan = _plan(asked, tensors)
    if dry_run:
        typer.echo(json.dumps(plan) if as_json else "\n".join(f"{key}: {value}" for key, value in plan.items()))
        return
    if asked.data is None and not as_json:
        console.print("note: " + _NO_DATA.format(mode=plan["mode"]), highlight=False, markup=False, soft_wrap=True)
    scores = None if asked.data is None else scores_of(asked.model, asked.data, tensors)
    size, trial = _smallest(asked, tensors, scores, console)
    told = plan | {"out": str(asked.out), "file_bytes": size, "times": plan["tensor_bytes"] / size}
    told |= {"settings": None if trial is None else asdict(trial.how)}
    if scores is not None:
        back = Archive(asked.out).state_dict()
        told |= {"unit": scores.unit, "told": scores.told, "before": scores.test(tensors), "after": scores.test(back)}
    _say(told, as_json=as_json)


def expand_file(file: Path, out: Path, *, like: Path | None, dry_run: bool, as_json: bool, console: Console) -> None:
    """Writes `model.safetensors` of a file into a directory, and what else a model directory holds beside.

    Tensors of a module with a folder of its own, such as `2_Dense/linear.weight`, go there if `like` has that folder.

    Raises:
        ValueError: the file is damaged, `out` exists, or `like` does not.
    """
    archive = Archive(file)
    told = {
        "tensors": len(archive.entries),
        "bytes": sum(one.decoded_bytes for one in archive.entries.values()),
        "out": str(out),
    }
    if out.exists():
        raise ValueError(f"{out} exists already. Give another directory.")
    if like is not None and not like.is_dir():
        raise ValueError(
            f"`--like` must be a run or model directory, whose other files are copied; there is none at {like}."
        )

    source = None if like is None else model_folder(like)
    folders = [""] if source is None else list(dict.fromkeys(("", *module_folders(source))))

    def fill(folder: Path) -> None:
        track = _steps(archive.entries, "expanding", console)
        for part in folders:
            (folder / part).mkdir(parents=True)
            if source is not None:
                _copy_others(source / part, folder / part)
        for part, names in _by_folder(archive.entries, folders).items():
            expand(archive, folder / part / "model.safetensors", names=names, track=track)

    if not dry_run:
        replace_directory(out, fill)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(
            f"{'would write' if dry_run else 'wrote'} {out}: {told['tensors']:,} tensors, {told['bytes']:,} bytes"
        )


def _copy_others(source: Path, folder: Path) -> None:
    """The files of a model directory but for weights and manifest; a module without files may have no folder."""
    for one in sorted(source.iterdir()) if source.is_dir() else ():
        is_weights = one.name.endswith(_WEIGHTS) or one.match("pytorch_model*.bin")
        if one.is_file() and not is_weights and one.name != MANIFEST:
            shutil.copy2(one, folder / one.name)


def _by_folder(tensors: Iterable[str], folders: Sequence[str]) -> dict[str, dict[str, str]]:
    """For each folder that has tensors: their names in the archive, and in its file."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        part, _, own = name.partition("/")
        place, own = (part, own) if own and part in folders else ("", name)
        found.setdefault(place, {})[name] = own
    return found


def inspect(file: Path, *, picture: Path | None, as_json: bool) -> None:
    """Says where the bytes of a file are.

    Raises:
        ValueError: the file is damaged, or `picture` is no name of a picture.
    """
    if picture is not None and picture.suffix != ".svg":
        raise ValueError(f"`--picture` must end in .svg, the kind of picture that is drawn; got {picture}.")
    account = inspect_archive(Archive(file))
    if picture is not None:
        write_atomically(picture, lambda out: out.write(draw(account, file.name).encode()))
    if as_json:
        typer.echo(json.dumps(asdict(account) | {"file": str(file)}))
        return
    Console().print(_table(account))
    weights = sum(one.elements for one in account.rows)
    typer.echo(
        f"{account.num_bytes:,} bytes for {weights:,} elements of {account.decoded_bytes:,} bytes: "
        f"{account.decoded_bytes / account.num_bytes:.1f} times smaller"
    )


def _plan(asked: Asked, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What would be done."""
    lossless = _is_lossless(asked, tensors)
    names = [] if lossless else roundable(tensors)
    mode = "lossless" if lossless else "rounded after training"
    trials = MOST_TRIALS if asked.target is None else len(BITS)
    return {
        "model": str(asked.model),
        "tensors": len(tensors),
        "tensor_bytes": sum(one.nbytes for one in tensors.values()),
        "mode": mode,
        "rounded_tensors": len(names),
        "trials": 0 if lossless else trials,
        "coding": asked.coding,
    }


def _is_lossless(asked: Asked, tensors: Mapping[str, Tensor]) -> bool:
    """Whether nothing need be given up: nothing is known of what it costs, or the target has room for all bits."""
    if asked.target is None:
        return asked.data is None
    return asked.target >= _BESIDE + sum(one.nbytes + _BESIDE_EACH for one in tensors.values())


def _smallest(
    asked: Asked, tensors: Mapping[str, Tensor], scores: Scores | None, console: Console
) -> tuple[int, Trial | None]:
    """Writes the file, more coarsely again where what is beside the weights takes more of the target than was foreseen."""
    most = 0.97 * (asked.target or 0) - _BESIDE // 4
    size, trial = 0, None
    for _ in range(_ATTEMPTS):
        chosen, trial = _chosen(asked, tensors, scores, most, console)
        size = _written(asked, chosen, console)
        if asked.target is None or size <= asked.target:
            return size, trial
        asked.out.unlink()
        most -= 1.05 * (size - asked.target)
        if trial is None or most <= 0:
            break
    raise _too_small(asked, size)


def _chosen(
    asked: Asked, tensors: Mapping[str, Tensor], scores: Scores | None, most: float, console: Console
) -> tuple[Mapping[str, Tensor], Trial | None]:
    """The tensors to be written, and the setting that made them; of a target, by an estimate of at most so many bytes."""
    if _is_lossless(asked, tensors):
        return tensors, None
    if not roundable(tensors):
        console.print(
            "note: every matrix has few values already (pruned, shared or rounded), so the file is lossless",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return tensors, None
    search = None if scores is None else scores.search
    if asked.target is not None:
        found = list(tracker(console)(within_bytes(tensors, search, most=most), "searching", len(BITS)))
        best = _best_that_fits(asked, found, most)
    else:
        assert search is not None, "without data and target nothing is rounded"
        assert asked.max_loss is not None, "it has a default where there is no target"
        least = search(tensors) - asked.max_loss
        trials = within_loss(tensors, search, least=least)
        best = _smallest_that_does(asked, list(tracker(console)(trials, "searching", MOST_TRIALS)), least)
    return round_all(tensors, best.how), best


def _smallest_that_does(asked: Asked, trials: Sequence[Trial], least: float) -> Trial:
    good = [one for one in trials if one.score is not None and one.score >= least]
    if not good:
        raise ValueError(
            f"no rounding of {len(trials)} keeps the loss within {asked.max_loss} points. Allow more with `--max-loss`, or "
            "leave `--data` out for a lossless file."
        )
    return min(good, key=lambda one: one.estimated_bytes)


def _best_that_fits(asked: Asked, trials: Sequence[Trial], most: float) -> Trial:
    """The best by its score; without data, that whose bits count a little."""
    fits = [one for one in trials if one.estimated_bytes <= most]
    if not fits:
        raise _too_small(asked, math.ceil(min(one.estimated_bytes for one in trials)))
    if fits[0].score is None:
        return fits[len(fits) // 2]
    return max(fits, key=lambda one: one.score or 0.0)


def _too_small(asked: Asked, size: int) -> ValueError:
    return ValueError(
        f"the smallest file found has about {size:,} bytes, more than fit into the target of {asked.target:,}. Raise "
        "`--target`, or prune while training: `featherlight run compress/...`."
    )


def _written(asked: Asked, tensors: Mapping[str, Tensor], console: Console) -> int:
    pairs = tracker(console)(list(tensors.items()), "coding", len(tensors))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    return write_archive(asked.out, pairs, coding=asked.coding)


def _steps(names: Iterable[str], what: str, console: Console) -> Callable[[str], object]:
    """A listener that moves a bar on with each name."""
    listed = list(names)
    bar = iter(tracker(console)(listed, what, len(listed)))
    return lambda name: next(bar, name)


def _say(told: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"wrote {told['out']}: {told['file_bytes']:,} bytes, {told['times']:.1f} times smaller than the "
        f"tensors' {told['tensor_bytes']:,}"
    )
    if told["settings"] is not None:
        step, bit = told["settings"]["step"], told["settings"]["bit"]
        typer.echo(f"rounded to steps of {step:.3g} standard deviations, a bit worth {bit:.3g} squared steps")
    if "after" in told:
        typer.echo(f"{told['unit']}: {told['before']:.2f} before, {told['after']:.2f} after ({told['told']})")


def _table(account: Account) -> Table:
    """In the manner of table 4 of Han et al. 2016."""
    columns = ("tensor", "shape", "coding", "kept %", "bits", "index", "value", "bytes")
    table = Table(*columns, box=SIMPLE, padding=(0, 1), caption="bits: an element; index and value: one that is kept")
    table.columns[0].overflow = "fold"
    for one in account.rows:
        kept = max(one.kept, 1)
        table.add_row(
            escape(one.name),
            "x".join(str(n) for n in one.shape) or "-",
            one.coding,
            f"{100 * one.kept / max(one.elements, 1):.1f}",
            f"{one.bits_per_element:.3f}",
            f"{8 * one.index_bytes / kept:.2f}" if one.index_bytes else "-",
            f"{8 * one.value_bytes / kept:.2f}" if one.num_bytes else "-",
            f"{one.num_bytes:,}",
        )
    for name, size in account.other_bytes.items():
        if size:
            table.add_row(name, "", "", "", "", "", "", f"{size:,}")
    table.add_row("file", "", "", "", "", "", "", f"{account.num_bytes:,}")
    return table

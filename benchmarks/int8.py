"""Whole numbers of 8 bits beside floats in ONNX Runtime: speed, size, agreement with the reference, and accuracy.

    python -m benchmarks.int8 --short                 some minutes: speed, size, and 1,000 images of agreement
    python -m benchmarks.int8 --minutes 600           hours: 10,000 images, and the recipes int8/... with three seeds,
                                                      those of ResNet-20 with 4 epochs in float and 1 for whole numbers

One thread, one process, the sides in turn; times are those of the process on the CPU, so that other work on the machine counts
little, and wall times stand beside. Every sitting is a row of its own, so that a command given again adds what is
missing. Networks of the speed rows have fresh weights, on which speed does not depend, and statistics and ranges of drawn
images. Beside stands ONNX Runtime's own quantizer (`quantize_static`: pairs of QuantizeLinear and DequantizeLinear, U8S8, a scale
a channel). torchao is left out where it is not installed.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    RESULTS,
    FinishedRuns,
    OutOfTimeError,
    Row,
    finish_run,
    in_turn,
    ratio,
    spread,
    target,
    write_results,
)
from featherlight.export import certify_as_run, compare, session, vnni, write_int8, write_onnx
from featherlight.nn.models import SMALL_STEM, resnet18, resnet20
from featherlight.report import Table, read_sections
from featherlight.transforms.quantize import Calibration, MinMax, quantize_after_training, to_integer_program
from featherlight.transforms.quantize.integer_executor import IntegerExecutor

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet18(10, stem=SMALL_STEM),
    "ResNet-20": resnet20,
}
ASKED = {("ResNet-18", 1): 3.0, ("ResNet-18", 16): 3.5, ("ResNet-20", 1): 1.75, ("ResNet-20", 16): 1.75}
SITTINGS = 5
AT_ONCE = 500
_SHORTER = ("classify.epochs=4", "epochs=1")
RECIPES = {  # recipe, other settings, and the points of accuracy it may lose
    "MNIST, LeNet-5 of Caffe": ("int8/lenet5", (), 0.1),
    "CIFAR-10, ResNet-20, 4 + 1 epochs": ("int8/resnet20", _SHORTER, 0.3),
    "GTSRB, ResNet-20, 4 + 1 epochs": (
        "int8/resnet20",
        (*_SHORTER, "classify.data=gtsrb", "classify.augment.flip=false"),
        0.3,
    ),
}


def drawn(count: int, seed: int = 0) -> Tensor:
    """Images, smooth enough to have ranges like those of photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fine = 0.3 * torch.randn(count, 3, 32, 32, generator=generator)
    return nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear") + fine


def network(name: str) -> nn.Module:
    """With fresh weights, and statistics of images."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        model.train()(drawn(64, seed=1))
    return model.eval()


def files(name: str, folder: Path) -> dict[str, Path]:
    """The network as files: floats, ours in whole numbers, and that of ONNX Runtime's quantizer."""
    paths = {side: folder / f"{name}-{side}.onnx" for side in ("float", "int8", "quantize_static")}
    write_onnx(network(name), drawn(2), paths["float"])
    write_int8(program(name), drawn(1), paths["int8"])
    static(paths["float"], paths["quantize_static"])
    return paths


def program(name: str) -> Any:
    """The network calibrated on images."""
    model = network(name)
    quantize_after_training(model, Calibration(batches=[drawn(64, seed=1)], ranges=MinMax()))
    return to_integer_program(model)


class _Batches:
    """Calibration data, as ONNX Runtime's quantizer reads them."""

    def __init__(self) -> None:
        self._left: Iterator[Tensor] = iter(drawn(64, seed=1).split(16))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else {"x": batch.numpy()}


def static(source: Path, path: Path) -> None:
    """ONNX Runtime's own quantizer, after the preparation it asks for."""
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    prepared = path.with_suffix(".prepared.onnx")
    shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(path),
        _Batches(),  # pyright: ignore[reportArgumentType]
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def speed(name: str, paths: dict[str, Path], batch: int, rounds: int) -> Row:
    """One sitting: milliseconds a call of each side, in turn."""
    x = drawn(batch).numpy()
    sides = {}
    for side, path in paths.items():
        run = session(path)
        sides[side] = lambda run=run: run.run(None, {run.get_inputs()[0].name: x})
    seconds = in_turn(sides, rounds=rounds, warmup=3, clock=time.process_time)
    wall = in_turn(sides, rounds=rounds)
    row: Row = {"milliseconds": {side: spread([1e3 * one for one in times]) for side, times in seconds.items()}}
    row["faster"] = ratio(seconds["float"], seconds["int8"])
    row["faster, wall"] = ratio(wall["float"], wall["int8"])
    row["faster, quantize_static"] = ratio(seconds["float"], seconds["quantize_static"])
    row["load"] = os.getloadavg()[0]
    return row


def size(paths: dict[str, Path]) -> Row:
    """Bytes, and what ONNX Runtime makes of ours."""
    bytes_of = {side: path.stat().st_size for side, path in paths.items()}
    certificate = certify_as_run(paths["int8"])
    return {
        "bytes": bytes_of,
        "share": bytes_of["int8"] / bytes_of["float"],
        "certificate": str(certificate),
        "holds": certificate.holds,
    }


def agreement(name: str, path: Path, part: int) -> Row:
    """Of some images, how many have the same arg-max in ONNX Runtime and in the reference executor."""
    x = drawn(AT_ONCE, seed=100 + part)
    found = compare(IntegerExecutor(program(name)), path, x)
    return {"images": found.examples, "same": round(found.same_choice * found.examples)}


def accuracy(what: str, seed: int, folder: Path) -> Row:
    """A run of a recipe, by the command line; a run that was stopped goes on."""
    recipe, settings, _ = RECIPES[what]
    out = folder / f"{recipe.replace('/', '-')}-{what.split(',')[0].lower()}-{seed}"
    finish_run(recipe, out, (f"seed={seed}", *settings))
    return rounded_accuracy(out)


def rounded_accuracy(run: Path) -> Row:
    """What a run's report says of accuracy in float and in whole numbers, in percent."""
    section = next(one for one in read_sections(run / "sections.json") if one.title == "Whole numbers")
    table = next(block for block in section.blocks if isinstance(block, Table))
    rows = {str(row[0]): float(str(row[1])) for row in table.rows}
    return {"accuracy": rows, "drop": rows["float"] - rows["trained, whole numbers"]}


def measure(done: FinishedRuns, *, short: bool, runs: Path) -> None:
    """All rows that are missing."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: files(name, Path(folder)) for name in NETWORKS}
        for name in NETWORKS:
            done.get({"kind": "size", "network": name}, lambda n=name: size(paths[n]), str)
        for sitting in range(SITTINGS):
            for name, batch in ASKED:
                key = {"kind": "speed", "network": name, "batch": batch, "sitting": sitting}
                rounds = 5 if batch > 1 else 20
                done.get(key, lambda n=name, b=batch, r=rounds: speed(n, paths[n], b, r), _speed_line)
        for part in range(2 if short else 10_000 // AT_ONCE):
            key = {"kind": "agreement", "network": "ResNet-20", "part": part}
            done.get(key, lambda p=part: agreement("ResNet-20", paths["ResNet-20"]["int8"], p), str)
    for seed in range(0 if short else 3):
        for what in RECIPES:
            key = {"kind": "accuracy", "what": what, "seed": seed}
            done.get(key, lambda w=what, s=seed: accuracy(w, s, runs), str)


def _speed_line(row: Row) -> str:
    faster, static_faster = row["faster"], row["faster, quantize_static"]
    return (
        f"{row['network']}, batch {row['batch']}: {faster['median']:.2f}x ({faster['min']:.2f} to {faster['max']:.2f}); wall "
        f"{row['faster, wall']['median']:.2f}x; "
        f"quantize_static {static_faster['median']:.2f}x; load {row['load']:.1f}"
    )


def targets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was asked for, of the rows there are."""
    made = []
    for (name, batch), asked in ASKED.items():
        sittings = [
            row["faster"]["median"]
            for row in rows
            if row["kind"] == "speed" and (row["network"], row["batch"]) == (name, batch)
        ]
        if sittings:
            label = f"{name} int8, times as fast as float, batch {batch}"
            made.append(target(label, statistics.median(sittings), ">=", asked, "x"))
    for row in rows:
        if row["kind"] == "size" and row["network"] == "ResNet-18":
            made.append(target("ResNet-18 int8, size of the float file", row["share"], "<=", 0.27, "x"))
    parts = [row for row in rows if row["kind"] == "agreement"]
    if parts:
        same = 100 * sum(row["same"] for row in parts) / sum(row["images"] for row in parts)
        made.append(target("ResNet-20 int8, same arg-max as the reference", same, ">=", 99.95, "%"))
    for what, (_, _, asked) in RECIPES.items():
        drops = [row["drop"] for row in rows if row["kind"] == "accuracy" and row["what"] == what]
        if drops:
            made.append(target(f"{what}, accuracy lost", statistics.median(drops), "<=", asked, "points"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="no recipes, and fewer images of agreement")
    parser.add_argument("--minutes", type=float, help="begin no row after so many; the command again goes on")
    parser.add_argument("--runs", type=Path, default=Path("runs/int8"), help="where the runs of the recipes are")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"dot products of 8-bit numbers on this CPU: {', '.join(vnni()) or 'none named, sums of pairs may saturate'}")
    if importlib.util.find_spec("torchao") is None:
        print("torchao is not installed: its side is left out")
    name = "int8_short" if given.short else "int8"
    done = FinishedRuns(RESULTS / f"{name}.rows.jsonl", given.minutes)
    try:
        measure(done, short=given.short, runs=given.runs)
    except OutOfTimeError:
        print("the minutes are used up; the same command goes on")
    print(write_results(name, [{"kind": "machine", "vnni": list(vnni())}, *done.rows], targets(done.rows)))


if __name__ == "__main__":
    main()

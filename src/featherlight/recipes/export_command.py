"""`featherlight export` as functions: what is written, what is checked, and what a person is told."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from featherlight.data import ImageSet, ImageSplits, load_images
from featherlight.export import (
    DEFAULT_OPSET,
    FLOAT_OPSETS,
    OPSETS,
    certify_as_run,
    certify_file,
    check_opset,
    compare,
    layer_differences,
    vnni,
    write_int8,
    write_onnx,
)
from featherlight.recipes.catalogue import from_file
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.classify.network import read_network
from featherlight.recipes.classify.splits import load_splits
from featherlight.recipes.compress.config import CompressConfig
from featherlight.recipes.config import RunConfig
from featherlight.recipes.export_calibration import calibrated_program
from featherlight.recipes.int8.config import Int8Config
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_program import IntegerProgram
from featherlight.transforms.quantize.program_file import FILE_NAME, read_program

_IN_ONE_LAYER = 64
_NO_STATIC_FORM = {
    "LanguageModel": "its recurrent cells or attention",
    "EncoderDecoder": "its attention or recurrent cells",
    "Forecaster": "its recurrent cells (LSTM)",
    "SentenceClassifier": "its attention",
    "vit": "its attention",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be exported.

    Args:
        run: a run directory, or the directory of its model.
        out: the file.
        int8: whether it is to compute with whole numbers.
        fp32: whether with floats.
        calibrate: images by name, file or folder, by which a network of floats gets its ranges; None takes those of the run.
        opset: version of ONNX's operators; None takes the usual one.
        side: rows and columns of the images; None takes those of the network or of the run.

    Raises:
        ValueError: not one of `int8` and `fp32`, images to calibrate floats with, or an opset or a file that cannot be written.
    """

    run: Path
    out: Path
    int8: bool
    fp32: bool
    calibrate: str | None = None
    opset: int | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        if self.int8 == self.fp32:
            raise ValueError(
                "an export is of one kind: give `--int8` for whole numbers of 8 bits, or `--fp32` for floats."
            )
        if self.calibrate is not None and not self.int8:
            raise ValueError("`--calibrate` chooses the ranges of whole numbers, so it needs `--int8`.")
        check_opset(self.version, OPSETS if self.int8 else FLOAT_OPSETS)
        if not self.out.parent.is_dir():
            raise ValueError(
                f"there is no directory {self.out.parent} for {self.out.name}. Make it, or correct `--out`."
            )
        if self.out.exists():
            raise ValueError(f"{self.out} exists already. Give another file, or remove it.")
        if self.side is not None and self.side < 1:
            raise ValueError(f"`--side` must be at least 1 pixel; got {self.side}.")

    @property
    def version(self) -> int:
        """Of ONNX's operators."""
        return DEFAULT_OPSET if self.opset is None else self.opset

    @property
    def model(self) -> Path:
        """The directory of the model.

        Raises:
            ValueError: the run is not finished.
        """
        if (self.run / "config.toml").is_file() and not (self.run / "model").is_dir():
            raise ValueError(
                f"the run in {self.run} is not finished, so that there is no model in it yet. Go on with "
                f"`featherlight run --resume {self.run}`."
            )
        return self.run / "model" if (self.run / "model").is_dir() else self.run


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Examples for shapes and checks, in [0, 1], with their labels where there are any."""

    floats: Tensor
    what: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()


def export_run(request: Request, *, examples: int | None, as_json: bool) -> None:
    """Writes the file, checks it if asked to, and says what it is.

    Args:
        request: what is to be exported.
        examples: how many images are compared; None compares none.
        as_json: whether it is said in JSON.

    Raises:
        ValueError: there is nothing to export, it cannot be exported so, a package is missing, or the certificate fails.
    """
    trained = _trained(request)
    images = _images(request, examples or 1)
    if isinstance(trained, IntegerProgram):
        write_int8(trained, images.floats, request.out, opset=request.version)
    else:
        write_onnx(trained, images.floats, request.out, opset=request.version)
    facts: dict[str, Any] = {"file": str(request.out), "bytes": request.out.stat().st_size, "opset": request.version}
    if isinstance(trained, IntegerProgram):
        facts |= _certified(request.out)
    if examples is not None:
        facts["check"] = _checked(trained, request.out, images)
        if isinstance(trained, IntegerProgram):
            facts["check"] |= _beside_floats(request, trained, images)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        for line in _lines(facts):
            typer.echo(line)


def _trained(request: Request) -> nn.Module | IntegerProgram:
    """What the file is to compute."""
    if not request.int8:
        return read_network(request.model).model
    if request.calibrate is not None:
        return calibrated_program(request.model, _to_calibrate(request, request.calibrate), data=request.calibrate)
    file = request.model / FILE_NAME
    if not file.is_file():
        raise ValueError(_without_program(request))
    return read_program(file)


def _without_program(request: Request) -> str:
    """Why there are no whole numbers to export."""
    about = request.model / "config.json"
    if not about.is_file():
        return f"there is no model at {request.run}: a finished run leaves one. Correct the path."
    if isinstance(config := _config(request.run), Int8Config):
        kept = f"keeps {', '.join(config.keep_float)} in float" if config.keep_float else ""
        bits = f"simulates weights of {config.weight_bits} bits" if config.weight_bits != 8 else ""
        return (
            f"the run in {request.run} left no integer program: it {kept or bits or 'ended before anything was rounded'}. Run it "
            "again with 8 bits throughout, or export with `--fp32`."
        )
    values = json.loads(about.read_text(encoding="utf-8"))
    kind = str(values.get("architecture") or (values.get("architectures") or ["model"])[0])
    is_classifier = kind in ("ImageClassifier", "SmallConvNet")
    kind = values.get("network", kind)
    why = _NO_STATIC_FORM.get(kind)
    if why is not None or "architectures" in values:
        return (
            f"the model in {request.run} ({kind}) has no static form in whole numbers: {why or 'its attention'} multiplies "
            "activations by activations, or feeds them back, with ranges that are only known as it runs. Export it with `--fp32` "
            "where that is supported."
        )
    if not is_classifier:
        return (
            f"the model in {request.run} ({kind}) is no image classifier, and int8/... trains those for whole numbers. To write "
            "another network, prepare it and hand its program to `featherlight.export.write_int8`."
        )
    return (
        f"the run in {request.run} trained floats ({kind}), and no ranges of whole numbers. Name images to choose them by with "
        f'`--calibrate`, or run a recipe of int8/... with `--set classify.initial="{request.run}"`, which trains it further with '
        "rounded numbers; or export with `--fp32`."
    )


def _images(request: Request, count: int) -> _Images:
    """Images of the run where there are any, else drawn ones."""
    found = _images_of_run(request.run) or _beside_calibration(request)
    if found is not None:
        what, images = found
        rows = torch.arange(min(count, len(images)))
        return _Images(floats=images.floats(rows), labels=images.labels[rows], classes=images.classes, what=what)
    about = json.loads((request.model / "config.json").read_text(encoding="utf-8"))
    side = request.side or about.get("side")
    if side is None:
        raise ValueError(
            f"neither the network in {request.model} nor a run says how large images are. Give `--side`, in pixels, or the run "
            "directory with its config.toml."
        )
    generator = torch.Generator().manual_seed(0)
    shape = (count, int(about["in_channels"]), int(side), int(side))
    return _Images(floats=torch.rand(shape, generator=generator), what="images drawn at random, as no data are at hand")


def _images_of_run(run: Path) -> tuple[str, ImageSet] | None:
    """Test images of a run, or those it was validated on; None for a model without its run, or if the data are gone."""
    classify = _classify(run)
    if classify is None:
        return None
    try:
        return _held_out(load_splits(classify), classify.data)
    except ValueError:
        return None


def _to_calibrate(request: Request, data: str) -> ImageSet:
    """Training images, those of the run if it was trained on the same data."""
    classify = _classify(request.run)
    return (load_splits(classify) if classify is not None and classify.data == data else load_images(data)).train


def _beside_calibration(request: Request) -> tuple[str, ImageSet] | None:
    """Those named, as far as they are not needed to choose ranges by."""
    return None if request.calibrate is None else _held_out(load_images(request.calibrate), request.calibrate)


def _held_out(splits: ImageSplits, data: str) -> tuple[str, ImageSet]:
    for part, images in (("test", splits.test), ("validation", splits.valid)):
        if images is not None:
            return f"{part} images of {data}", images
    return f"images of {data}", splits.train


def _classify(run: Path) -> ClassifyConfig | None:
    """What a run says of data and network; None for a model without its run, or a run of another kind."""
    config = _config(run)
    config = config.classify if isinstance(config, Int8Config | CompressConfig) else config
    return config if isinstance(config, ClassifyConfig) else None


def _config(run: Path) -> RunConfig | None:
    """That of a run; None for a model without its run."""
    file = run / "config.toml"
    return from_file(file)[1] if file.is_file() else None


def _certified(file: Path) -> dict[str, Any]:
    """The certificates of the file and of what ONNX Runtime makes of it; a file that fails is removed."""
    ours, run = certify_file(file), certify_as_run(file)
    for one, whose in ((ours, "the file"), (run, "the file as ONNX Runtime runs it here")):
        if not one.holds:
            file.unlink()
            raise ValueError(f"the certificate fails for {whose}: {one}. Export with `--fp32`, or report the network.")
    return {"certificate": str(ours), "certificate_as_run": str(run), "vnni": list(vnni())}


def _checked(trained: nn.Module | IntegerProgram, file: Path, images: _Images) -> dict[str, Any]:
    """The file beside what it was made from."""
    if not isinstance(trained, IntegerProgram):
        return asdict(compare(trained, file, images.floats)) | {"images": images.what}
    differences = layer_differences(trained, images.floats[:_IN_ONE_LAYER])
    facts = asdict(compare(IntegerExecutor(trained), file, images.floats)) | {"images": images.what}
    return facts | {"largest_layer_difference": max(differences.values())}


@torch.no_grad()
def _beside_floats(request: Request, program: IntegerProgram, images: _Images) -> dict[str, Any]:
    """What rounding costs: answers that are those of the floats, and accuracies where there are labels."""
    executor, network = IntegerExecutor(program), read_network(request.model)
    both = [(executor(part).argmax(-1), network.model(part).argmax(-1)) for part in images.floats.split(_IN_ONE_LAYER)]
    whole, exact = (torch.cat(one) for one in zip(*both, strict=True))
    facts: dict[str, Any] = {"same_as_float": float((whole == exact).double().mean())}
    if images.labels is not None and images.classes == network.classes:
        facts |= {"accuracy": _share(whole, images.labels), "accuracy_of_float": _share(exact, images.labels)}
    return facts


def _share(answers: Tensor, labels: Tensor) -> float:
    return float((answers == labels).double().mean())


def _lines(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"wrote {facts['file']}: {facts['bytes']:,} bytes, opset {facts['opset']}"]
    if "certificate" in facts:
        lines += [f"certificate: {facts['certificate']}", f"as ONNX Runtime runs it: {facts['certificate_as_run']}"]
        named = ", ".join(facts["vnni"])
        lines.append(
            f"dot products of 8-bit numbers on this CPU: {named}"
            if named
            else "this CPU names no dot products of 8-bit numbers: sums of pairs may saturate in 16 bits; see `--check`"
        )
    if (check := facts.get("check")) is not None:
        lines.append(
            f"check: {check['examples']:,} {check['images']}; same arg-max in {check['same_choice']:.2%}; largest difference "
            f"{check['largest_difference']:.3g}, of outputs up to {check['largest_output']:.3g}"
        )
        if "largest_layer_difference" in check:
            lines.append(
                f"largest difference of one operation, given equal inputs: {check['largest_layer_difference']:.3g} units"
            )
        if "same_as_float" in check:
            told = f"whole numbers answer as the network's floats in {check['same_as_float']:.2%}"
            if "accuracy" in check:
                told += f"; accuracy {check['accuracy']:.2%}, of floats {check['accuracy_of_float']:.2%}"
            lines.append(told)
    return lines

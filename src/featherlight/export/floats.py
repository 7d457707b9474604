"""Float networks as ONNX models, by torch's own exporter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from featherlight.export.packages import DEFAULT_OPSET, FLOAT_OPSETS, check_opset, need_onnx, need_onnxscript
from featherlight.files import write_atomically


def write_onnx(model: nn.Module, example: Tensor, path: Path, *, opset: int = DEFAULT_OPSET) -> None:
    """Writes a network as an ONNX model of one file, in evaluation mode, with any number of examples.

    Args:
        model: takes one tensor and returns one; it is moved to the CPU and set to evaluation mode.
        example: input of the shape that will be used, (B, ...); only B stays free.
        path: of the file.
        opset: version of ONNX's operators.

    Raises:
        ValueError: an opset that cannot be written, a package that is not installed, a network that cannot be traced, or weights
            beyond the 2 GiB that one file takes.
    """
    check_opset(opset, FLOAT_OPSETS)
    onnx = need_onnx()
    need_onnxscript()
    model = model.cpu().eval()
    pair = torch.cat([example[:1], example[:1]]).cpu()
    with _quiet():
        try:
            program = torch.onnx.export(
                model,
                (pair,),
                dynamo=True,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"{type(model).__name__} cannot be exported by torch ({error}). A network must not choose its way by its input."
            ) from error
    assert program is not None, "a program is returned where no file is named"
    made = program.model_proto
    written = {one.domain: one.version for one in made.opset_import}[""]
    if written != opset:
        raise ValueError(f"torch wrote opset {written} and not {opset} for {type(model).__name__}. Ask for {written}.")
    if made.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ValueError(f"{type(model).__name__} has more weights than one ONNX file takes, 2 GiB.")
    write_atomically(path, lambda file: file.write(made.SerializeToString()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps notes of the exporter, which are on its own parts, from the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

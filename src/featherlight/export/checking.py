"""Exported models loaded again and compared with what they were made from.

Legend of shapes: B examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.export.int8 import single_op_model
from featherlight.export.sessions import session
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_ops import inputs_of
from featherlight.transforms.quantize.integer_program import IntegerProgram

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ONNX Runtime gives beside what it should give.

    Attributes:
        examples: how many were compared.
        largest_difference: of any two outputs.
        largest_output: in magnitude, to which the difference is to be seen.
        same_choice: share of the examples whose largest output (over the last axis) is at the same place; 1 is all.
    """

    examples: int
    largest_difference: float
    largest_output: float
    same_choice: float


def compare(
    model: Callable[[Tensor], Tensor], path: Path, x: Float[Tensor, "B ..."], *, threads: int = 1
) -> Comparison:
    """Runs a model and the file it was exported to on the same examples, a bounded number at a time.

    Args:
        model: an `IntegerExecutor`, or a network in evaluation mode.
        path: of the file.
        x: the examples, on the CPU.
        threads: of ONNX Runtime.

    Raises:
        ValueError: the file cannot be loaded, or onnxruntime is not installed.
    """
    run = session(path, threads=threads)
    (name,) = (one.name for one in run.get_inputs())
    largest = magnitude = 0.0
    same = total = 0
    with torch.no_grad():
        for part in x.split(_AT_ONCE):
            ours, theirs = model(part), torch.from_numpy(run.run(None, {name: part.numpy()})[0])
            largest = max(largest, float((ours - theirs).abs().max()))
            magnitude = max(magnitude, float(ours.abs().max()))
            agree = ours.argmax(-1) == theirs.argmax(-1)
            same, total = same + int(agree.sum()), total + agree.numel()
    return Comparison(
        examples=len(x), largest_difference=largest, largest_output=magnitude, same_choice=same / max(total, 1)
    )


def layer_differences(program: IntegerProgram, x: Float[Tensor, "B ..."]) -> dict[str, float]:
    """The largest difference of ONNX Runtime's results from the reference's, of each operation by itself, given equal inputs.

    Returns:
        By the name of what an operation makes, in units of its grid or its sums; of the last, in those of the output.

    Raises:
        ValueError: onnx or onnxruntime is not installed.
    """
    executor = IntegerExecutor(program)
    values = executor.values(x)
    found = {}
    for op in program.ops:
        inputs = {name: values[name] for name in inputs_of(op)}
        alone = session(single_op_model(program, op, list(inputs.values())).SerializeToString())
        made = torch.from_numpy(alone.run(None, {name: one.numpy() for name, one in inputs.items()})[0])
        found[op.output] = float((made.to(torch.float64) - values[op.output].to(torch.float64)).abs().max())
    return found

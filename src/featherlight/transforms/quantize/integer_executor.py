"""The reference executor of integer programs: every number between the two ends is an int32 or int64.

Legend of shapes: B examples.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.transforms.quantize.integer_ops import Op, inputs_of
from featherlight.transforms.quantize.integer_program import IntegerProgram
from featherlight.transforms.quantize.integer_steps import step_of


class IntegerExecutor:
    """Runs an integer program as the definition of what it computes.

    Numbers are held as uint8. A layer sums in int32, which no input can overflow (checked when the program was made, by
    `largest_sums`); the sum times its fixed-point factor is formed in 64 bits and rounded once, halves to the even neighbour,
    as ONNX Runtime rounds; an addition and a mean are rounded once too. Where a runtime forms the factor's product in float32 it
    differs by at most one, next to a half.

    The paper rounds twice, after the product and after the shift, each time halves away from zero; and it adds two values by
    bringing each onto the grid of the sum.

    Args:
        program: what is run.

    Cost: on the CPU, about 8e9 products a second and core in convolutions. Memory of the values still needed.

    Source: Jacob et al. 2018, sections 2.2 to 2.4 and appendix A.
    """

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self._steps = {op.output: step_of(op, program) for op in program.ops}

    def __call__(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The floats that come out for floats that go in.

        Raises:
            ValueError: the input holds NaN, or its shape does not suit the program.
        """
        values = {self.program.input: x}
        left = Counter(name for op in self.program.ops for name in inputs_of(op))
        for op in self._run(values):
            left.subtract(inputs_of(op))
            for name in {name for name in inputs_of(op) if not left[name]}:
                del values[name]
        return values[self.program.output]

    def values(self, x: Float[Tensor, "B ..."]) -> dict[str, Tensor]:
        """All values by name: floats at the ends, uint8 between them, int32 sums where a layer has no grid."""
        values = {self.program.input: x}
        for _ in self._run(values):
            pass
        return values

    def step(self, op: Op, *inputs: Tensor) -> Tensor:
        """What one operation makes of some inputs, which another runtime may have made."""
        return self._steps[op.output](*inputs)

    @torch.no_grad()
    def _run(self, values: dict[str, Tensor]) -> Iterator[Op]:
        """Makes the values, one operation after the other."""
        for op in self.program.ops:
            values[op.output] = self._steps[op.output](*(values[name] for name in inputs_of(op)))
            yield op

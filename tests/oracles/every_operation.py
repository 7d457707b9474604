"""A small program with every operation on whole numbers there is."""

import torch
from torch import Tensor, nn

from featherlight.transforms.quantize.integer_ops import Permute
from featherlight.transforms.quantize.integer_program import IntegerProgram
from tests.oracles.calibrated_programs import Calibration


def every_operation(*, sums: bool = True) -> tuple[IntegerProgram, Tensor]:
    """The program, and two examples of (4, 7, 6) for it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 7, 6, generator=generator)
    made = Calibration(x, mean=(0.1, -0.2, 0.3, 0.0), std=(1.5, 0.5, 1.0, 2.0))
    wide = made.layer(made.start, nn.Conv2d(4, 6, 3, padding=1), relu=True)
    deep = made.layer(wide, nn.Conv2d(6, 6, (3, 2), padding=(2, 1), dilation=(2, 2), groups=6))
    grouped = made.layer(wide, nn.Conv2d(6, 4, 1, stride=(2, 1), groups=2, bias=False))
    shortcut = made.tanh(made.layer(wide, nn.Conv2d(6, 6, (1, 1))))
    both = made.add(deep, shortcut, relu=True)
    pooled = made.max_pool(both, 3, 2, 1, ceil_mode=True)
    padded = made.padded_shortcut(grouped, 1, 2)
    mean = made.average(padded, 2, 1, 1)
    some = made.padded_shortcut(mean, 2, 1)
    last = made.concat(made.flat(made.max_pool(pooled, 2, 2)), made.flat(some), made.mean(padded))
    turned = made.keep_moved(Permute(input=last.name, output=made.name("turned"), axes=(0, 1)), last)
    hidden = made.layer(turned, nn.Linear(turned.floats.shape[1], 5), relu=True)
    return made.program(made.layer(hidden, nn.Linear(5, 3)), sums=sums), x

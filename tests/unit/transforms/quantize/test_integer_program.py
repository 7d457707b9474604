"""Integer programs: what they refuse, and that the executor computes their definition to the bit."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featherlight.transforms.quantize.fixed_point import Multipliers, divided, on_one_shift, shifted
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_ops import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Dequantize,
    Grid,
    Linear,
    Lookup,
    MaxPool,
    Op,
    Permute,
    Quantize,
    Reshape,
    Subsample,
    ZeroPad,
)
from featherlight.transforms.quantize.integer_program import IntegerProgram, largest_sums, table_between
from featherlight.transforms.quantize.program_file import read_program, write_program
from tests.oracles import integer_network
from tests.oracles.every_operation import every_operation

BYTE = Grid(scale=0.05, zero_point=100)
FACTORS = torch.tensor([0.3, 1.0, 1e-6, 0.7071, 500.25, 2.0**-31, 2.0**-45], dtype=torch.float32)


def linear(**changed: Any) -> Linear:
    fields = {"weight": torch.ones(2, 3, dtype=torch.int8), "weight_scales": torch.ones(2), "bias": torch.zeros(2)}
    fields["bias"] = fields["bias"].to(torch.int32)
    return Linear(input="q", output="l", **(fields | changed))


def program(*ops: Op, grids: dict[str, Grid]) -> IntegerProgram:
    last = ops[-1].output if ops else "q"
    return IntegerProgram(
        ops=(Quantize(input="x", output="q"), *ops, Dequantize(input=last, output="y")), grids={"q": BYTE, **grids}
    )


def test_factors_are_those_of_float32_and_rounding_goes_to_even() -> None:
    made = Multipliers.nearest(FACTORS)
    assert torch.equal(made.factors()[:-1], FACTORS.double()[:-1])
    assert float(made.factors()[-1]) == pytest.approx(2.0**-45, rel=2.0**-17)
    sums = torch.tensor([-(2**31) + 1, -1_500_001, -3, -1, 0, 1, 3, 77_777, 2**31 - 1])
    for number, factor in enumerate(made.factors().tolist()):
        one = Multipliers(mantissa_C=made.mantissa_C[[number]], shift_C=made.shift_C[[number]])
        assert one.times(sums, axis=0).tolist() == [round(int(s) * Fraction(factor)) for s in sums]
    halves = torch.tensor([-5, -3, -1, 1, 3, 5])
    assert shifted(halves, 1).tolist() == divided(halves, 2).tolist() == [-2, -2, 0, 0, 2, 2]
    first, second = (Multipliers.nearest(torch.tensor([one])) for one in (0.75, 3e-5))
    m1, m2, shift = on_one_shift(first, second)
    assert Fraction(m1, 2**shift) == Fraction(3, 4)
    assert Fraction(m2, 2**shift) == Fraction(float(np.float32(3e-5)))


@pytest.mark.parametrize("sums", [True, False])
def test_every_value_is_that_of_the_slow_definition(sums: bool) -> None:
    made, x = every_operation(sums=sums)
    kinds = {Quantize, Conv2d, Linear, Add, Concat, MaxPool, AvgPool, Reshape, Permute, Subsample, ZeroPad, Lookup}
    assert {type(op) for op in made.ops} == {*kinds, Dequantize}
    values = IntegerExecutor(made).values(x)
    for name, slow in integer_network.run(made, x.numpy()).items():
        assert values[name].dtype == (torch.uint8 if name in made.grids else torch.int32)
        assert np.array_equal(values[name].numpy().astype(object), slow), name
    assert torch.equal(IntegerExecutor(made)(x), values["y"])


def test_a_program_is_the_same_after_a_file(tmp_path: Path) -> None:
    made, x = every_operation()
    write_program(tmp_path / "p", made)
    again = read_program(tmp_path / "p")
    assert again.grids == made.grids
    assert torch.equal(IntegerExecutor(again)(x), IntegerExecutor(made)(x))
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read as an integer program"):
        read_program(tmp_path / "p")


def test_a_table_between_grids_is_a_rectifier_and_a_new_scale() -> None:
    table = table_between(Grid(scale=0.1, zero_point=50), Grid(scale=0.2, zero_point=10, low=10, high=40))
    reals = (torch.arange(256) - 50) * 0.5
    assert torch.equal(table, (reals.round() + 10).clamp(10, 40).to(torch.uint8))


def test_sums_are_bounded_by_weights_and_the_grid() -> None:
    op = linear(weight=torch.tensor([[1, -2, 3], [127, 127, -127]], dtype=torch.int8), bias=torch.tensor([5, -7]).int())
    assert largest_sums(op, BYTE).tolist() == [6 * 155 + 5, 3 * 127 * 155 + 7]


REFUSED: dict[str, tuple[Any, str]] = {
    "scale": (lambda: Grid(scale=0.0, zero_point=0), "`scale` must be positive and finite"),
    "nan": (lambda: Grid(scale=float("nan"), zero_point=0), "`scale` must be positive and finite"),
    "zero point": (lambda: Grid(scale=1.0, zero_point=256), "`zero_point` lie in 0 to 255"),
    "std": (lambda: Quantize(input="x", output="q", std=(0.0,)), "`std` above 0"),
    "dtype": (lambda: linear(weight=torch.ones(2, 3)), "needs weights of int8"),
    "shape": (lambda: linear(bias=torch.zeros(3, dtype=torch.int32)), "with a scale and a bias for each channel"),
    "constant channel": (lambda: linear(weight_scales=torch.tensor([1.0, 0.0])), "scale of 0 in channel 1"),
    "pool": (
        lambda: MaxPool(input="q", output="p", kernel=(2, 2), stride=(0, 1)),
        "`stride` of `p` must be at least 1",
    ),
    "padding": (lambda: AvgPool(input="q", output="p", kernel=(2, 2), padding=(2, 0)), "from 0 to half the kernel"),
    "axes": (lambda: Permute(input="q", output="p", axes=(1, 0)), "`axes` must be 0, for the batch"),
    "table": (lambda: Lookup(input="q", output="t", table=torch.zeros(255, dtype=torch.uint8)), "256 numbers of uint8"),
    "no end": (lambda: IntegerProgram(ops=(Quantize(input="x", output="q"),), grids={"q": BYTE}), "ends with its only"),
    "not made": (
        lambda: program(Add(first="q", second="z", output="a"), grids={"a": BYTE}),
        r"`a` reads \['z'\], which no operation before it makes",
    ),
    "twice": (lambda: program(Reshape(input="q", output="q"), grids={}), "`q` is made twice"),
    "unused": (lambda: program(grids={"left": BYTE}), r"\['left'\] are never used"),
    "no grid": (lambda: program(AvgPool(input="q", output="m"), grids={}), "`m` has no grid"),
    "other grid": (
        lambda: program(Reshape(input="q", output="r"), grids={"r": Grid(scale=1.0, zero_point=0)}),
        "`r` only moves numbers",
    ),
    "sums read": (lambda: program(linear(), Reshape(input="l", output="r"), grids={}), "32-bit sums of a layer"),
    "overflow": (
        lambda: program(linear(bias=torch.tensor([0, 2**31 - 1]).int()), grids={}),
        "could reach 2,147,484,112 in channel 1",
    ),
    "factor": (lambda: program(linear(), grids={"l": Grid(scale=1e-30, zero_point=0)}), "below 2\\*\\*30"),
    "table beyond": (
        lambda: program(
            Lookup(input="q", output="t", table=torch.arange(256).to(torch.uint8)),
            grids={"t": Grid(scale=1.0, zero_point=0, high=6)},
        ),
        "numbers from 0 to 255, beyond its grid, 0 to 6",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_mean_that_leaves_64_bits_and_nan_are_refused() -> None:
    made = program(AvgPool(input="q", output="m"), grids={"m": Grid(scale=5e6, zero_point=0)})
    with pytest.raises(ValueError, match="NaN, which no whole number stands for"):
        IntegerExecutor(made)(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="leaves 64 bits"):
        IntegerExecutor(made)(torch.zeros(1, 1, 128, 128))

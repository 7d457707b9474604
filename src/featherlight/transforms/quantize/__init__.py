"""Networks on whole numbers of 8 bits: trained for them (`FakeQuantization`), calibrated for them, and lowered to them."""

from featherlight.transforms.quantize.calibration import Calibration, calibrate
from featherlight.transforms.quantize.dynamic import DynamicQuantization
from featherlight.transforms.quantize.exact import simulated_integers
from featherlight.transforms.quantize.lowering import to_integer_program
from featherlight.transforms.quantize.quantizers import ActivationGrid
from featherlight.transforms.quantize.ranges import CalibrationRange, Histogram, LeastSquares, MinMax, Percentile
from featherlight.transforms.quantize.transform import (
    FakeQuantization,
    LearnedScale,
    MovingAverage,
    RangeRule,
    Timetable,
    WeightGrid,
    quantize_after_training,
)

__all__ = [
    "ActivationGrid",
    "Calibration",
    "CalibrationRange",
    "DynamicQuantization",
    "FakeQuantization",
    "Histogram",
    "LearnedScale",
    "LeastSquares",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "RangeRule",
    "Timetable",
    "WeightGrid",
    "calibrate",
    "quantize_after_training",
    "simulated_integers",
    "to_integer_program",
]

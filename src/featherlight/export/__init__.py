"""Networks as files for other runtimes: ONNX of floats, and ONNX that computes with whole numbers alone."""

from featherlight.export.certificate import Certificate, certify, certify_as_run, certify_file
from featherlight.export.checking import Comparison, compare, layer_differences
from featherlight.export.floats import write_onnx
from featherlight.export.int8 import int8_model, single_op_model, write_int8
from featherlight.export.packages import DEFAULT_OPSET, FLOAT_OPSETS, OPSETS, check_opset
from featherlight.export.sessions import session, vnni

__all__ = [
    "DEFAULT_OPSET",
    "FLOAT_OPSETS",
    "OPSETS",
    "Certificate",
    "Comparison",
    "certify",
    "certify_as_run",
    "certify_file",
    "check_opset",
    "compare",
    "int8_model",
    "layer_differences",
    "session",
    "single_op_model",
    "vnni",
    "write_int8",
    "write_onnx",
]

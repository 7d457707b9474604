"""The packages that an export needs, and the opsets it can write."""

from types import ModuleType

OPSETS = range(13, 24)
"""Versions of ONNX's operators that whole-number graphs can be written for: from 13 on a bias can be dequantized by channel."""

FLOAT_OPSETS = range(18, 24)
"""Versions that float graphs can be written for: 18 is the first that torch writes."""

DEFAULT_OPSET = 18
"""The version that is written if none is asked for: it serves both kinds."""


def need_onnx() -> ModuleType:
    """The package onnx; raises ValueError, with what to install, where it is absent."""
    try:
        import onnx
    except ImportError:
        raise ValueError(_absent("onnx", "an export")) from None
    return onnx


def need_onnxscript() -> None:
    """Raises ValueError, with what to install, where the package onnxscript is absent."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(_absent("onnxscript", "an export of floats")) from None


def need_onnxruntime() -> ModuleType:
    """The package onnxruntime; raises ValueError, with what to install, where it is absent."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(_absent("onnxruntime", "a check of what was exported")) from None
    return onnxruntime


def check_opset(opset: int, supported: range) -> None:
    """Raises ValueError for a version that cannot be written."""
    if opset not in supported:
        raise ValueError(
            f"`opset` must be from {supported[0]} to {supported[-1]}: older ones lack operators that are needed, and newer ones "
            f"were not tried; got {opset}. Leave it out for {DEFAULT_OPSET}."
        )


def _absent(package: str, what: str) -> str:
    return f"{what} needs the package {package}, which is not installed. Run: pip install 'featherlight[onnx]'"

"""ONNX Runtime on the CPU: models in memory or on disk, what it made of them, and what the CPU has for whole numbers."""

import platform
from pathlib import Path
from typing import Any

from featherlight.export.packages import need_onnxruntime

_VNNI = ("avx512_vnni", "avx_vnni", "avxvnni", "asimddp", "i8mm")


def session(model: Path | bytes, *, threads: int = 1, optimized: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with all of its optimizations.

    Args:
        model: a file or its content.
        threads: it computes with.
        optimized: where it writes the model as it is run.

    Raises:
        ValueError: the model cannot be loaded, or onnxruntime is not installed.
    """
    runtime = need_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else model
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises classes of its own, which share no base but this
        what = model if isinstance(model, Path) else "the model"
        raise ValueError(f"ONNX Runtime cannot load {what}: {error}. Write it with another `opset`.") from error


def vnni() -> tuple[str, ...]:
    """Which instructions for dot products of 8-bit numbers this CPU names; empty is none, or that it does not say.

    With them, sums of products of unsigned and signed numbers are exact.
    """
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else platform.processor()
    flags = set(text.split())
    return tuple(one for one in _VNNI if one in flags)

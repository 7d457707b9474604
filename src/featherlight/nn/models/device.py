"""Which device a model runs on."""

import torch


def default_device(name: str | None = None) -> torch.device:
    """The device of a name, or the best there is.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" and the like; None or "auto" takes a CUDA device if there is one, else MPS,
            else the CPU.

    Raises:
        ValueError: no device has that name, or this machine lacks it.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device `{name}`. Name cpu, cuda, cuda:0, mps or auto.") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"the device `{name}` is not supported. Name cpu, cuda, cuda:0, mps or auto.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[device.type]
    if (device.index or 0) >= count:
        raise ValueError(
            f"this machine has no device `{name}`: torch {torch.__version__} sees {count} of type {device.type}. Name "
            f"{'one of them' if count else 'another one'}, or auto, which takes the best there is."
        )
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()

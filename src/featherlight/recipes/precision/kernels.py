"""Linear layers whose three products are computed in float8 by the kernels of torchao, while their weights stay in float32."""

from importlib.util import find_spec

import torch
from torch import nn

_UNIT = 16
_CAPABILITY = (8, 9)


class Float8Kernels:
    """A ModelTransform that hands the linear layers of a model to torchao (E4M3, and E5M2 for gradients, a scale a tensor).

    Layers whose sizes 16 does not divide stay as they are, as the kernels cannot take them; convolutions as well.

    Raises:
        ValueError: torchao is not installed.
    """

    def __init__(self) -> None:
        if find_spec("torchao") is None:
            raise ValueError(
                "float8 kernels come with the package torchao, which is not installed. Run: pip install "
                "'featherlight[float8]'; or take the format fp8, which emulates them on any machine."
            )

    def prepare(self, model: nn.Module) -> None:
        """Puts torchao's layers in the place of torch's, with the same parameters under the same names.

        Raises:
            ValueError: the model is on a GPU without float8, or has no layer that the kernels can take.
        """
        from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]

        _check_device(model)
        if not any(_fits(module) for module in model.modules()) or isinstance(model, nn.Linear):
            raise ValueError(
                f"the model has no linear layer inside of it whose sizes {_UNIT} divides, so float8 kernels can take none. Take "
                "the format fp8, which emulates them for any layer."
            )
        convert_to_float8_training(model, module_filter_fn=lambda module, name: _fits(module))

    def update(self, model: nn.Module, progress: float) -> None:
        """Nothing moves along."""

    def convert(self, model: nn.Module) -> None:
        """Puts torch's layers back, with the same parameters."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and type(child).__name__ == "Float8Linear":
                    setattr(module, name, _plain(child))


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % _UNIT == 0 and module.out_features % _UNIT == 0


def _plain(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)


def _check_device(model: nn.Module) -> None:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has no float8 kernels (they need compute capability 8.9). Take the "
            "format fp8, which emulates them, or bf16."
        )

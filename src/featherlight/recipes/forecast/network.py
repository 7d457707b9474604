"""The network of a forecaster, in the units of its record, and as a directory.

Legend of shapes: B sequences, T samples, F inputs, K outputs.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models import (
    BatchNorm,
    Cell,
    GroupNorm,
    LayerNorm,
    LstmCell,
    NoNorm,
    Norm,
    PlainCell,
    RecurrentForecaster,
    RecurrentShape,
)
from featherlight.objective import seeded_random
from featherlight.recipes.forecast.config import ForecastConfig
from featherlight.recipes.forecast.records import Record
from featherlight.recipes.model_files import ModelKind, read_model, write_model

NORMS: dict[str | None, Norm] = {None: NoNorm(), "batch": BatchNorm(), "layer": LayerNorm(), "group": GroupNorm()}
"""Normalizations by the names that configs use."""

CELLS: dict[str, Cell] = {"lstm": LstmCell(), "rnn": PlainCell()}
"""Recurrent layers by the names that configs use."""

_KIND = ModelKind(architectures=("Forecaster",), name="a forecaster", recipe="forecast/tanks")


class Forecaster(nn.Module):
    """A recurrent network between a record's own units.

    Args:
        settings: "kind", "width", "layers", "norm" and "dropout" as in the config, "inputs" and "outputs" how many there are;
            JSON.

    Attributes:
        settings: as given.
        network: sees and tells standardized values.
        input_mean: (F,), of the training record.
        input_scale: (F,), its standard deviation.
        output_mean: (K,).
        output_scale: (K,).
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        shape = RecurrentShape(
            width=settings["width"],
            num_layers=settings["layers"],
            cell=CELLS[settings["kind"]],
            norm=NORMS[settings["norm"]],
            dropout=settings["dropout"],
        )
        self.network = RecurrentForecaster(settings["outputs"], num_features=settings["inputs"], shape=shape)
        for name, count in (("input", settings["inputs"]), ("output", settings["outputs"])):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))

    def forward(self, inputs_BTF: Float[Tensor, "B T F"]) -> Float[Tensor, "B T K"]:
        """Outputs from the inputs until then."""
        told_BTK = self.network((inputs_BTF - self.input_mean) / self.input_scale)
        return told_BTK * self.output_scale + self.output_mean

    def relative_losses(
        self, inputs_BTF: Float[Tensor, "B T F"], outputs_BTK: Float[Tensor, "B T K"], *, washout: int
    ) -> Float[Tensor, "B"]:
        """Mean squared error of each sequence after the washout, in standard deviations of the outputs."""
        errors_BTK = (self(inputs_BTF) - outputs_BTK) / self.output_scale
        return errors_BTK[:, washout:].square().mean((1, 2))

    @torch.no_grad()
    def simulate(self, inputs_TF: Float[Tensor, "T F"]) -> Float[Tensor, "T K"]:
        """Outputs of a record from its inputs alone, on the CPU."""
        return self(inputs_TF[None].to(self.input_mean.device))[0].cpu()


def build_forecaster(config: ForecastConfig, train: Record) -> Forecaster:
    """With weights from the seed and the statistics of the training record, on the CPU."""
    settings = {name: getattr(config, name) for name in ("kind", "width", "layers", "norm", "dropout")}
    settings |= {"inputs": train.inputs.shape[1], "outputs": train.outputs.shape[1]}
    with seeded_random(config.seed, torch.device("cpu")):
        made = Forecaster(settings)
    for name, values in (("input", train.inputs), ("output", train.outputs)):
        made.get_buffer(f"{name}_mean").copy_(values.mean(0))
        made.get_buffer(f"{name}_scale").copy_(_spread(values))
    return made


def write_forecaster(path: Path, model: Forecaster) -> None:
    """Weights as safetensors, and what it takes to build the network as JSON."""
    (architecture,) = _KIND.architectures
    write_model(path, model.state_dict(), {"architecture": architecture} | model.settings)


def read_forecaster(path: Path) -> Forecaster:
    """The network of a run directory, or of a model directory, in evaluation mode.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with read_model(path, _KIND) as (about, weights):
        model = Forecaster({name: value for name, value in about.items() if name != "architecture"})
        model.load_state_dict(weights)
    return model.eval()


def _spread(values: Tensor) -> Tensor:
    """Standard deviations, 1 where a value does not vary."""
    spread = values.std(0)
    return torch.where(spread > 0, spread, 1.0)

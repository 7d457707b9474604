"""The config of a forecaster. It imports no torch, so that listing recipes is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.recipes.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ForecastConfig:
    """A recurrent network that tells the output of a system from its input alone, sample by sample.

    Args:
        data: "silverbox", "tanks", "heat_exchanger", "robot_arm" or "ball_and_beam"; or the path of a NumPy archive with the
            arrays `u` and `y`, of as many rows, in the order of time.
        kind: "lstm", or "rnn" for plain layers.
        width: features of a layer.
        layers: how many.
        norm: after each; None is none.
        dropout: share of features that is dropped after each.
        window: samples of a training sequence.
        washout: samples at its beginning that are not scored, nor at the beginning of any record, since the state before them is
            not known.
        method: by which it is trained, one that needs no journal.
        steps: budget.
        batch: sequences a step.
        evaluations: how often the validation record is looked at in a run.
        seed: of weights, order and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        optimizer: how the weights are moved.
    """

    data: str = "silverbox"
    kind: Literal["lstm", "rnn"] = "lstm"
    width: int = 32
    layers: int = 1
    norm: Literal["batch", "layer", "group"] | None = None
    dropout: float = 0.0
    window: int = 256
    washout: int = 50
    method: str = "adamw"
    steps: int = 2000
    batch: int = 32
    evaluations: int = 10
    seed: int = 0
    device: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-3, schedule="cosine", clip=1.0))

    def __post_init__(self) -> None:
        for name in ("width", "layers", "steps", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.washout < self.window:
            raise ValueError(
                f"`washout` must be at least 0 and below `window`, or nothing is scored; got {self.washout} and {self.window}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1); got {self.dropout}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Reads the records and builds the network."""
        from featherlight.recipes.forecast.experiment import build_experiment

        return build_experiment(self, workspace)

"""The config of an implicit model. It imports no torch, so that listing recipes is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GrowthConfig:
    """How blocks are trained one after the other.

    Args:
        directions: the inputs are first brought to so many whitened directions of largest variance, which all blocks share;
            None takes them as they are.
        ridge: on the squares of the read-out, beside the loss summed over the rows.
        decay: on the squares of a block's weights; for numbers.
        steps: the most of the search for a block; for numbers.
        curvature_rows: the most rows that the search takes the curvature of; for numbers.
        epochs: passes over the rows for the first block; for classes.
        later_epochs: for each other block; for classes.
        batch: rows a step; for classes.
        lr: the largest of a cycle; for classes.
        read_out_steps: the most with which the read-out is brought to its best after a block; for classes.
        patience: so many blocks in a row may leave the validation loss as it is before growth ends; what is kept is the
            best model. None trains all blocks and keeps them.
    """

    directions: int | None = None
    ridge: float = 1e-2
    decay: float = 1e-1
    steps: int = 30
    curvature_rows: int = 4096
    epochs: int = 3
    later_epochs: int = 1
    batch: int = 256
    lr: float = 1e-2
    read_out_steps: int = 5
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("directions", "steps", "curvature_rows", "epochs", "later_epochs", "batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`growth.{name}` must be at least 1; got {value}.")
        if not (0 < self.ridge < float("inf") and 0 < self.lr < float("inf")):
            raise ValueError(f"`growth.ridge` and `growth.lr` must be positive; got {self.ridge} and {self.lr}.")
        if not 0 <= self.decay < float("inf") or self.read_out_steps < 0:
            raise ValueError(
                f"`growth.decay` and `growth.read_out_steps` must be at least 0; got {self.decay} and {self.read_out_steps}."
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoopConfig:
    """How the whole model is trained at once, by AdamW.

    Args:
        epochs: passes over the training rows.
        batch: rows a step.
        lr: learning rate, which falls to zero along a cosine.
        weight_decay: decoupled.
        well_posed: what keeps a full A well posed: "projection" of its rows, or "rescaling" of them.
        gradient: "implicit" differentiation, which is exact, or "jacobian_free".
    """

    epochs: int = 20
    batch: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.0
    well_posed: Literal["projection", "rescaling"] = "projection"
    gradient: Literal["implicit", "jacobian_free"] = "implicit"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise ValueError(f"`loop.epochs` and `loop.batch` must be at least 1; got {self.epochs} and {self.batch}.")
        if not (0 < self.lr < float("inf") and 0 <= self.weight_decay < float("inf")):
            raise ValueError(
                f"`loop.lr` must be positive and `loop.weight_decay` at least 0; got {self.lr} and {self.weight_decay}."
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ImplicitConfig:
    """One implicit model.

    Args:
        kind: "images" with classes, a "table" with a number to foretell, or a "function" to interpolate.
        data: of images, as for classify/...; of a table, the name of a set of uci-regression or the path of a Parquet, CSV
            or JSON file of numbers; of a function, its name.
        target: the column to foretell, of a table in a file; None is the last.
        split: which of the usual divisions, of a set of uci-regression.
        points: of a function.
        valid_fraction: share of the training rows that is split off where the data have no validation rows.
        method: "sequential" trains block by block, "triangular" all blocks at once by backpropagation, "implicit" a full A by
            implicit differentiation.
        blocks: states of each block; their sum is the number of states of a full A.
        activation: "relu" or "tanh".
        sparse: penalties for which the finished model is made sparse by matching its states, for numbers and classes alike;
            in parts of the smallest that leaves nothing. Empty leaves the curve out.
        evaluations: how often the validation rows are looked at in a run of the usual loop.
        seed: of weights, order and the division of a file.
        device: "auto", "cpu", "cuda" or "mps".
        growth: of the sequential method.
        loop: of the others.
    """

    kind: Literal["images", "table", "function"] = "table"
    data: str = "concrete"
    target: str | None = None
    split: int = 0
    points: int = 200
    valid_fraction: float = 0.1
    method: Literal["sequential", "triangular", "implicit"] = "sequential"
    blocks: tuple[int, ...] = (10, 10, 10, 10, 10)
    activation: Literal["relu", "tanh"] = "tanh"
    sparse: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    evaluations: int = 10
    seed: int = 0
    device: str = "auto"
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"`blocks` must be one or more sizes of at least 1; got {list(self.blocks)}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if any(not 0 < penalty < 1 for penalty in self.sparse):
            raise ValueError(f"`sparse` must be numbers between 0 and 1; got {list(self.sparse)}.")
        if min(self.evaluations, self.points) < 1:
            raise ValueError(
                f"`evaluations` and `points` must be at least 1; got {self.evaluations} and {self.points}."
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the data and builds the model."""
        from featherlight.recipes.implicit.experiment import build_experiment

        return build_experiment(self, workspace)

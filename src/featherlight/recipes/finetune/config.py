"""The config of a fine-tune: frozen, checked, and the same in a TOML file as on the command line."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.planner.sizes import parse_size
from featherlight.recipes.arithmetic import PrecisionName
from featherlight.recipes.config import from_mapping, split_toml
from featherlight.recipes.optimizer_config import BY_GRADIENT, OptimizerConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")
DEFAULT_MINUTES = 5.0
RECIPE = "finetune/custom"
"""The recipe that a fine-tune from the command line is a variant of."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FinetuneConfig:
    """One fine-tune, as `config.toml` keeps it.

    Args:
        model: directory, hub id, or "minilm".
        train: file of training rows, or "stdlib-docs".
        valid: file of validation rows; None splits them off `train`.
        text: text columns, one or two; empty guesses them.
        label: label column; None guesses it.
        task: "classification", "regression", "lm", or "auto" by the labels.
        metric: "accuracy", "f1", "mcc" or "pearson"; None takes the task's own.
        objective: "loss", or "metric" to raise the metric itself, which needs no gradient of it. For forward-only methods.
        method: "zo", "svrg", "fzoo", "lozo", "conmezo", "agzo" or "mezo"; or by gradients "adamw", "prodigy",
            "muon" or "schedule_free". "auto" takes the best whose predicted peak stays within `memory`.
        memory: what the process may take, such as "2GiB": as many rows go through a pass as fit by prediction. None is no limit.
        trainable: "default" (all but embedding tables), "all", "last:N", or a regular expression of parameter names.
        lora: rank of adapters, which are then all that is trained besides a fresh head.
        head_start: whether a classification head is first fitted in closed form; None does so for a fresh one.
        steps: budget in steps.
        minutes: budget in minutes spent in steps.
        batch: examples a step.
        micro_batch: examples a forward pass; None runs the batch at once.
        max_length: longest input in tokens; None takes the model's.
        allow_truncation: goes on if more than 1% of the tokens are cut off.
        valid_fraction: share of `train` that is split off where `valid` is None.
        evaluations: how often the validation rows are looked at in a run.
        digest_every: steps between comparisons of the weights of several processes that train forward-only.
        seed: of everything random.
        dtype: of the weights, "auto" for the source's own.
        precision: in which steps are computed, "fp32" for the format of the weights, "bf16", or "fp16" with dynamic loss
            scaling for methods that go by gradients.
        base: how the weights of linear layers are held: "float", or "int8" or "int4" for forward-only training or adapters.
        merge_rank: directions up to which steps are kept beside an int8 or int4 weight before they are rounded into it.
        device: "auto" for the best there is, or "cpu", "cuda", "cuda:1", "mps".
        optimizer: how the weights are moved.
    """

    model: str
    train: str
    valid: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    task: Literal["auto", "classification", "regression", "lm"] = "auto"
    metric: Literal["accuracy", "f1", "mcc", "pearson"] | None = None
    objective: Literal["loss", "metric"] = "loss"
    method: Literal[
        "zo", "svrg", "fzoo", "lozo", "conmezo", "agzo", "mezo", "adamw", "prodigy", "muon", "schedule_free", "auto"
    ] = "zo"
    memory: str | None = None
    trainable: str = "default"
    lora: int | None = None
    head_start: bool | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int = 16
    micro_batch: int | None = None
    max_length: int | None = None
    allow_truncation: bool = False
    valid_fraction: float = 0.1
    evaluations: int = 10
    digest_every: int = 200
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    precision: PrecisionName = "fp32"
    base: Literal["float", "int8", "int4"] = "float"
    merge_rank: int = 256
    device: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        positive = ("lora", "steps", "minutes", "batch", "micro_batch", "max_length", "evaluations", "digest_every")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive; got {value}.")
        if len(self.text) > 2:
            raise ValueError(f"`text` takes one column or a pair; got {list(self.text)}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"`seed` must be in [0, 2**64); got {self.seed}.")
        if self.task == "lm" and (self.metric is not None or self.label is not None):
            raise ValueError("`task` lm predicts the next token, so it takes neither `metric` nor `label`. Drop them.")
        if self.merge_rank < 0:
            raise ValueError(
                f"`merge_rank` must be at least 0 directions (0 rounds every step); got {self.merge_rank}."
            )
        if self.base != "float" and self.method in ("mezo", "agzo", *BY_GRADIENT) and self.lora is None:
            raise ValueError(
                f"`method` {self.method} trains and saves float weights, and `base` {self.base} holds them as whole numbers. "
                "Train adapters (`--lora 8`), use `--method zo`, or leave `--base` float."
            )
        if self.objective == "metric" and self.method in BY_GRADIENT:
            raise ValueError(
                f"`objective` metric has no gradient, and `method` {self.method} is made of gradients. Use zo, or the objective "
                "loss."
            )
        self._check_memory()
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "minutes", DEFAULT_MINUTES)

    def _check_memory(self) -> None:
        if self.memory is None:
            if self.method == "auto":
                raise ValueError(
                    "`method` auto takes the best that fits into `memory`, which is not given. Say `--memory 4GiB`."
                )
            return
        parse_size(self.memory)
        if self.base != "float" or self.device not in ("auto", "cpu"):
            raise ValueError(
                f"`memory` is planned for float weights on a CPU; got `base` {self.base} and `device` {self.device}. Leave "
                "`--memory` out."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads model and data."""
        from featherlight.recipes.finetune.experiment import build_experiment

        return build_experiment(self, workspace)


def config_from_text(text: str, *, source: str) -> FinetuneConfig:
    """The config of a fine-tune from TOML, such as the config.toml of its run.

    Raises:
        ValueError: the text is damaged, or is of a run of something else.
    """
    recipe, values = split_toml(text, source=source)
    if "train" not in values or "model" not in values:
        raise ValueError(
            f"{source} is of a run of {recipe or 'something else'}, which is no fine-tune of a text model."
        )
    return from_mapping(FinetuneConfig, values, source=source)

"""The configs of models of text. They import no torch, so that listing recipes is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.recipes.arithmetic import PrecisionName
from featherlight.recipes.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextNetworkConfig:
    """The network.

    Args:
        kind: "gpt", a causal Transformer; "lstm" or "rnn", recurrent layers. The encoder and the decoder of a translation are
            Transformers.
        width: features of a token.
        blocks: of the Transformer, of each of its stacks; or recurrent layers.
        heads: of attention.
        positions: how a Transformer knows where a token stands. A decoder that has "rotary" alone does not know where in the
            source it reads.
        norm: of the blocks, or after each recurrent layer; None is "layer" for Transformers and "none" for recurrent layers.
        dropout: share of features that is dropped.
        tied: whether the last layer is the table of the tokens.
    """

    kind: Literal["gpt", "lstm", "rnn"] = "gpt"
    width: int = 128
    blocks: int = 4
    heads: int = 4
    positions: Literal["learned", "sinusoidal", "rotary"] = "rotary"
    norm: Literal["batch", "layer", "group", "none"] | None = None
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`network.{name}` must be at least 1; got {getattr(self, name)}.")
        if self.width % self.heads:
            raise ValueError(f"`network.heads` must divide `network.width`; got {self.heads} and {self.width}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`network.dropout` must lie in [0, 1); got {self.dropout}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextTrainingConfig:
    """What all models of text have in common.

    Args:
        network: of the model.
        method: by which it is trained, one that needs no journal: "adamw" and the like.
        steps: budget.
        batch: sequences a step.
        micro_batch: sequences a forward pass; None runs the batch at once.
        evaluations: how often the validation text is looked at in a run.
        seed: of weights, order and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        precision: in which steps are computed, "fp32", "bf16" or "fp16", the last with dynamic loss scaling.
        optimizer: how the weights are moved.
    """

    network: TextNetworkConfig = field(default_factory=TextNetworkConfig)
    method: str = "adamw"
    steps: int = 2000
    batch: int = 32
    micro_batch: int | None = None
    evaluations: int = 10
    seed: int = 0
    device: str = "auto"
    precision: PrecisionName = "fp32"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LanguageConfig(TextTrainingConfig):
    """A model of a language: how likely each next token of a text is.

    Args:
        data: "shakespeare", or the path of a text, as `featherlight.data.read_plain_text` reads it.
        tokens: "characters", those that occur in the text; or "bytes" of UTF-8.
        valid_fraction: share at the end of a text of one's own that validates.
        context: tokens of a sequence.
        evaluated: tokens of the validation text that are looked at in a run; None is all. At its end all are.
        prompt: what the sample in the report goes on from.
        sample: its tokens.
        temperature: of the sample; below 1 likely tokens become likelier, and 0 takes the likeliest.
    """

    data: str = "shakespeare"
    tokens: Literal["characters", "bytes"] = "characters"
    valid_fraction: float = 0.1
    context: int = 128
    evaluated: int | None = 16384
    prompt: str = "\n"
    sample: int = 600
    temperature: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "evaluated", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if not self.prompt or not 0 <= self.temperature < float("inf"):
            raise ValueError(
                "`prompt` must have a character at least and `temperature` be finite and at least 0; got "
                f"{self.prompt!r} and {self.temperature}."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Reads the text and builds the network."""
        from featherlight.recipes.text.language import build_experiment

        return build_experiment(self, workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TranslationConfig(TextTrainingConfig):
    """An encoder and decoder that learn to write down again what they read, which proves that they can.

    Args:
        task: "copy" writes it as it is, "reverse" from its end to its beginning, "sort" in order.
        symbols: how many there are.
        shortest: symbols of the shortest sequence.
        longest: symbols of the longest.
        evaluated: sequences that are looked at in a run, none of which is trained on but by a rare chance.
        tested: sequences that are looked at when it ends.
    """

    task: Literal["copy", "reverse", "sort"] = "reverse"
    symbols: int = 26
    shortest: int = 4
    longest: int = 16
    evaluated: int = 256
    tested: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.shortest <= self.longest or min(self.symbols, self.evaluated, self.tested) < 1:
            raise ValueError(
                "`shortest` and `longest` must be numbers of at least 1 in this order, and `symbols`, `evaluated` and "
                f"`tested` at least 1; got {self.shortest}, {self.longest}, {self.symbols}, {self.evaluated} and {self.tested}."
            )

        if self.network.kind != "gpt":
            raise ValueError(
                f"`network.kind` is {self.network.kind!r}, but a translation is by an encoder and a decoder that are "
                "Transformers. Leave it at gpt, or train a model of a language."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Builds the network."""
        from featherlight.recipes.text.translation import build_experiment

        return build_experiment(self, workspace)

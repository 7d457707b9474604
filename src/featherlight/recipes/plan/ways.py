"""The ways to train a model, best first: what each trains, by what, and what is known of its results."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

_SAME = "the same steps"
_FEWER = "fewer weights to adapt"
_FORWARD = "many more steps"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way.

    Attributes:
        key: names it.
        title: for people.
        method: key of METHODS, or "sgd".
        quality: what is known of its results, in words.
        rank: ways of a smaller one are preferred wherever they fit; the same for ways that make the same steps.
        trainable: as `--trainable` takes it.
        lora: rank of adapters.
        micro_batch: rows a pass; None runs the batch at once.
        autocast: dtype of the forward pass.
        flags: what `featherlight finetune` is told; None where it cannot run this.
        activation_bytes: what a forward and a backward pass may take above weights and state; None for all they like.
    """

    key: str
    title: str
    method: str
    quality: str
    rank: int
    trainable: str = "default"
    lora: int | None = None
    micro_batch: int | None = None
    autocast: torch.dtype | None = None
    flags: str | None = None
    activation_bytes: int | None = None


FULL = Way(
    key="adamw",
    title="AdamW",
    method="adamw",
    quality="the reference",
    rank=0,
    flags="--method adamw",
)
"""All weights, whole batches, float32."""

CHECKPOINTED = Way(
    key="checkpointed",
    title="AdamW, activation checkpointing",
    method="adamw",
    quality=_SAME,
    rank=0,
)
"""As `FULL`, with part of the forward pass done again in the backward pass."""

NOTES = (
    "the same steps: those of AdamW up to rounding, in smaller passes or with part of them run twice",
    "fewer weights to adapt: often near full fine-tuning where the pretrained features are good",
    "many more steps: two forward passes tell less about an example than a gradient does (docs/choosing.md)",
)
"""What the words on results mean."""


def eight_bits() -> str:
    """Why no way has optimizer state in 8 bits."""
    found = [name for name in ("torchao", "bitsandbytes") if find_spec(name) is not None]
    if not found:
        return "optimizer state in 8 bits is not offered: neither torchao nor bitsandbytes is installed"
    return f"optimizer state in 8 bits is not planned; that of {found[0]} takes about a quarter of AdamW's"


def ways(rows: int, *, is_text: bool) -> list[Way]:
    """The ways for a batch of so many rows, best first; of ready-made models only those that leave the model as it is."""
    passes = sorted({max(1, rows // 4), 1} - {rows}, reverse=True)
    found = [FULL, *(micro_batched(FULL, one) for one in passes)]
    found += [
        Way(
            key="bf16",
            title="AdamW, autocast to bfloat16",
            method="adamw",
            quality="nearly the same",
            rank=1,
            autocast=torch.bfloat16,
        ),
        Way(
            key="sgd",
            title="SGD without momentum",
            method="sgd",
            quality="slower, and worse on transformers",
            rank=4,
        ),
    ]
    if is_text:
        found += _of_text(rows)
    if rows > 1:
        found.append(
            Way(key="zo", title="forward passes alone (zo)", method="zo", quality=_FORWARD, rank=5, flags="--method zo")
        )
    return sorted(found, key=lambda way: way.rank)


def micro_batched(way: Way, rows: int) -> Way:
    """The same steps, some rows a pass."""
    flags = None if way.flags is None else f"{way.flags} --set micro_batch={rows}"
    return Way(
        key=f"{way.key}/{rows}",
        title=f"{way.title}, {rows} row{'s' if rows > 1 else ''} a pass",
        method=way.method,
        quality=_SAME if way.rank == 0 else way.quality,
        rank=way.rank,
        trainable=way.trainable,
        lora=way.lora,
        micro_batch=rows,
        autocast=way.autocast,
        flags=flags,
    )


def _of_text(rows: int) -> list[Way]:
    last = Way(
        key="last:2",
        title="AdamW, the last two blocks",
        method="adamw",
        quality=_FEWER,
        rank=2,
        trainable="last:2",
        flags="--method adamw --trainable last:2",
    )
    lora = Way(
        key="lora",
        title="AdamW, LoRA adapters of rank 8",
        method="adamw",
        quality=_FEWER,
        rank=2,
        lora=8,
        flags="--method adamw --lora 8",
    )
    chosen = [lora, last] if find_spec("peft") is not None else [last]
    return chosen + ([micro_batched(one, 1) for one in chosen] if rows > 1 else [])

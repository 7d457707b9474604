"""The variants of each study: network, optimizer and batch of each cell of its table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from featherlight.data import ImageSet
from featherlight.nn.models import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LeNet300, NoNorm, Norm, resnet8
from featherlight.optim import Prodigy
from featherlight.recipes.regularize.config import DecayConfig, DropoutConfig, NormName, NormsConfig, ProdigyConfig

_RATED_BATCH = 128
Parameters = Sequence[nn.Parameter]
"""What an optimizer is made for."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One training of a study.

    Attributes:
        row: of the table.
        column: of the table.
        model: makes the network.
        optimizer: makes the optimizer.
        batch: images a step.
        schedule: of the learning rate.
        shifts: whether the pixels change places half-way.
    """

    row: str
    column: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[Parameters], Optimizer]
    batch: int
    schedule: str = "cosine"
    shifts: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants, and what to say of them.

    Attributes:
        title: for people.
        text: how they differ, and what they share.
        variants: one after the other.
    """

    title: str
    text: str
    variants: Sequence[Variant]


def dropout_study(config: DropoutConfig, images: ImageSet) -> Study:
    """One variant for each share."""
    variants = [
        Variant(
            row=f"dropout {share:g}",
            column="error",
            model=lambda share=share: _dense(images, config.hidden, share),
            optimizer=lambda params: AdamW(params, lr=config.lr, weight_decay=0.0, fused=True),
            batch=config.batch,
        )
        for share in config.shares
    ]
    text = f"A network of {'-'.join(map(str, config.hidden))} hidden units on {len(images):,} images; no other regularizer."
    return Study(title="dropout", text=text, variants=variants)


def norms_study(config: NormsConfig, images: ImageSet) -> Study:
    """One variant for each norm and batch."""
    variants = [
        Variant(
            row=f"{norm} norm" if norm != "none" else "no norm",
            column=f"batch {batch}",
            model=lambda norm=norm: resnet8(
                len(images.classes), in_channels=images.images.shape[1], norm=norm_of(norm)
            ),
            optimizer=lambda params, batch=batch: AdamW(
                params, lr=_scaled(config.lr, batch), weight_decay=0.0, fused=True
            ),
            batch=batch,
        )
        for norm in config.norms
        for batch in config.batches
    ]
    text = (
        "ResNet-8; every variant sees the same images equally often, and AdamW's rate goes with the root of the batch. Batch "
        "normalization estimates mean and variance from the batch, the others from each image by itself."
    )
    return Study(title="normalization and batch size", text=text, variants=variants)


def decay_study(config: DecayConfig, images: ImageSet) -> Study:
    """One variant for each kind, strength and rate."""
    kinds: dict[str, tuple[Callable[..., Optimizer], float]] = {
        "AdamW, decay": (AdamW, 1.0),
        "Adam, penalty": (Adam, config.penalty_scale),
    }
    variants = [
        Variant(
            row=f"{name} {decay * scale:g}",
            column=f"rate {rate:g}",
            model=lambda: _dense(images, (300, 100), 0.0),
            optimizer=lambda params, kind=kind, rate=rate, strength=decay * scale: kind(
                params, lr=rate, weight_decay=strength, fused=True
            ),
            batch=config.batch,
        )
        for name, (kind, scale) in kinds.items()
        for decay in config.decays
        for rate in config.rates
    ]
    text = (
        "AdamW shrinks weights by rate times decay a step, whatever their gradients; Adam with a penalty divides the shrinking "
        "by the size of the gradients as well, so that rate and strength cannot be chosen one by one."
    )
    return Study(title="AdamW beside Adam with a penalty", text=text, variants=variants)


def prodigy_study(config: ProdigyConfig, images: ImageSet) -> Study:
    """One variant for each optimizer, on data that stay and on data that change."""
    optimizers: dict[str, Callable[[Parameters], Optimizer]] = {
        f"AdamW {rate:g}": lambda params, rate=rate: AdamW(params, lr=rate, weight_decay=0.0, fused=True)
        for rate in config.rates
    }
    optimizers["Prodigy"] = Prodigy
    variants = [
        Variant(
            row=name,
            column="shifting" if shifts else "stationary",
            model=lambda: _dense(images, (300, 100), 0.0),
            optimizer=make,
            batch=config.batch,
            schedule="constant",
            shifts=shifts,
        )
        for name, make in optimizers.items()
        for shifts in (False, True)
    ]
    text = (
        "A constant rate throughout. Where data shift, all pixels change places half-way, and what counts is the error on "
        "the new places at the end. Prodigy's estimate is of the distance from where it started, and it never falls."
    )
    return Study(title="Prodigy beside AdamW", text=text, variants=variants)


def _dense(images: ImageSet, hidden: Sequence[int], dropout: float) -> nn.Module:
    pixels = math.prod(images.images.shape[1:])
    return LeNet300(len(images.classes), num_pixels=pixels, hidden=hidden, dropout=dropout)


def norm_of(name: NormName) -> Norm:
    """The part that a config means."""
    found: dict[NormName, Norm] = {
        "none": NoNorm(),
        "batch": BatchNorm(),
        "instance": InstanceNorm(),
        "layer": LayerNorm(),
        "group": GroupNorm(groups=4),
    }
    return found[name]


def _scaled(lr: float, batch: int) -> float:
    return lr * math.sqrt(batch / _RATED_BATCH)

"""One run of the benchmark of vector quantizers: an autoencoder of small images is trained around a quantizer, and measured."""

import math
import os
import statistics
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import Row
from benchmarks.quantizer_methods import DIM, Method
from featherlight.data import IndexPermutation, load_images
from featherlight.nn.models import ConvDecoder, ConvEncoder
from featherlight.nn.vector_quantizers import CodebookUsage, Codes
from featherlight.objective import seeded_random

TEST_IMAGES = 1000
_BATCH = 32
_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of 32x32 pixels in [0, 1].

    Attributes:
        train: to learn from; without the images of `lossless`.
        test: of the published test part.
        held_out: of the same part, others, to choose settings by.
        lossless: CIFAR-10 before it was stored as JPEG; None for others.
    """

    train: Tensor
    test: Tensor
    held_out: Tensor
    lossless: Tensor | None = None


@lru_cache(maxsize=1)
def images_of(data: str, num_train: int) -> Images:
    """The same images for all seeds: the first of a fixed order."""
    splits = load_images(data)
    assert splits.test is not None
    train, test = splits.train.images, splits.test.images
    lossless = None
    if data == "cifar10":
        root = Path(os.environ["FEATHERLIGHT_DATA"])
        arrays = np.load(root / "cifar10-lossless-4k" / "cifar10_lossless_4k.npz")
        lossless = torch.from_numpy(arrays["x"]).movedim(-1, 1)
        train = _without(train, lossless)
        lossless = lossless[:TEST_IMAGES].float() / 255
    rows = torch.tensor(IndexPermutation(len(train), 0).indices(0, num_train))
    tested, held_out = (test[TEST_IMAGES * n : TEST_IMAGES * (n + 1)].float() / 255 for n in (0, 1))
    return Images(train=train[rows].float() / 255, test=tested, held_out=held_out, lossless=lossless)


def _without(images: Tensor, others: Tensor) -> Tensor:
    """The images but for the nearest one of each of the others, by means of 4x4 pixels."""
    small, sought = (F.avg_pool2d(one.float(), 4).flatten(1) for one in (images, others))
    offsets = small.square().sum(1)
    nearest = torch.cat([(offsets - 2 * part @ small.T).argmin(1) for part in sought.split(500)])
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[nearest] = False
    return images[kept]


class Autoencoder(nn.Module):
    """The convolutional autoencoder of the recipes, narrow, with 8x8 positions of `DIM` features."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        shape: dict[str, Any] = {"dim": DIM, "width": 32, "num_blocks": 1, "block_width": 16}
        self.encoder, self.decoder = ConvEncoder(in_channels=3, **shape), ConvDecoder(out_channels=3, **shape)
        self.quantizer = quantizer


def one_run(key: Row, method: Method) -> Row:
    """Trains and measures with the settings of `key`: data, setting, seed, epochs, train (images)."""
    images = images_of(key["data"], key["train"])
    with seeded_random(key["seed"], torch.device("cpu")):
        began = time.perf_counter()
        setting = method.settings[key["setting"]]
        model = Autoencoder(setting.build(key["seed"]))
        shift, scale = float(images.train.mean()), float(images.train.std())
        _train(model, (images.train - shift) / scale, key["epochs"], key["seed"], setting.rate)
        seconds = time.perf_counter() - began
    model.eval()
    figures = _measure(model, method, images.test, shift, scale)
    figures["held_out_mse"] = _measure(model, method, images.held_out, shift, scale)["mse"]
    if images.lossless is not None:
        figures["lossless_mse"] = _measure(model, method, images.lossless, shift, scale)["mse"]
    return key | figures | {"bits": model.quantizer.bits_per_position, "seconds": seconds, **_times(model)}


def _train(model: Autoencoder, images: Tensor, epochs: int, seed: int, rate: float) -> None:
    steps = epochs * (len(images) // _BATCH)
    own = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups: list[Row] = [{"params": own}, {"params": list(model.quantizer.parameters()), "lr": rate * _LR}]
    optimizer = torch.optim.AdamW([one for one in groups if one["params"]], lr=_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = IndexPermutation(len(images), seed)
    for step in range(steps):
        x = images[torch.tensor(order.indices(step * _BATCH, _BATCH))]
        quantized = model.quantizer(model.encoder(x))
        loss = F.mse_loss(model.decoder(quantized.values), x) + quantized.aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _measure(model: Autoencoder, method: Method, images: Tensor, shift: float, scale: float) -> Row:
    usage = CodebookUsage(method.num_codes, dim=DIM, num_stages=method.num_stages)
    squares = torch.zeros((), dtype=torch.float64)
    for x in images.split(200):
        latents = model.encoder((x - shift) / scale)
        quantized = model.quantizer(latents)
        output = (model.decoder(quantized.values) * scale + shift).clamp(0, 1)
        squares += (output - x).double().square().sum()
        usage.update(_detached(quantized.codes), latents=latents, values=quantized.values, channel_axis=1)
    mse, used = float(squares / images.numel()), usage.compute()
    return {
        "mse": mse,
        "psnr": -10 * math.log10(mse),
        "hard_perplexity": used.hard_perplexity,
        "mass_perplexity": used.mass_perplexity,
        "share_in_use": used.share_in_use,
        "support_size": used.support_size,
        "relative_error": used.relative_error,
    }


def _detached(codes: Codes) -> Codes:
    return Codes(codes.indices, None if codes.weights is None else codes.weights.detach())


def _times(model: Autoencoder) -> Row:
    """Milliseconds of the quantizer alone on a batch, forward and backward; what else the machine does is in them."""
    latents = torch.randn(_BATCH, DIM, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model.quantizer.train()
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        quantized = model.quantizer(latents)
        (quantized.values.sum() + quantized.aux_loss).backward()
        taken.append(1000 * (time.perf_counter() - began))
    model.quantizer.eval()
    return {"quantizer_ms": statistics.median(taken)}

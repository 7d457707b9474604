"""Small nets of every kind, with a batch and a loss, for the prediction of memory.

Legend of shapes: B examples, T tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherlight.nn.implicit import ImplicitLayer
from featherlight.nn.models import (
    AlexNet,
    BlockShape,
    CaffeLeNet,
    ConvDecoder,
    ConvEncoder,
    Gpt,
    LeNet5,
    LeNet300,
    MobileNet,
    PlainCell,
    RecurrentClassifier,
    RecurrentForecaster,
    RecurrentLanguageModel,
    RecurrentShape,
    VisionTransformer,
    resnet8,
    resnet18,
    resnet20,
)
from featherlight.nn.vector_quantizers import Codebook, VectorQuantizer
from featherlight.objective import Batch, PerExampleLoss

Problem = tuple[nn.Module, dict[str, Tensor], PerExampleLoss]
SHAPE = BlockShape(width=32, num_heads=4, hidden=64)
CELLS = RecurrentShape(width=32, num_layers=2)
SMALL: dict[str, Any] = {"vocab_size": 1000, "num_labels": 10, "pad_token_id": 0}


def classes(rows: int) -> Tensor:
    """Labels of ten classes, (B,)."""
    return torch.arange(rows) % 10


def images(net: nn.Module, rows: int, channels: int, side: int) -> Problem:
    """A classifier of images."""
    return net, {"x": torch.rand(rows, channels, side, side), "y": classes(rows)}, of_classes


def tokens(net: nn.Module, rows: int = 8, length: int = 32) -> Problem:
    """A model of text from this library."""
    return net, {"x": torch.arange(rows * length).view(rows, length) % 70}, of_tokens


def transformer(net: nn.Module, loss: PerExampleLoss, rows: int = 16, length: int = 24) -> Problem:
    """A model of transformers."""
    ids = torch.arange(rows * length).view(rows, length) % 900 + 5
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": classes(rows)}
    return net, batch, loss


def of_classes(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, (B,)."""
    return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def of_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of tokens, (B,)."""
    return functional.cross_entropy(model(batch["x"]).transpose(1, 2), batch["x"], reduction="none").mean(1)


def of_itself(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of a reconstruction, (B,)."""
    return (model(batch["x"]) - batch["x"]).square().flatten(1).mean(1)


def of_numbers(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error, (B,)."""
    return (model(batch["x"]) - batch["y"]).square().flatten(1).mean(1)


def of_sentences(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of a classifier of transformers, (B,)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["labels"], reduction="none")


def of_next_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token of a language model of transformers, (B,)."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


class Quantized(nn.Module):
    """A dense autoencoder around a vector quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 32), nn.Linear(32, 64)
        self.quantizer = VectorQuantizer(Codebook(128, 8, init=None, learnable=True), heads=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and auxiliary loss."""
        found = self.quantizer(self.encoder(x))
        return self.decoder(found.values), found.aux_loss


def of_codes(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error and the quantizer's own loss, (B,)."""
    values, aux_loss = model(batch["x"])
    return (values - batch["x"]).square().mean(1) + aux_loss


def of_implicit(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of an equilibrium layer, (B,)."""
    return functional.cross_entropy(model(batch["x"])[0], batch["y"], reduction="none")


def _bert() -> Problem:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, **SMALL)
    return transformer(BertForSequenceClassification(config), of_sentences)


def _gpt2() -> Problem:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=1000, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return transformer(GPT2LMHeadModel(config), of_next_tokens)


def _llama() -> Problem:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    return transformer(LlamaForCausalLM(config), of_next_tokens)


def _encoder() -> Problem:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2), {"x": torch.rand(8, 12, 32)}, of_itself


def _autoencoder() -> Problem:
    parts: dict[str, Any] = {"dim": 4, "width": 8, "block_width": 4}
    net = nn.Sequential(ConvEncoder(in_channels=1, **parts), ConvDecoder(out_channels=1, **parts))
    return net, {"x": torch.rand(16, 1, 28, 28)}, of_itself


def _alexnet() -> nn.Module:
    return AlexNet(10, small_images=True, widths=(24, 48, 48, 48, 24), hidden=64)


NETS: Mapping[str, Callable[[], Problem]] = {
    "MLP": lambda: (
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)),
        {"x": torch.rand(32, 64), "y": classes(32)},
        of_classes,
    ),
    "LeNet-300": lambda: images(LeNet300(), 32, 1, 28),
    "LeNet-5": lambda: images(LeNet5(), 32, 1, 28),
    "Caffe LeNet": lambda: images(CaffeLeNet(), 32, 1, 28),
    "AlexNet": lambda: images(_alexnet(), 32, 3, 32),
    "ResNet-8": lambda: images(resnet8(10), 16, 3, 32),
    "ResNet-20": lambda: images(resnet20(10), 32, 3, 32),
    "ResNet-18": lambda: images(resnet18(10), 4, 3, 64),
    "MobileNet": lambda: images(MobileNet(10), 8, 3, 32),
    "vision transformer": lambda: images(VisionTransformer(10, patch=8, shape=SHAPE, num_blocks=2), 16, 3, 32),
    "LSTM classifier": lambda: (
        RecurrentClassifier(10, num_features=16, shape=CELLS),
        {"x": torch.rand(32, 20, 16), "y": classes(32)},
        of_classes,
    ),
    "LSTM of text": lambda: tokens(RecurrentLanguageModel(70, shape=CELLS)),
    "plain recurrent": lambda: (
        RecurrentForecaster(2, num_features=5, shape=RecurrentShape(width=12, num_layers=2, cell=PlainCell())),
        {"x": torch.rand(16, 12, 5), "y": torch.rand(16, 12, 2)},
        of_numbers,
    ),
    "Gpt": lambda: tokens(Gpt(70, context=32, shape=SHAPE, num_blocks=2)),
    "torch's encoder": _encoder,
    "autoencoder": _autoencoder,
    "vector quantizer": lambda: (Quantized(), {"x": torch.rand(32, 64)}, of_codes),
    "implicit": lambda: (ImplicitLayer(40, 20, 10), {"x": torch.rand(16, 20), "y": classes(16)}, of_implicit),
    "BERT": _bert,
    "GPT-2": _gpt2,
    "Llama": _llama,
}
"""Nets by name."""

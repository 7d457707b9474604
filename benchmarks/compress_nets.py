"""Pruned and shared LeNets for coders to be compared on: trained on the spot, plainly, in a minute or two each.

Magnitude pruning per layer on a cubic schedule, then K-means codebooks of the weights that are left, then one epoch in which the
codebooks are trained with the summed gradients of their weights. The way of `featherlight run compress/...` is better; these are
weights to code, not results to report.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featherlight.data.image_sets import load_mnist
from featherlight.nn.models import CaffeLeNet, LeNet300

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network to prune.

    Attributes:
        make: its class.
        keep: share of the weights that stay, by layer in order.
        num_values: size of each layer's codebook, zero not counted.
        epochs: with pruning over the first three quarters.
    """

    make: type[nn.Module]
    keep: tuple[float, ...]
    num_values: int
    epochs: int


NETS: Mapping[str, Net] = {
    "LeNet-300-100": Net(make=LeNet300, keep=(0.04, 0.09, 0.3), num_values=16, epochs=12),
    "LeNet-5-Caffe": Net(make=CaffeLeNet, keep=(0.6, 0.1, 0.015, 0.2), num_values=16, epochs=3),
}


def pruned(name: str, *, seed: int = 0) -> dict[str, Tensor]:
    """The state_dict of a pruned and shared network; made once and kept in the folder for temporary files."""
    path = Path(tempfile.gettempdir()) / f"featherlight-{name}-{seed}.safetensors"
    if not path.is_file():
        save_file(_make(NETS[name], seed), path)
    return load_file(path)


def accuracy(name: str, tensors: Mapping[str, Tensor]) -> float:
    """Share of the test digits that a network with these tensors reads right."""
    network = NETS[name].make()
    network.load_state_dict(dict(tensors))
    test = load_mnist().test
    assert test is not None
    with torch.no_grad():
        return float((network(_floats(test.images)).argmax(1) == test.labels).float().mean())


def _make(net: Net, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = net.make()
    train = load_mnist().train
    weights = [one.weight for one in network.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    masks = [torch.ones_like(one) for one in weights]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    steps = len(train.images) // BATCH * net.epochs
    for step in range(steps):
        part = min(1.0, step / (0.75 * steps))
        if step % 50 == 0 and part < 1.0:
            masks = [_mask(w, 1 - (1 - k) * (1 - (1 - part) ** 3)) for w, k in zip(weights, net.keep, strict=True)]
        _step(network, optimizer, train, generator)
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)
    _share(network, weights, net.num_values, train, generator)
    return {key: one.detach().contiguous() for key, one in network.state_dict().items()}


def _share(network: nn.Module, weights: list[Tensor], num_values: int, train, generator: torch.Generator) -> None:
    """Puts codebooks in place of the weights and trains them for an epoch."""
    books = [_k_means(w.detach()[w.detach() != 0], num_values) for w in weights]
    codes = [(w.detach()[..., None] - b).abs().argmin(-1) for w, b in zip(weights, books, strict=True)]
    alive = [w.detach() != 0 for w in weights]
    optimizer = torch.optim.Adam(books, lr=1e-4)
    for step in range(len(train.images) // BATCH + 1):
        with torch.no_grad():
            for weight, book, code, mask in zip(weights, books, codes, alive, strict=True):
                weight.copy_(book.half().float()[code] * mask)
        if step == len(train.images) // BATCH:
            return
        _backward(network, train, generator)
        for weight, book, code, mask in zip(weights, books, codes, alive, strict=True):
            assert weight.grad is not None
            book.grad = torch.zeros_like(book).index_add_(0, code[mask], weight.grad[mask])
        optimizer.step()


def _k_means(values: Tensor, num_values: int) -> Tensor:
    """Codebook values of one layer from a linear start."""
    book = torch.linspace(float(values.min()), float(values.max()), num_values)
    for _ in range(30):
        code = (values[:, None] - book).abs().argmin(1)
        count = torch.bincount(code, minlength=num_values)
        means = torch.zeros(num_values).index_add_(0, code, values) / count.clamp(min=1)
        book = torch.where(count > 0, means, book)
    return book.clone()


def _mask(weight: Tensor, keep: float) -> Tensor:
    kept = max(1, round(keep * weight.numel()))
    threshold = weight.detach().abs().flatten().kthvalue(weight.numel() - kept + 1).values
    return (weight.detach().abs() >= threshold).to(weight.dtype)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, train, generator: torch.Generator) -> None:
    _backward(network, train, generator)
    optimizer.step()


def _backward(network: nn.Module, train, generator: torch.Generator) -> None:
    rows = torch.randint(len(train.images), (BATCH,), generator=generator)
    network.zero_grad()
    nn.functional.cross_entropy(network(_floats(train.images[rows])), train.labels[rows]).backward()


def _floats(images: Tensor) -> Tensor:
    return images.reshape(len(images), 1, 28, 28).float().div_(255)

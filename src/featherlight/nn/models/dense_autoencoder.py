"""Autoencoders of full layers, and a wrapper that makes any autoencoder learn to take noise off.

Legend of shapes: B examples, S sizes of an example, F features of a code.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.norms import NoNorm, Norm


class DenseAutoencoder(nn.Module):
    """Full layers that narrow to a code, and their mirror image: 784-1000-500-250-30 has 2,837,314 parameters.

    Args:
        sizes: S, of an example.
        widths: of the layers after the first, down to F.
        activation: makes the units between layers.
        output: what is applied to the last layer; `Sigmoid()` is for values in [0, 1], `Identity()` for any.
        norm: after each layer but the code and the output, before its units.
        dropout: share of the features that is dropped after each of these.

    Attributes:
        encoder: from examples to codes.
        decoder: from codes to examples.
        code_size: F.

    Raises:
        ValueError: a size or width below 1, or a norm that needs places.

    Source: Hinton and Salakhutdinov 2006. There the units are logistic.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        widths: Sequence[int] = (1000, 500, 250, 30),
        activation: Callable[[], nn.Module] = nn.ReLU,
        output: nn.Module | None = None,
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not sizes or not widths or min(*sizes, *widths) < 1:
            raise ValueError(
                f"`sizes` and `widths` must be numbers of at least 1; got {list(sizes)} and {list(widths)}."
            )
        ladder = [math.prod(sizes), *widths]
        made = (activation, norm, dropout)
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(ladder, *made))
        last = nn.Sigmoid() if output is None else output
        self.decoder = nn.Sequential(*_layers(ladder[::-1], *made), last, nn.Unflatten(1, tuple(sizes)))
        self.code_size = widths[-1]
        self._sizes = tuple(sizes)

    def forward(self, x: Float[Tensor, "B *S"]) -> Float[Tensor, "B *S"]:
        """The examples as they come back."""
        if tuple(x.shape[1:]) != self._sizes:
            raise ValueError(
                f"the network takes examples of the sizes {self._sizes}; got the shape {tuple(x.shape)}. Build it for theirs."
            )
        return self.decoder(self.encoder(x))


class MaskingNoise(nn.Module):
    """Sets a share of the values to 0, in training mode alone.

    Args:
        share: of the values.

    Source: Vincent et al. 2008, section 2.3. It draws as torch's dropout does, whose scaling it takes back.
    """

    def __init__(self, share: float = 0.3) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"`share` must lie in [0, 1), or nothing is left to restore from; got {share}.")
        self._dropout = nn.Dropout(share)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return self._dropout(x) * (1 - self._dropout.p) if self.training else x


class GaussianNoise(nn.Module):
    """Adds normal noise, in training mode alone.

    Args:
        std: its standard deviation.

    Source: Vincent et al. 2010, section 3.3. It draws from torch's generator, as dropout does.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise ValueError(f"`std` must be a finite number of at least 0; got {std}.")
        self._std = std

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self._std * torch.randn_like(x) if self.training else x


class DenoisingAutoencoder(nn.Module):
    """An autoencoder that is shown disturbed examples; its loss is to be taken against the clean ones.

    Args:
        autoencoder: returns examples of the shape it is given: a `DenseAutoencoder`, or
            `nn.Sequential(ConvEncoder(...), ConvDecoder(...))`.
        noise: changes examples in training mode alone.

    Attributes:
        autoencoder: as given.
        noise: as given.

    Source: Vincent et al. 2008.
    """

    def __init__(self, autoencoder: nn.Module, noise: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.noise = noise

    def forward(self, x: Float[Tensor, "B *S"]) -> Float[Tensor, "B *S"]:
        """The examples as they come back."""
        return self.autoencoder(self.noise(x))


def _layers(ladder: Sequence[int], activation: Callable[[], nn.Module], norm: Norm, dropout: float) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(ladder), start=2):
        parts.append(nn.Linear(before, after))
        if number < len(ladder):
            parts += [norm.maps(after, 0), activation(), nn.Dropout(dropout)]
    return parts

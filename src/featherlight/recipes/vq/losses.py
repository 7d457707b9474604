"""How far a reconstruction is from what was to be reconstructed, and what two adversaries want.

Legend of shapes: B examples, C channels, H rows, W columns, T samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

_SPECTRUM_LENGTHS = (256, 512, 1024)
_QUIET = 1e-3


@dataclass(frozen=True, kw_only=True)
class ImageError:
    """Squared error over the variance of the data, and differences of the gradients of images.

    Attributes:
        variance: of the pixels of the training data.
        gradients: weight of the second term.
    """

    variance: float
    gradients: float = 0.0

    def __call__(self, output: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """Of each image."""
        losses = squared_error(output, target) / self.variance
        if self.gradients:
            losses = losses + self.gradients * gradient_difference(output, target) / self.variance**0.5
        return losses


@dataclass(frozen=True, kw_only=True)
class SoundError:
    """Squared error over the variance of the data, and differences of spectra.

    Attributes:
        variance: of the samples of the training data.
        spectra: weight of the second term.
    """

    variance: float
    spectra: float = 0.0

    def __call__(self, output: Float[Tensor, "B C T"], target: Float[Tensor, "B C T"]) -> Float[Tensor, "B"]:
        """Of each sound."""
        losses = squared_error(output, target) / self.variance
        if self.spectra:
            losses = losses + self.spectra * spectral_difference(output, target)
        return losses


def squared_error(output: Tensor, target: Tensor) -> Float[Tensor, "B"]:
    """Mean squared error of each example."""
    return (output - target).square().flatten(1).mean(1)


def gradient_difference(
    output: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], *, sizes: int = 3
) -> Float[Tensor, "B"]:
    """Mean absolute difference of the differences between neighbouring pixels, at full size, half and quarter.

    Blur takes differences away that the squared error hardly counts. It stands for a perceptual term such as LPIPS where no
    pretrained network is to be had, and is no measure of what people see.

    Args:
        output: the reconstruction.
        target: what it is of.
        sizes: how many sizes, each half of the one before, as far as the image has two pixels a side.

    Source: Mathieu, Couprie and LeCun 2016, equation 6, at several sizes.
    """
    total = output.new_zeros(len(output))
    error = output - target
    counted = 0
    for _ in range(sizes):
        if min(error.shape[-2:]) < 2:
            break
        total = total + error.diff(dim=-1).abs().flatten(1).mean(1) + error.diff(dim=-2).abs().flatten(1).mean(1)
        counted += 2
        error = avg_pool2d(error, 2)
    return total / max(1, counted)


def spectral_difference(output: Float[Tensor, "B C T"], target: Float[Tensor, "B C T"]) -> Float[Tensor, "B"]:
    """Mean absolute difference of the logarithms of the magnitudes of spectra, for windows of several lengths.

    Source: Yamamoto, Song and Kim 2020, section 2.2; the logarithms alone, since the squared error has the magnitudes.
    """
    total = output.new_zeros(len(output))
    lengths = [length for length in _SPECTRUM_LENGTHS if length <= output.shape[-1]]
    for length in lengths:
        window = torch.hann_window(length, device=output.device, dtype=output.dtype)
        first, second = (
            torch.stft(x.flatten(0, 1), length, length // 4, window=window, center=False, return_complex=True).abs()
            for x in (output, target)
        )
        difference = (first.clamp(min=_QUIET).log() - second.clamp(min=_QUIET).log()).abs()
        total = total + difference.flatten(1).mean(1).view(len(output), -1).mean(1)
    return total / max(1, len(lengths))


def deception(discriminator: nn.Module, output: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """What the maker of images wants: that they are taken for real. The discriminator gets no gradient.

    Source: Lim and Ye 2017; Esser et al. 2021, equation 6, with the hinge of their code.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return -torch.func.functional_call(discriminator, frozen, (output,)).flatten(1).mean(1)


def hinge(discriminator: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
    """What the discriminator wants: above 1 for `real` images, below -1 for `fake` ones."""
    real, fake = discriminator(batch["real"]), discriminator(batch["fake"])
    return 0.5 * (relu(1 - real).flatten(1).mean(1) + relu(1 + fake).flatten(1).mean(1))

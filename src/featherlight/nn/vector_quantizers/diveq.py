"""DiVeQ: quantization as adding an error vector that a gradient can pass.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, K codes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook
from featherlight.nn.vector_quantizers.noise import NoiseStream
from featherlight.nn.vector_quantizers.positions import to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized


class DiVeQ(nn.Module):
    """The nearest code, reached from the vector along a noisy direction; codes learn from the task's loss alone.

    In training the values are x + |c - x| * u, with c the nearest code and u the direction of c - x + noise, held constant:
    of the length of the true error, and differentiable in the vector and in the code. No auxiliary loss, no straight-through
    gradient. In evaluation mode they are the codes themselves, with the gradient of a noise of 0.

    Args:
        codebook: learnable, a single book.
        noise_std: standard deviation of the noise in each feature; small against the quantization error, or values leave
            the codes. 0 takes the values onto the codes in training as well.
        seed: of the noise.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W).

    Attributes:
        dim: F, features of a vector.
        codebook: as given.
        noise: where its random numbers come from; saved with the module.

    Raises:
        ValueError: a codebook that is not learnable or has several books, or a negative noise.

    In training it must stay outside of `torch.utils.checkpoint`: computed again it would draw anew, which is refused.

    Cost: a search for the nearest code and N * F random numbers.
    Source: Vali, Bäckström, Solin 2025, "DiVeQ: differentiable vector quantization using the reparameterization trick",
    arXiv 2509.26469. The formula follows the authors' published code, whose default standard deviation is 1e-3 although it
    names it a variance. Without their replacement of unused codes (codes start from data here) and without the space-filling
    variant.
    """

    code_shape: tuple[int, ...] = ()
    """No axes of codes: one index a position."""

    def __init__(self, codebook: Codebook, *, noise_std: float = 1e-3, seed: int = 0, channel_axis: int = -1) -> None:
        super().__init__()
        if not codebook.learnable or codebook.num_books != 1:
            raise ValueError(
                "`codebook` must be learnable, as its codes are moved by gradients alone, and a single book; got "
                f"learnable={codebook.learnable}, num_books={codebook.num_books}. Make it with `learnable=True`."
            )
        if noise_std < 0:
            raise ValueError(f"`noise_std` must not be negative, being a standard deviation; got {noise_std}.")
        self.codebook, self.noise_std, self.channel_axis = codebook, noise_std, channel_axis
        self.dim = codebook.dim
        self.noise = NoiseStream(seed)

    @property
    def bits_per_position(self) -> float:
        """Bits of a code's index."""
        return math.log2(self.codebook.num_codes)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Quantizes the vectors of `x`; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        rows_NF = positions.rows_NF
        with without_autocast(x):
            codes_KF = self.codebook.codes_for(rows_NF, positions.mask_N)
            indices_N = nearest_codes(rows_NF, codes_KF)
            values_NF = self._reach(rows_NF, nn.functional.embedding(indices_N, codes_KF))
        return Quantized(
            positions.to_values(values_NF), Codes(positions.to_indices(indices_N)), torch.zeros((), device=x.device)
        )

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`, in the dtype of the codebook; 0 where an index is -1."""
        return self.codebook(codes.indices).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"noise_std={self.noise_std}, seed={self.noise.seed}, channel_axis={self.channel_axis}"

    def _reach(self, rows_NF: Float[Tensor, "N F"], chosen_NF: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """From the rows to the codes, or in training close to them."""
        error_NF = chosen_NF - rows_NF
        direction_NF = error_NF.detach()
        noisy = self.training and self.noise_std > 0
        if noisy:
            direction_NF = direction_NF + self.noise_std * self.noise.normal(*rows_NF.shape)
        distance_N1 = torch.linalg.vector_norm(error_NF, dim=-1, keepdim=True)
        step_NF = distance_N1 * normalize(direction_NF, dim=-1, eps=torch.finfo(rows_NF.dtype).tiny)
        if noisy:
            return rows_NF + step_NF
        return chosen_NF.detach() + (rows_NF - rows_NF.detach()) + (step_NF - step_NF.detach())

"""Gumbel-softmax quantization: codes are drawn from scores, with a gradient through a soft draw.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, K codes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.codebook import Codebook
from featherlight.nn.vector_quantizers.noise import NoiseStream
from featherlight.nn.vector_quantizers.positions import Positions, to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized


class GumbelQuantizer(nn.Module):
    """Scores of the codes, linear in the vector; in training a code is drawn by them, in evaluation mode the best is taken.

    A draw adds Gumbel noise to the scores and takes the greatest; its gradient is that of softmax((scores + noise) /
    temperature), passed straight through. The loss pulls the scores to equal use: weight * KL(softmax(scores) || uniform),
    averaged over positions. The inputs choose among codes, they need not be near them: the error against the inputs says
    nothing here.

    Args:
        codebook: learnable, a single book, without data initialisation (`init=None`), as codes are not near the inputs.
        temperature: of the soft draw; see `set_temperature`. Jang et al. and the users of the method lower it over training,
            from 1 to 1/16.
        divergence: weight of the loss.
        seed: of the noise.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W).

    Attributes:
        dim: F, features of a vector.
        codebook: as given.
        to_scores: the linear map from vectors to scores.
        temperature: (), float32, saved with the module.
        noise: where its random numbers come from; saved with the module.

    Raises:
        ValueError: another kind of codebook, a temperature of 0 or less, or a negative divergence.

    In training it must stay outside of `torch.utils.checkpoint`: computed again it would draw anew, which is refused.

    Cost: two products of N by F by K, N * K random numbers, and some buffers of that size, which the gradient needs.
    Source: Jang, Gu, Poole 2017, "Categorical reparameterization with Gumbel-softmax", arXiv 1611.01144; as a quantizer in
    Ramesh et al. 2021, arXiv 2102.12092, section 2.1, and Esser et al. 2021, arXiv 2012.09841, whose code has the scores and
    loss of here.
    """

    code_shape: tuple[int, ...] = ()
    """No axes of codes: one index a position."""

    temperature: Tensor

    def __init__(
        self,
        codebook: Codebook,
        *,
        temperature: float = 1.0,
        divergence: float = 5e-4,
        seed: int = 0,
        channel_axis: int = -1,
    ) -> None:
        super().__init__()
        if not codebook.learnable or codebook.num_books != 1 or codebook.init is not None:
            raise ValueError(
                "`codebook` must be a single book, learnable, as its codes are moved by gradients alone, and made with "
                f"`init=None`, as they are not near the inputs; got learnable={codebook.learnable}, "
                f"num_books={codebook.num_books}, init={codebook.init}."
            )
        if divergence < 0:
            raise ValueError(f"`divergence` must not be negative, or codes would be left out of use; got {divergence}.")
        self.codebook, self.divergence, self.channel_axis = codebook, divergence, channel_axis
        self.dim = codebook.dim
        self.to_scores = nn.Linear(codebook.dim, codebook.num_codes)
        self.noise = NoiseStream(seed)
        self.register_buffer("temperature", torch.ones(()))
        self.set_temperature(temperature)

    @property
    def bits_per_position(self) -> float:
        """Bits of a code's index."""
        return math.log2(self.codebook.num_codes)

    def set_temperature(self, temperature: float) -> None:
        """Sets the temperature of the soft draw, for a schedule; compiled code goes on with the new one.

        Raises:
            ValueError: 0 or less.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` must be above 0 and finite, as scores are divided by it; got {temperature}. 1 down to 1/16 "
                "is usual."
            )
        self.temperature.fill_(temperature)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Draws or takes codes for the vectors of `x`; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        rows_NF = positions.rows_NF
        with without_autocast(x):
            bias_K = self.to_scores.bias.to(rows_NF.dtype)
            scores_NK = nn.functional.linear(rows_NF, self.to_scores.weight.to(rows_NF.dtype), bias_K)
            drawn_NK = scores_NK
            if self.training:
                drawn_NK = scores_NK + self.noise.gumbel(*scores_NK.shape)
            indices_N = drawn_NK.argmax(-1)
            values_NF = self._look_up(indices_N, drawn_NK)
            aux_loss = self._divergence(positions, scores_NK)
        return Quantized(positions.to_values(values_NF), Codes(positions.to_indices(indices_N)), aux_loss)

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`, in the dtype of the codebook; 0 where an index is -1."""
        return self.codebook(codes.indices).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"divergence={self.divergence}, seed={self.noise.seed}, channel_axis={self.channel_axis}"

    def _look_up(self, indices_N: Tensor, drawn_NK: Tensor) -> Tensor:
        """The codes, (N, F): with gradients to them and, where they are asked for, to the scores."""
        codes_KF = self.codebook.weight.to(drawn_NK.dtype)
        chosen_NF = nn.functional.embedding(indices_N, codes_KF)
        if not (torch.is_grad_enabled() and drawn_NK.requires_grad):
            return chosen_NF
        shares_NK = torch.softmax(drawn_NK / self.temperature.to(drawn_NK.dtype), dim=-1)
        mixed_NF = shares_NK @ codes_KF.detach()
        return chosen_NF + (mixed_NF - mixed_NF.detach())

    def _divergence(self, positions: Positions, scores_NK: Tensor) -> Tensor:
        """Weighted KL(softmax(scores) || uniform), in nats."""
        if not self.training or not self.divergence:
            return torch.zeros((), device=scores_NK.device)
        logs_NK = torch.log_softmax(scores_NK, dim=-1)
        divergence_N = (logs_NK.exp() * (logs_NK + math.log(scores_NK.shape[1]))).sum(-1)
        return (self.divergence * positions.mean(divergence_N)).float()

"""SimVQ: a frozen codebook seen through one learned linear map, which moves all codes at once.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, K codes, D features of a frozen
code.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, StraightThrough
from featherlight.nn.vector_quantizers.positions import to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized


class SimVQ(nn.Module):
    """The nearest of the codes W c_k, where the c_k are random and fixed and only W is learned.

    A gradient at any code moves all of them, so that none is left behind: the codebook does not collapse without further care.

    Args:
        codebook: the fixed codes, a single book that is not learnable, made with `init=None`: random ones are meant.
        dim: F, features of a vector; None takes those of the codebook.
        gradient: how gradients come from the codes to the inputs.
        commitment: weight of the mean squared distance that pulls the inputs to their codes; the one that pulls the codes has
            weight 1.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W).

    Attributes:
        dim: F, features of a vector.
        codebook: as given.
        transform: W, a linear layer without bias from D to F features.

    Raises:
        ValueError: another kind of codebook, a dim below 1, or a negative commitment.

    Cost: that of a search for the nearest code, and a product of K by D by F.
    Source: Zhu et al. 2024, "Addressing representation collapse in vector quantized models with one linear layer",
    arXiv 2411.02038, algorithm 1.
    """

    code_shape: tuple[int, ...] = ()
    """No axes of codes: one index a position."""

    def __init__(
        self,
        codebook: Codebook,
        *,
        dim: int | None = None,
        gradient: GradientEstimator = StraightThrough(),  # noqa: B008
        commitment: float = 0.25,
        channel_axis: int = -1,
    ) -> None:
        super().__init__()
        if codebook.learnable or codebook.num_books != 1 or codebook.init is not None:
            raise ValueError(
                "`codebook` must be a single book that stays as it is: only the linear map is learned. Make it with "
                f"`learnable=False, init=None`; got learnable={codebook.learnable}, num_books={codebook.num_books}, "
                f"init={codebook.init}."
            )
        self.dim = codebook.dim if dim is None else dim
        if self.dim < 1 or not 0 <= commitment < math.inf:
            raise ValueError(
                f"`dim` must be at least 1 and `commitment` finite and not negative; got {dim} and {commitment}."
            )
        self.codebook, self.gradient = codebook, gradient
        self.commitment, self.channel_axis = commitment, channel_axis
        self.transform = nn.Linear(codebook.dim, self.dim, bias=False)

    @property
    def bits_per_position(self) -> float:
        """Bits of a code's index."""
        return math.log2(self.codebook.num_codes)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Quantizes the vectors of `x`; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        rows_NF = positions.rows_NF
        with without_autocast(x):
            weight_FD = self.transform.weight.to(rows_NF.dtype)
            codes_KF = nn.functional.linear(self.codebook.weight.to(rows_NF.dtype), weight_FD)
            indices_N = nearest_codes(rows_NF, codes_KF)
            chosen_NF = nn.functional.embedding(indices_N, codes_KF)
        aux_loss = torch.zeros((), device=x.device)
        if self.training:
            pull_N = (rows_NF.detach() - chosen_NF).square().mean(-1)
            commit_N = (rows_NF - chosen_NF.detach()).square().mean(-1)
            aux_loss = positions.mean(pull_N + self.commitment * commit_N).float()
        values = positions.to_values(self.gradient(rows_NF, chosen_NF))
        return Quantized(values, Codes(positions.to_indices(indices_N)), aux_loss)

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`, in the dtype of the module; 0 where an index is -1."""
        with without_autocast(codes.indices):
            return self.transform(self.codebook(codes.indices)).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"gradient={self.gradient}, commitment={self.commitment}, channel_axis={self.channel_axis}"

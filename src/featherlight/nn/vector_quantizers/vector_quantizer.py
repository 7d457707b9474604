"""The plain vector quantizer: one code for each vector, or one for each head of it.

Legend of shapes: ... are positions, N all of them, D features of a vector, H heads, F = D / H features of a code, K codes,
B codebooks (1 or H), M = N * H / B rows that a book stands for.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.assignment import Assignment, Nearest
from featherlight.nn.vector_quantizers.codebook import Codebook, look_up
from featherlight.nn.vector_quantizers.compatibility import read_options
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, StraightThrough
from featherlight.nn.vector_quantizers.learning import Assigned, EmaUpdate, GradientUpdate, Learning
from featherlight.nn.vector_quantizers.positions import Positions, to_rows, without_autocast
from featherlight.nn.vector_quantizers.projected import ProjectedQuantizer
from featherlight.nn.vector_quantizers.recomputation import refuse_recomputation
from featherlight.nn.vector_quantizers.results import Codes, Quantized


class VectorQuantizer(nn.Module):
    """Replaces each vector by its nearest code.

    Args:
        codebook: the codes; F features each. A book for each head has `num_books=heads`, one for all has a single book.
        assign: which code stands for a vector.
        learn: how codes learn; None takes `GradientUpdate()` for a learnable codebook, otherwise `EmaUpdate()`.
        gradient: how the gradient at the values reaches the input.
        commitment: weight of the mean squared distance of vectors to their codes, which holds vectors near codes.
        heads: H, parts of equal length that a vector is cut into, each with a code of its own.
        channel_axis: where features stand in the input; 1 for image maps.

    Attributes:
        dim: D, heads * F.
        learner: keeps the statistics of `learn`.

    Raises:
        ValueError: a codebook that does not fit `heads` or `learn`, or a negative commitment.

    Indices have the shape of the positions, with an axis of heads behind if there are several. Statistics change in training
    mode alone; where they set codes, the layer must stay outside of `torch.utils.checkpoint`. Cost: a product of the rows and
    the codes, and little besides; no (N, K) matrix is held.
    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    def __init__(
        self,
        codebook: Codebook,
        *,
        assign: Assignment = Nearest(),  # noqa: B008
        learn: Learning | None = None,
        gradient: GradientEstimator = StraightThrough(),  # noqa: B008
        commitment: float = 0.25,
        heads: int = 1,
        channel_axis: int = -1,
    ) -> None:
        super().__init__()
        if heads < 1 or codebook.num_books not in (1, heads):
            raise ValueError(
                f"A quantizer of {heads} heads takes a codebook with `num_books={heads}`, one for each, or `num_books=1`, one "
                f"for all; got {codebook.num_books}."
            )
        if not 0 <= commitment < math.inf:
            raise ValueError(
                f"`commitment` must not be negative (it would drive vectors from codes) or infinite; got {commitment}."
            )
        if learn is None:
            learn = GradientUpdate() if codebook.learnable else EmaUpdate()
        self.codebook = codebook
        self.learner = learn.attach(codebook)
        self.assign, self.gradient = assign, gradient
        self.commitment, self.heads, self.channel_axis = commitment, heads, channel_axis
        self.dim = codebook.dim * heads

    @classmethod
    def from_options(cls, **options: Any) -> "VectorQuantizer | ProjectedQuantizer":
        """A quantizer by the option names of vector-quantize-pytorch, with its defaults; see `VectorQuantizeOptions`.

        Args:
            options: `dim=`, `codebook_size=`, `decay=`, `commitment_weight=`, `heads=`, ...

        Returns:
            The quantizer, between linear maps where `codebook_dim * heads` is not `dim`.

        Raises:
            ValueError: an option that is unknown or has no counterpart.
        """
        chosen = read_options(options)
        quantizer = cls(
            chosen.codebook(),
            assign=chosen.assign(),
            learn=chosen.learn(),
            gradient=chosen.gradient(),
            commitment=chosen.commitment_weight,
            heads=chosen.heads,
            channel_axis=-1 if chosen.projected else chosen.channel_axis,
        )
        return (
            ProjectedQuantizer(quantizer, chosen.dim, channel_axis=chosen.channel_axis)
            if chosen.projected
            else quantizer
        )

    @property
    def bits_per_position(self) -> float:
        """heads * log2(K)."""
        return self.heads * math.log2(self.codebook.num_codes)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(H,), or no axis for a single head."""
        return (self.heads,) if self.heads > 1 else ()

    def forward(self, x: Float[Tensor, "..."], *, mask: Bool[Tensor, "..."] | None = None) -> Quantized:
        """Quantizes the vectors of `x`.

        Args:
            x: any float dtype, D features at `channel_axis`. The search is made in float32, or float64 for float64.
            mask: True at positions that count, shape of `x` without features.

        Raises:
            ValueError: see `to_rows`; while codes start from data also what `Codebook.start` refuses.
        """
        if self.training and self.learner.writes_codes:
            refuse_recomputation("codes")
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        with without_autocast(x):
            rows_BMF = self.assign.prepare(self._by_book(positions.rows_NF))
            mask_M = self._mask_by_row(positions)
            if self.training and self.codebook.waits:
                self.learner.restart(self.codebook, self.codebook.start(rows_BMF, mask_M))
            codes_BKF = self._prepared_codes(rows_BMF.dtype)
            indices_BM = self.assign(rows_BMF, codes_BKF)
            chosen_BMF = nn.functional.embedding(self._in_all_books(indices_BM), codes_BKF.flatten(0, 1))
            values_BMF = self.gradient(rows_BMF, chosen_BMF)
            aux_loss = self._loss(positions, rows_BMF, chosen_BMF)
            if self.training:
                self.learner.update(self.codebook, Assigned(rows_BMF, indices_BM, chosen_BMF, mask_M))
        indices_NH = self._by_position(indices_BM[..., None])
        indices = positions.to_indices(indices_NH if self.heads > 1 else indices_NH[:, 0])
        return Quantized(positions.to_values(self._by_position(values_BMF)), Codes(indices), aux_loss)

    def codes_to_values(self, codes: Codes) -> Tensor:
        """The values of `codes`, in the layout of the inputs and the dtype of the codebook.

        Raises:
            ValueError: weights, indices of another shape than this quantizer's, or outside its codebook.
        """
        indices = codes.indices
        if codes.weights is not None:
            raise ValueError(
                "This quantizer has one whole code for each head, but these codes have weights: another made them."
            )
        if self.heads > 1 and (indices.ndim == 0 or indices.shape[-1] != self.heads):
            raise ValueError(
                f"Indices of a quantizer of {self.heads} heads have an axis of {self.heads} at the end; got shape "
                f"{tuple(indices.shape)}."
            )
        if self.heads == 1:
            indices = indices[..., None]
        books = self._prepared_codes(self.codebook.weight.dtype)
        parts = [look_up(books[head % len(books)], indices[..., head]) for head in range(self.heads)]
        return torch.cat(parts, -1).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """Parts, for `print`."""
        return (
            f"assign={self.assign}, gradient={self.gradient}, commitment={self.commitment}, heads={self.heads}, "
            f"channel_axis={self.channel_axis}"
        )

    def _by_book(self, rows_ND: Tensor) -> Tensor:
        """(N, D) to (B, M, F)."""
        if self.codebook.num_books == 1:
            return rows_ND.reshape(1, -1, self.codebook.dim)
        return rows_ND.unflatten(1, (self.heads, -1)).transpose(0, 1)

    def _by_position(self, rows_BMX: Tensor) -> Tensor:
        """(B, M, X) to (N, H * X)."""
        if self.codebook.num_books == 1:
            return rows_BMX.reshape(-1, self.heads * rows_BMX.shape[2])
        return rows_BMX.transpose(0, 1).flatten(1)

    def _mask_by_row(self, positions: Positions) -> Tensor | None:
        if positions.mask_N is None or self.codebook.num_books > 1:
            return positions.mask_N
        return positions.mask_N.repeat_interleave(self.heads)

    def _in_all_books(self, indices_BM: Tensor) -> Tensor:
        if self.codebook.num_books == 1:
            return indices_BM
        return indices_BM + self.codebook.num_codes * torch.arange(self.heads, device=indices_BM.device)[:, None]

    def _prepared_codes(self, dtype: torch.dtype) -> Tensor:
        """(B, K, F). Learnable codes are copied in training, since dead ones are replaced before the backward pass."""
        books = self.codebook.books.to(dtype)
        return self.assign.prepare(books.clone() if self.training and self.codebook.learnable else books)

    def _loss(self, positions: Positions, rows_BMF: Tensor, chosen_BMF: Tensor) -> Tensor:
        """Commitment, and what moves the codes; both squared errors per feature, with a gradient to one side."""
        loss = torch.zeros((), dtype=torch.float32, device=rows_BMF.device)
        if not self.training:
            return loss
        if self.commitment:
            error = (rows_BMF - chosen_BMF.detach()).square()
            loss = loss + self.commitment * positions.mean(self._by_position(error).mean(1))
        if self.learner.loss_weight:
            error = (rows_BMF.detach() - chosen_BMF).square()
            loss = loss + self.learner.loss_weight * positions.mean(self._by_position(error).mean(1))
        return loss.float()

"""Soft convex quantization: each vector becomes a convex mixture of codes, the answer of a small convex program.

Legend of shapes: ... are positions, N all of them, F features, K codes, k codes that are mixed at a position.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.assignment import nearest_codes
from featherlight.nn.vector_quantizers.balancing import Balancing, EntropyBalancing
from featherlight.nn.vector_quantizers.codebook import Codebook, look_up
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, StraightThrough
from featherlight.nn.vector_quantizers.mixing import Exact, Mixing, bits_of
from featherlight.nn.vector_quantizers.positions import Positions, to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid
from featherlight.objective import NonFiniteLossError
from featherlight.solvers.simplex_qp.pricing import unit_of


class SoftConvexQuantizer(nn.Module):
    """Replaces each vector z by the mixture C' p of codes with the least ||z - C' p||^2 + lambda ||p - e_nearest||^2.

    The shares p are at least 0 and sum to 1. lambda is `strength` times the mean squared distance of the codes from their
    mean, so vectors and codes that are scaled together keep their shares. A large strength gives the nearest code, as a
    vector quantizer does; a small one the nearest point of the codes' hull.

    Args:
        codebook: the codes, a single book with `learnable=True`. Give them a learning rate of their own with
            `codebook_parameter_groups`.
        mixing: how many codes are mixed and how they are found: `Exact()`, `Relaxed()` or `Sparse(k)`.
        strength: of the pull to the nearest code, above 0, relative to the spread of the codes.
        weight_grid: what shares are rounded to; None leaves them as they are.
        gradient: how the gradient at the values reaches the input. None is the true one, by the optimality conditions; it
            has the directions between the codes in use alone, so that `Sparse` trains an encoder better with
            `StraightThrough()`. That of the codes is the true one in any case.
        commitment: weight of the mean squared error per feature that pulls vectors to their mixtures. Codes are pulled
            to vectors with weight 1.
        balancing: a term that spreads the use of codes in training; None goes without.
        channel_axis: where features stand in the input; 1 for image maps.

    Attributes:
        dim: F.
        hard: whether each position takes its nearest code alone, for deployment. False at first.

    Raises:
        ValueError: a strength that is not above 0, a codebook that does not learn or has several books, fewer codes than
            are mixed, or a negative commitment.

    Codes of `Sparse` and hard codes compile, export and run in ONNX Runtime. Source: Gautam et al. 2023, "Soft Convex
    Quantization" (arXiv 2310.03004). There lambda is absolute.
    """

    def __init__(
        self,
        codebook: Codebook,
        *,
        mixing: Mixing = Exact(),  # noqa: B008
        strength: float = 0.01,
        weight_grid: WeightGrid | None = None,
        gradient: GradientEstimator | None = None,
        commitment: float = 0.25,
        balancing: Balancing | None = EntropyBalancing(),  # noqa: B008
        channel_axis: int = -1,
    ) -> None:
        super().__init__()
        _check(codebook, strength, commitment)
        self._width = mixing.width(codebook.num_codes, codebook.dim)
        self.codebook = codebook
        self.mixing, self.strength, self.weight_grid = mixing, strength, weight_grid
        self.gradient, self.commitment, self.balancing = gradient, commitment, balancing
        self.channel_axis = channel_axis
        self.dim = codebook.dim
        self.hard = False

    @property
    def bits_per_position(self) -> float:
        """log2(K) of hard codes; of mixtures see `bits_of`."""
        if self.hard:
            return math.log2(self.codebook.num_codes)
        return bits_of(self._width, self.codebook.num_codes, self.weight_grid)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(k,), or no axis for hard codes."""
        return () if self.hard else (self._width,)

    def forward(self, x: Float[Tensor, "..."], *, mask: Bool[Tensor, "..."] | None = None) -> Quantized:
        """Quantizes the vectors of `x`.

        Args:
            x: any float dtype, F features at `channel_axis`. Computed in float32, or float64 for float64.
            mask: True at positions that count, shape of `x` without features.

        Raises:
            ValueError: see `to_rows`; while codes start from data also what `Codebook.start` refuses.
            NonFiniteLossError: outside torch.compile and torch.export, a vector so large beside the codes that its square is
                infinite in units of theirs; in compiled code it gets no code and value 0.
        """
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        with without_autocast(x):
            rows_NF = positions.rows_NF
            codes_KF = self.codebook.codes_for(rows_NF, positions.mask_N)
            unit = unit_of(codes_KF)
            quantize = self._nearest if self.hard else self._mixed
            # The quotient is a copy, too: while codes wait, the next batch may write them before this one's backward pass.
            chosen_NF, values_NF, indices, weights = quantize(rows_NF / unit, codes_KF / unit)
            if not torch.compiler.is_compiling():
                _check_coded(indices, positions)
            chosen_NF, values_NF = chosen_NF * unit, values_NF * unit
            aux_loss = self._loss(positions, codes_KF, chosen_NF)
        weights = None if weights is None else positions.to_weights(weights.detach())
        return Quantized(positions.to_values(values_NF), Codes(positions.to_indices(indices), weights), aux_loss)

    def codes_to_values(self, codes: Codes) -> Tensor:
        """The values of `codes`, mixed or hard, in the layout of the inputs and the dtype of the codebook.

        Raises:
            ValueError: indices outside the codebook, or weights of another shape than the indices.
        """
        values = look_up(self.codebook.weight, codes.indices)
        if codes.weights is not None:
            if codes.weights.shape != codes.indices.shape:
                raise ValueError(
                    f"each index must have a weight; got indices of shape {tuple(codes.indices.shape)} and weights of shape "
                    f"{tuple(codes.weights.shape)}."
                )
            values = (values * codes.weights[..., None].to(values.dtype)).sum(-2)
        return values.movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """Parts, for `print`."""
        return (
            f"mixing={self.mixing}, strength={self.strength}, weight_grid={self.weight_grid}, gradient={self.gradient}, "
            f"commitment={self.commitment}, balancing={self.balancing}, channel_axis={self.channel_axis}, hard={self.hard}"
        )

    def _nearest(self, rows_NF: Tensor, codes_KF: Tensor) -> tuple[Tensor, Tensor, Int[Tensor, "N"], None]:
        """One code a row; its gradient goes straight through unless another estimator was chosen."""
        indices_N = nearest_codes(rows_NF, codes_KF)
        chosen_NF = nn.functional.embedding(indices_N, codes_KF)
        return chosen_NF, _estimated(self.gradient or StraightThrough(), rows_NF, chosen_NF), indices_N, None

    def _mixed(self, rows_NF: Tensor, codes_KF: Tensor) -> tuple[Tensor, Tensor, Int[Tensor, "N k"], Tensor]:
        """The mixtures as functions of the codes alone, for the loss; the values; the codes and their shares.

        Where vectors get the true gradient, the loss holds the shares fixed: they are the best ones, so that the error does
        not change with them, but for the part of the strength.
        """
        strength = relative_strength(self.strength, codes_KF)
        sources_NF = rows_NF if self.gradient is None else rows_NF.detach()
        chosen_NF, indices_Nk, weights_Nk = self.mixing.mix(sources_NF, codes_KF, strength, self.weight_grid)
        if self.weight_grid is not None:
            weights_Nk = self.weight_grid.nearest(weights_Nk)
            chosen_NF = _weighted(weights_Nk, indices_Nk, codes_KF)
            indices_Nk = torch.where(weights_Nk > 0, indices_Nk, -1)
        if self.gradient is None:
            held_NF = _weighted(weights_Nk.detach(), indices_Nk, codes_KF) if self.training else chosen_NF
            return held_NF, chosen_NF, indices_Nk, weights_Nk
        return chosen_NF, _estimated(self.gradient, rows_NF, chosen_NF), indices_Nk, weights_Nk

    def _loss(self, positions: Positions, codes_KF: Tensor, chosen_NF: Tensor) -> Tensor:
        """Codes to rows, rows to codes, and balance."""
        loss = torch.zeros((), dtype=torch.float32, device=codes_KF.device)
        if not self.training:
            return loss
        rows_NF = positions.rows_NF
        loss = loss + positions.mean((rows_NF.detach() - chosen_NF).square().mean(1))
        if self.commitment:
            loss = loss + self.commitment * positions.mean((rows_NF - chosen_NF.detach()).square().mean(1))
        if self.balancing is not None:
            loss = loss + self.balancing(rows_NF, codes_KF, positions.mask_N)
        return loss.float()


def relative_strength(strength: float, codes_KF: Float[Tensor, "K F"]) -> Float[Tensor, ""]:
    """lambda of the program: `strength` times the mean squared distance of codes from their mean, with its gradient.

    Codes that are all alike have no scale; the least positive number stands in for it.
    """
    spread = (codes_KF - codes_KF.mean(0)).square().sum(1).mean()
    return (strength * spread).clamp(min=torch.finfo(codes_KF.dtype).tiny)


def _estimated(gradient: GradientEstimator, rows_NF: Tensor, chosen_NF: Tensor) -> Tensor:
    """The chosen values, with the estimator's gradient for rows and their own for codes."""
    if not torch.is_grad_enabled():
        return chosen_NF
    return gradient(rows_NF, chosen_NF.detach()) + (chosen_NF - chosen_NF.detach())


def _weighted(weights_Nk: Tensor, indices_Nk: Tensor, codes_KF: Tensor) -> Float[Tensor, "N F"]:
    codes_NkF = nn.functional.embedding(indices_Nk.clamp(min=0), codes_KF)
    return torch.bmm(weights_Nk[:, None], codes_NkF)[:, 0]


def _check_coded(indices: Tensor, positions: Positions) -> None:
    """Looks whether every row has a code, which the solver gives to all that it can compute."""
    without_N = indices < 0 if indices.ndim == 1 else (indices < 0).all(1)
    if bool(without_N.any()):
        place = tuple(int(one) for one in without_N.view(positions.shape).nonzero()[0])
        raise NonFiniteLossError(
            f"The vector at position {place} is so large beside the codes that its square is infinite in units of theirs, so no "
            f"mixture is nearest to it; {int(without_N.sum())} positions are like it. Normalize the vectors, or start the codes "
            "from data (`init=KMeans()`)."
        )


def _check(codebook: Codebook, strength: float, commitment: float) -> None:
    if not (strength > 0 and math.isfinite(strength)):
        raise ValueError(
            f"`strength` must be above 0 and finite; got {strength}. At 0 shares are not unique; 1e-3 is close to the hull "
            "of the codes, and 100 to their nearest one."
        )
    if not codebook.learnable:
        raise ValueError(
            "The codes of a SoftConvexQuantizer learn by gradients, but the codebook was made with `learnable=False`. Make it "
            "with `learnable=True`; to keep codes as they are, set `codebook.weight.requires_grad_(False)`."
        )
    if codebook.num_books != 1:
        raise ValueError(
            f"A SoftConvexQuantizer mixes the codes of one book; got a codebook with `num_books={codebook.num_books}`. For "
            "several take a `GroupedQuantizer`."
        )
    if not 0 <= commitment < math.inf:
        raise ValueError(
            f"`commitment` must not be negative (it would drive vectors from codes) or infinite; got {commitment}."
        )

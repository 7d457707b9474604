"""The option names that users of vector-quantize-pytorch know, and the parts that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from featherlight.nn.vector_quantizers.assignment import Assignment, Cosine, Nearest
from featherlight.nn.vector_quantizers.codebook import Codebook
from featherlight.nn.vector_quantizers.dead_codes import ReplaceDead
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, RotationTrick, StraightThrough
from featherlight.nn.vector_quantizers.kmeans import KMeans
from featherlight.nn.vector_quantizers.learning import EmaUpdate, GradientUpdate, Learning

_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "commitment_use_cross_entropy_loss": (False,),
    "orthogonal_reg_weight": (0.0,),
    "orthogonal_reg_active_codes_only": (False, True),
    "orthogonal_reg_max_codes": (None,),
    "codebook_diversity_loss_weight": (0.0,),
    "stochastic_sample_codes": (False,),
    "sample_codebook_temp": (0.0, 1.0),
    "straight_through": (False,),
    "directional_reparam": (False,),
    "freeze_codebook": (False,),
    "layernorm_after_project_in": (False,),
    "manual_ema_update": (False,),
    "affine_param": (False,),
    "in_place_codebook_optimizer": (None,),
    "sync_codebook": (None, True, False),
    "sync_kmeans": (True,),
    "sync_update_v": (0.0,),
    "vq_bridge": (None,),
    "return_zeros_for_masked_padding": (True,),
    "route_gradients_to_input": (True,),
}
_ELSEWHERE = {
    "codes": "codebook_size",
    "num_codes": "codebook_size",
    "num_embeddings": "codebook_size",
    "n_embed": "codebook_size",
    "features": "dim",
    "embedding_dim": "dim",
    "commitment": "commitment_weight",
    "commitment_cost": "commitment_weight",
    "channel_axis": "channel_last",
}
"""What the same is called in this package and in others."""

_INSTEAD = {
    "freeze_codebook": "Call `eval()` on the quantizer instead.",
    "codebook_diversity_loss_weight": "Add a term that balances use to the loss instead.",
    "directional_reparam": "DiVeQ is a quantizer of its own here.",
    "vq_bridge": "SimVQ is a quantizer of its own here.",
    "stochastic_sample_codes": "The Gumbel quantizer is one of its own here.",
    "straight_through": "The Gumbel quantizer is one of its own here.",
    "in_place_codebook_optimizer": "Give codes a learning rate of their own with `codebook_parameter_groups` instead.",
}


@dataclass(frozen=True, kw_only=True)
class VectorQuantizeOptions:
    """Options of vector-quantize-pytorch's VectorQuantize that have a counterpart here, with its names and defaults.

    Args:
        dim: features of the vectors.
        codebook_size: codes.
        codebook_dim: features of a code; None takes `dim`. Where `codebook_dim * heads` is not `dim`, linear maps lead
            there and back.
        heads: parts of a vector with a code each.
        separate_codebook_per_head: whether heads have codebooks of their own.
        decay: of the moving averages.
        eps: of their counts.
        kmeans_init: whether codes start at means of the first batch.
        kmeans_iters: iterations of it.
        use_cosine_sim: whether codes are chosen by angle.
        threshold_ema_dead_code: use under which a code is replaced; 0 for never.
        channel_last: whether features are the last axis; otherwise they are axis 1.
        accept_image_fmap: whether inputs are (N, C, H, W).
        accept_3d_fmap: whether inputs are (N, C, D, H, W).
        commitment_weight: of the commitment loss.
        rotation_trick: whether gradients are rotated; None for yes if `dim` is above 1.
        learnable_codebook: whether codes are learned by gradients; None for no.
        ema_update: whether codes are learned by moving averages; None for the opposite of `learnable_codebook`.
    """

    dim: int
    codebook_size: int
    codebook_dim: int | None = None
    heads: int = 1
    separate_codebook_per_head: bool = False
    decay: float = 0.8
    eps: float = 1e-5
    kmeans_init: bool = False
    kmeans_iters: int = 10
    use_cosine_sim: bool = False
    threshold_ema_dead_code: float = 0
    channel_last: bool = True
    accept_image_fmap: bool = False
    accept_3d_fmap: bool = False
    commitment_weight: float = 1.0
    rotation_trick: bool | None = None
    learnable_codebook: bool | None = None
    ema_update: bool | None = None

    def __post_init__(self) -> None:
        if self.use_cosine_sim and self.learnable_codebook:
            raise ValueError(
                "`use_cosine_sim` and `learnable_codebook` are not combined by vector-quantize-pytorch; got both."
            )
        if self.ema_update is not None and self.ema_update == bool(self.learnable_codebook):
            raise ValueError(
                f"Codes learn either by moving averages or by gradients; got ema_update={self.ema_update} and "
                f"learnable_codebook={self.learnable_codebook}. Leave `ema_update` away."
            )

    @property
    def features(self) -> int:
        """Of a code."""
        return self.dim if self.codebook_dim is None else self.codebook_dim

    @property
    def projected(self) -> bool:
        """Whether linear maps are needed."""
        return self.features * self.heads != self.dim

    @property
    def channel_axis(self) -> int:
        """Where features stand."""
        return -1 if self.channel_last and not self.accept_image_fmap and not self.accept_3d_fmap else 1

    def codebook(self) -> Codebook:
        """The codes, with the peer's random start where they do not start from data."""
        book = Codebook(
            self.codebook_size,
            self.features,
            num_books=self.heads if self.separate_codebook_per_head else 1,
            learnable=bool(self.learnable_codebook),
            init=KMeans(batches=1, iterations=self.kmeans_iters) if self.kmeans_init else None,
        )
        with torch.no_grad():
            books = book.books
            torch.nn.init.kaiming_uniform_(books)
            if self.use_cosine_sim:
                books.copy_(Cosine().prepare(books))
        return book

    def assign(self) -> Assignment:
        """How codes are chosen."""
        return Cosine() if self.use_cosine_sim else Nearest()

    def learn(self) -> Learning:
        """How codes learn. The peer's single error has both gradients; here it is the sum of two with one each."""
        replace = ReplaceDead(threshold=self.threshold_ema_dead_code) if self.threshold_ema_dead_code > 0 else None
        if self.learnable_codebook:
            return GradientUpdate(weight=self.commitment_weight, replace=replace, decay=self.decay)
        return EmaUpdate(decay=self.decay, eps=self.eps, replace=replace)

    def gradient(self) -> GradientEstimator:
        """How gradients pass the choice."""
        rotate = self.dim > 1 if self.rotation_trick is None else self.rotation_trick
        return RotationTrick() if rotate else StraightThrough()


def read_options(options: Mapping[str, object]) -> VectorQuantizeOptions:
    """Options by name.

    Raises:
        ValueError: one is unknown, or has no counterpart here.
    """
    known: dict[str, object] = {}
    for name, value in options.items():
        if name in VectorQuantizeOptions.__dataclass_fields__:
            known[name] = value
        elif name not in _HARMLESS:
            raise ValueError(
                f"`{name}` is not an option of vector-quantize-pytorch that is known here.{_hint(name)} Known are "
                f"{', '.join(VectorQuantizeOptions.__dataclass_fields__)}."
            )
        elif value not in _HARMLESS[name]:
            raise ValueError(
                f"`{name}={value!r}` has no counterpart here. {_INSTEAD.get(name, 'Leave it away.')}".strip()
            )
    return VectorQuantizeOptions(**known)  # pyright: ignore[reportArgumentType]


def _hint(name: str) -> str:
    """The option that was meant, where its name is alike or is another one's for the same."""
    near = get_close_matches(name, VectorQuantizeOptions.__dataclass_fields__, n=1)
    meant = _ELSEWHERE.get(name) or (near[0] if near else None)
    return "" if meant is None else f" Did you mean `{meant}`?"

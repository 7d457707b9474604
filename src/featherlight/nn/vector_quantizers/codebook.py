"""The codes of a quantizer: where they lie, how they start, and how they are looked up.

Legend of shapes: B codebooks, K codes, F features of a code, N rows.
"""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.kmeans import KMeans, Start
from featherlight.nn.vector_quantizers.recomputation import refuse_recomputation


class DataInit(Protocol):
    """How codes start from the first batches, such as `KMeans`."""

    @property
    def batches(self) -> int:
        """The last batch that codes may start from."""
        ...

    def __call__(
        self,
        codes_BKF: Float[Tensor, "B K F"],
        rows_BNF: Float[Tensor, "B N F"],
        mask_N: Bool[Tensor, "N"] | None,
        batch: Int[Tensor, ""],
    ) -> Start:
        """Writes new codes to `codes_BKF` if it is time, from batch number `batch`, from 1; the same in all processes.

        A batch without rows that count must leave codes as they are; the number stays at 1 until they have started. Called
        within torch.compile too: what depends on values belongs into an operator.
        """
        ...


class Codebook(nn.Module):
    """K vectors of F features; or several such books, for quantizers with a book for each head or group.

    Args:
        num_codes: K, at least 2.
        dim: F, features of a code.
        num_books: B.
        learnable: whether codes are a parameter, moved by gradients; otherwise they are a buffer, moved by statistics.
        init: what sets the codes from the first batches in training; None keeps the random ones.

    Attributes:
        weight: (B * K, F); (K, F) for a single book. Random from torch's own generator at first: normal, of length about 1.
        batches: (), int64; how many batches `start` has seen, from the first with rows that count, at most those of
            `init`.

    Raises:
        ValueError: fewer than 2 codes, or sizes below 1.
    """

    weight: Tensor
    batches: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        num_books: int = 1,
        learnable: bool = False,
        init: DataInit | None = KMeans(),  # noqa: B008
    ) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(
                f"A codebook needs at least 2 codes (one carries no information); got `num_codes={num_codes}`. Sizes in "
                "use are 128 to 16384."
            )
        if dim < 1 or num_books < 1:
            raise ValueError(f"`dim` and `num_books` must be at least 1; got {dim} and {num_books}.")
        self.num_codes, self.dim, self.num_books, self.learnable = num_codes, dim, num_books, learnable
        self.init = init
        weight = torch.randn(num_books * num_codes, dim) / math.sqrt(dim)
        if learnable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._waits = init is not None
        self.register_load_state_dict_post_hook(_look_whether_codes_wait)

    @property
    def waits(self) -> bool:
        """Whether the next batch in training may set the codes, not if they are frozen; known without looking at a tensor."""
        return self._waits and (self.weight.requires_grad or not self.learnable)

    @property
    def books(self) -> Float[Tensor, "B K F"]:
        """The codes, book by book; a view."""
        return self.weight.view(self.num_books, self.num_codes, self.dim)

    def start(self, rows_BNF: Float[Tensor, "B N F"], mask_N: Bool[Tensor, "N"] | None = None) -> Start:
        """Sets the codes from the rows of a batch, of all processes together, if it is time; call it while `waits`.

        Args:
            rows_BNF: what the codes of each book will stand for.
            mask_N: True at the rows that count, for all books. Where none does in any process, codes stay as they are, and
                wait for the first batch with such rows.

        Raises:
            ValueError: a row of which codes would be made is not finite; called again by a backward pass.
        """
        assert self.init is not None
        refuse_recomputation("codes")
        with torch.no_grad():
            start = self.init(self.books, rows_BNF, mask_N, self.batches + 1)
            seen = start.restarted | (self.batches > 0)
            self.batches.add_(seen).clamp_(max=self.init.batches)
        if not torch.compiler.is_compiling():
            _look_whether_codes_wait(self)
        return start

    def codes_for(self, rows_NF: Float[Tensor, "N F"], mask_N: Bool[Tensor, "N"] | None) -> Float[Tensor, "K F"]:
        """The codes of a single book in the dtype of the rows; in training those rows start them if it is time.

        Args:
            rows_NF: what the codes will stand for.
            mask_N: True at the rows that count; None if all do.

        Raises:
            ValueError: see `start`.
        """
        if self.training and self.waits:
            self.start(rows_NF[None], mask_N)
        return self.weight.to(rows_NF.dtype)

    def train(self, mode: bool = True) -> "Codebook":
        """See `torch.nn.Module.train`. Compiled code, which cannot look at `batches` itself, stops asking here."""
        if self._waits and not self.batches.is_meta:
            _look_whether_codes_wait(self)
        return super().train(mode)

    def mark_started(self, started: bool = True) -> None:
        """Says that `weight` has been set by other means, and waits for no batch; or that it waits for the first."""
        self._waits = self.init is not None and not started
        self.batches.fill_(0 if self.init is None or not started else self.init.batches)

    def forward(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... F"]:
        """The codes at `indices` of `weight`, any shape; masked positions (-1) give 0."""
        return look_up(self.weight, indices)

    def extra_repr(self) -> str:
        """Sizes, for `print`."""
        books = f", num_books={self.num_books}" if self.num_books > 1 else ""
        return f"num_codes={self.num_codes}, dim={self.dim}{books}, learnable={self.learnable}, init={self.init}"


def _look_whether_codes_wait(codebook: Codebook, _: object = None) -> None:
    codebook._waits = codebook.init is not None and int(codebook.batches) < codebook.init.batches


def check_indices(indices: Int[Tensor, "..."], num_codes: int) -> None:
    """Raises ValueError, outside torch.compile, for an index under -1 or over K - 1."""
    if torch.compiler.is_compiling() or not indices.numel():
        return
    least, greatest = int(indices.min()), int(indices.max())
    if least < -1 or greatest >= num_codes:
        wrong = least if least < -1 else greatest
        raise ValueError(
            f"The codebook has {num_codes} codes, with indices 0 to {num_codes - 1} (-1 at masked positions); got {wrong}. "
            "Were these codes made by another quantizer?"
        )


def look_up(codes: Float[Tensor, "K F"], indices: Int[Tensor, "..."]) -> Float[Tensor, "... F"]:
    """The codes at `indices`, of any shape; 0 at masked positions, whose index is -1. Differentiable in the codes.

    Raises:
        ValueError: outside torch.compile, an index under -1 or over K - 1.
    """
    check_indices(indices, len(codes))
    values = nn.functional.embedding(indices.clamp(min=0), codes)
    return values.masked_fill((indices < 0)[..., None], 0.0)


def codebook_parameter_groups(
    model: nn.Module, *, lr: float, codebook_lr: float, **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, with a learning rate of their own for learnable codes and no decay for them.

    Args:
        model: with any number of codebooks in it.
        lr: learning rate of all other parameters.
        codebook_lr: of the codes; 5 to 10 times `lr` keeps them with latents that move.
        options: of all other parameters, such as `weight_decay`.

    Returns:
        Two groups; the second is missing where no codebook is learnable.
    """
    codes = [module.weight for module in model.modules() if isinstance(module, Codebook) and module.learnable]
    names = {id(one) for one in codes}
    others: Iterable[Tensor] = [one for one in model.parameters() if id(one) not in names]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr, **options}]
    if codes:
        groups.append({"params": codes, "lr": codebook_lr, "weight_decay": 0.0})
    return groups

"""The nearest code, however the search is cut into pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from featherlight.nn.vector_quantizers import Codebook, EmaUpdate, ReplaceDead, VectorQuantizer, assignment
from featherlight.nn.vector_quantizers.assignment import Cosine, Nearest


def _traced(rows: Tensor, codes: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The search as torch.compile and torch.export see it."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return Nearest()(rows, codes)


@pytest.mark.parametrize("num_codes", [2, 300, 512, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("books", [None, 3])
def test_each_way_of_searching_finds_the_least_distance(
    num_codes: int, dtype: torch.dtype, books: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "_CPU_CHUNK", 40_000)
    lead = () if books is None else (books,)
    generator = torch.Generator().manual_seed(num_codes)
    rows = torch.randn(*lead, 130, 7, generator=generator, dtype=dtype) + 3
    codes = torch.randn(*lead, num_codes, 7, generator=generator, dtype=dtype) + 3
    exact = (rows.double()[..., None, :] - codes.double()[..., None, :, :]).square().sum(-1)
    least = exact.amin(-1)
    for indices in (Nearest()(rows, codes), _traced(rows, codes, monkeypatch)):
        assert indices.shape == (*lead, 130)
        found = exact.gather(-1, indices[..., None])[..., 0]
        assert (found - least).max() <= (1e-5 if dtype == torch.float32 else 1e-13)
    cosine = torch.nn.functional.cosine_similarity(rows[..., None, :], codes[..., None, :, :], dim=-1)
    rule = Cosine()
    found = cosine.gather(-1, rule(rule.prepare(rows), rule.prepare(codes))[..., None])[..., 0]
    assert (cosine.amax(-1) - found).max() <= 1e-6


def test_of_equally_near_codes_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randn(256, 5, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    assert torch.equal(Nearest()(codes, codes), torch.arange(256).repeat(4))
    assert torch.equal(_traced(codes, codes.repeat(4, 1), monkeypatch), torch.arange(256).repeat(4))


def test_no_rows_have_no_codes() -> None:
    assert Nearest()(torch.zeros(0, 3), torch.zeros(512, 3)).shape == (0,)


class _LargestResult(TorchDispatchMode):
    """Watches the elements of every tensor that any operator makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_matrix_of_rows_by_codes_is_ever_made() -> None:
    torch.set_num_threads(1)
    layer = VectorQuantizer(Codebook(16_384, 4, init=None), learn=EmaUpdate(replace=ReplaceDead()))
    x = torch.randn(2048, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with _LargestResult() as largest:
        values, _, aux_loss = layer(x)
        (values.sum() + aux_loss).backward()
        layer.eval()(x)
    assert 16_384 * 4 <= largest.elements <= 2048 * 16_384 // 16

"""A matrix that is kept as whole numbers and behaves as the float matrix it stands for.

Legend of shapes: R rows, C columns, T rows of an activation, J directions of a low-rank change.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from featherlight.functional.integer_grid import IntegerGrid

_ELEMENTS_AT_ONCE = 1 << 21
_aten: Any = torch.ops.aten


class LowRankChange(Protocol):
    """What has been subtracted from a matrix but is not yet among its whole numbers: `decay * W - left^T right`."""

    @property
    def decay(self) -> float:
        """Factor of the stored matrix."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes it takes."""
        ...

    def factors(self) -> tuple[Float[Tensor, "J R"], Float[Tensor, "J C"]]:
        """`left`, with all rates in it, and `right`."""
        ...

    def apply_(self, rows: Float[Tensor, "n C"], first_row: int) -> None:
        """Changes rows of the stored matrix, in place and to the same bits on every machine."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...


class QuantizedTensor(Tensor):
    """A matrix kept as whole numbers of 8 or 4 bits, with the interface of the float matrix that it stands for.

    It takes the place of a layer's weight. Products read it in blocks of rows, at most 8 MB of floats at a time, and keep
    none of them for a backward pass; every other function is handed a float copy for the length of its call. Only
    `store_` and a copy from another such matrix write to it.

    The tensor subclasses of torchao 0.18 do not serve: its 4 bits stand in whole bytes or need a package for GPUs, its
    rows cannot be rounded in place, and its import prints and warns.

    Args:
        codes: the whole numbers as `grid` lays them out, (R, W).
        scales: of rows or groups, (R, G).
        grid: the layout.
        dtype: of the matrix that it stands for.
        merge_rank: directions up to which changes are kept beside the whole numbers as low-rank factors.
        change: what is kept so; None is nothing.
        requires_grad: as for every tensor.

    Attributes:
        codes: the whole numbers.
        scales: what one unit is worth.
        grid: the layout.
        merge_rank: when changes are rounded onto the grid.
        change: low-rank change that is not among the whole numbers.
    """

    codes: Tensor
    scales: Tensor
    grid: IntegerGrid
    merge_rank: int
    change: LowRankChange | None

    @staticmethod
    def __new__(
        cls,
        codes: Int[Tensor, "R W"],
        scales: Float[Tensor, "R G"],
        grid: IntegerGrid,
        *,
        dtype: torch.dtype,
        merge_rank: int,
        change: LowRankChange | None = None,
        requires_grad: bool = False,
    ) -> "QuantizedTensor":
        shape = (len(codes), grid.columns)
        make: Any = Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        self = make(cls, shape, dtype=dtype, device=codes.device, requires_grad=requires_grad)
        self.codes, self.scales, self.grid = codes, scales, grid
        self.merge_rank, self.change = merge_rank, change
        return self

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    @classmethod
    def rounded(cls, weight: Float[Tensor, "R C"], *, bits: int, group: int | None, merge_rank: int) -> Self:
        """A float matrix, rounded to the nearest.

        Raises:
            ValueError: not a matrix of finite floats, or a layout that there is not.
        """
        if weight.ndim != 2 or not weight.dtype.is_floating_point or not torch.isfinite(weight).all():
            raise ValueError(
                f"only a matrix of finite floating-point numbers can be held in {bits} bits; got shape "
                f"{tuple(weight.shape)}, {weight.dtype}."
            )
        if merge_rank < 0:
            raise ValueError(f"`merge_rank` must be at least 0 directions (0 rounds in every step); got {merge_rank}.")
        grid = IntegerGrid(bits=bits, columns=weight.shape[1], group=group)
        exact = weight.detach().to(_exact_dtype(weight.dtype))
        scales = grid.scales(exact)
        codes = torch.empty(
            len(weight), grid.row_bytes, dtype=torch.int8 if bits == 8 else torch.uint8, device=weight.device
        )
        made: Any = cls(codes, scales, grid, dtype=weight.dtype, merge_rank=merge_rank)
        for first, count in made.blocks():
            made.store_(exact[first : first + count], first)
        return made

    @property
    def num_bytes(self) -> int:
        """Bytes of whole numbers, scales and the change beside them."""
        beside = 0 if self.change is None else self.change.num_bytes
        return self.codes.nbytes + self.scales.nbytes + beside

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and number of rows of blocks that may be floats at one time."""
        at_once = max(1, _ELEMENTS_AT_ONCE // max(1, self.grid.columns))
        return ((first, min(at_once, len(self.codes) - first)) for first in range(0, len(self.codes), at_once))

    def exact_rows(self, first: int, count: int) -> Float[Tensor, "count C"]:
        """Some rows with the change applied, float32 (float64 for float64): the same bits everywhere."""
        rows = self._stored_rows(first, count, _exact_dtype(self.dtype))
        if self.change is not None:
            self.change.apply_(rows, first)
        return rows

    def store_(self, exact: Float[Tensor, "n C"], first: int, *, halves: Int[Tensor, "n C"] | None = None) -> None:
        """Rounds rows onto the grid and keeps them from row `first` on; `halves` as for `IntegerGrid.round`."""
        some = slice(first, first + len(exact))
        self.codes[some] = self.grid.round(exact, self.scales[some], halves=halves)

    def plain(self) -> Float[Tensor, "R C"]:
        """The whole matrix as floats of its dtype, the change included."""
        parts = [self.exact_rows(first, count).to(self.dtype) for first, count in self.blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else self.codes.new_empty(0, dtype=self.dtype)

    def product(self, x: Float[Tensor, "*b n"], *, transposed: bool) -> Float[Tensor, "*b m"]:
        """`x W^T` where `transposed`, else `x W`, in the dtype of `x` and without a graph."""
        rows, columns = self.shape
        flat = x.reshape(-1, x.shape[-1])
        factors = None if self.change is None else self.change.factors()
        is_few = len(flat) * (rows + columns) < rows * columns
        y = flat.new_zeros(len(flat), rows if transposed else columns)
        for first, count in self.blocks():
            weight = self._stored_rows(first, count, _exact_dtype(self.dtype))
            if self.change is not None and self.change.decay != 1.0:
                weight.mul_(self.change.decay)
            if factors is not None and not is_few:
                weight.addmm_(factors[0][:, first : first + count].T, factors[1], alpha=-1)
            weight = weight.to(x.dtype)
            if transposed:
                torch.mm(flat, weight.T, out=y[:, first : first + count])
            else:
                y.addmm_(flat[:, first : first + count], weight)
        if factors is not None and is_few:
            out, into = (one.to(x.dtype) for one in (factors if transposed else factors[::-1]))
            y.addmm_(flat @ into.T, out, alpha=-1)
        return y.view(*x.shape[:-1], y.shape[1])

    def _stored_rows(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        some = slice(first, first + count)
        return self.grid.values(self.codes[some], self.scales[some], dtype)

    def _like(
        self, *, device: torch.device | None = None, dtype: torch.dtype | None = None, copy: bool = False
    ) -> "QuantizedTensor":
        """The same matrix, elsewhere or by another name of its dtype; sharing its memory unless it has to be copied."""
        device = self.device if device is None else device
        change = self.change if self.change is None or device == self.device else self.change.to(device)
        codes, scales = (one.to(device, copy=copy) for one in (self.codes, self.scales))
        return QuantizedTensor(
            codes, scales, self.grid, dtype=dtype or self.dtype, merge_rank=self.merge_rank, change=change
        )

    def _take(self, source: Any) -> None:
        if not isinstance(source, QuantizedTensor) or (source.grid, source.shape) != (self.grid, self.shape):
            raise ValueError(
                f"only a matrix of the same shape and layout can be copied into {self!r}; got {source!r}. Make the model "
                "float first (`dequantize`)."
            )
        self.codes.copy_(source.codes)
        self.scales.copy_(source.scales)
        self.change = source.change if source.change is None else source.change.to(self.device)

    def __repr__(self, **options: Any) -> str:
        return f"QuantizedTensor({tuple(self.shape)}, {self.grid.bits} bits, {self.dtype}, device='{self.device}')"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scales"], (self.grid, self.dtype, self.merge_rank, self.change, self.requires_grad)

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> "QuantizedTensor":
        grid, dtype, merge_rank, change, requires_grad = context
        return cls(
            inner["codes"],
            inner["scales"],
            grid,
            dtype=dtype,
            merge_rank=merge_rank,
            change=change,
            requires_grad=requires_grad,
        )

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        product = _PRODUCTS.get(func)
        if product is not None:
            found = product(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own = _OWN_OPERATIONS.get(func)
        if own is not None and isinstance(args[0], QuantizedTensor):
            return own(*args, **kwargs)
        if func._schema.is_mutable and isinstance(args[0], QuantizedTensor):
            raise ValueError(
                f"`{func}` would write to a weight that is held in {args[0].grid.bits} bits. Only forward-only methods with "
                "recorded steps can train it; train adapters on it instead, or make the model float (`dequantize`)."
            )
        return func(*_floats(args), **_floats(kwargs))


class _Product(torch.autograd.Function):
    """A product with a quantized matrix that keeps no float copy of it for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedTensor, transposed: bool) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        ctx.save_for_backward(*([x] if ctx.needs_input_grad[1] else []))
        return weight.product(x, transposed=transposed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        grad_x = ctx.weight.product(grad, transposed=not ctx.transposed) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        flat_x, flat_grad = (one.reshape(-1, one.shape[-1]) for one in (*ctx.saved_tensors, grad))
        return grad_x, (flat_grad.T @ flat_x if ctx.transposed else flat_x.T @ flat_grad), None


def _multiply(x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
    """The product of an activation and a quantized matrix; NotImplemented for other arguments."""
    if not isinstance(weight, QuantizedTensor) or isinstance(x, QuantizedTensor) or isinstance(bias, QuantizedTensor):
        return NotImplemented
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        y = _Product.apply(x, weight, transposed)
        return y if bias is None else y + bias.to(x.dtype)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _multiply(input, weight, bias, transposed=True)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Any:
    return NotImplemented if options else _multiply(mat1, mat2, input, transposed=False)


def _matmul(input: Tensor, other: Tensor) -> Any:
    return _multiply(input, other, None, transposed=False)


def _to_copy(
    self: QuantizedTensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **options: Any
) -> QuantizedTensor:
    return self._like(device=device, dtype=dtype, copy=True)


def _copy_into(self: QuantizedTensor, source: Any, *options: Any) -> QuantizedTensor:
    self._take(source)
    return self


def _floats(values: Any) -> Any:
    return tree_map_only(QuantizedTensor, QuantizedTensor.plain, values)


def _exact_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


_PRODUCTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}
_OWN_OPERATIONS: dict[Any, Callable[..., QuantizedTensor]] = {
    _aten.detach.default: lambda self: self._like(),
    _aten.alias.default: lambda self: self._like(),
    _aten.clone.default: lambda self, **options: self._like(copy=True),
    _aten._to_copy.default: _to_copy,
    _aten.copy_.default: _copy_into,
}

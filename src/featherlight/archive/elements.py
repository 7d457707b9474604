"""Tensors as whole numbers of their bits, block by block, so that nothing is rounded and no block is large.

A complex number is two floats; names of dtypes are torch's own.
"""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 16
"""Elements that are worked on at once."""

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}


def _dtypes() -> dict[str, torch.dtype]:
    found = {str(one).removeprefix("torch."): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
    return {
        name: one
        for name, one in found.items()
        if one.itemsize in (1, 2, 4, 8, 16) and not name.startswith(("q", "bits"))
    }


DTYPES: Mapping[str, torch.dtype] = MappingProxyType(_dtypes())
"""Those a file can hold, by name."""


def dtype_name(dtype: torch.dtype) -> str:
    """As in `DTYPES`.

    Raises:
        ValueError: it is none of them.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"tensors of {name} cannot be kept in an archive. Convert them to an ordinary dtype, such as float32."
        )
    return name


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the elements: of the parts of a complex number."""
    return _COMPLEX.get(dtype, dtype)


def num_elements(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Whole numbers that the tensor is made of."""
    return math.prod(shape) * (2 if dtype in _COMPLEX else 1)


def unsigned(dtype: torch.dtype) -> type[np.unsignedinteger]:
    """The whole number with the bits of an element."""
    return _UNSIGNED[real_dtype(dtype).itemsize]


def bits_of(tensor: Tensor) -> NDArray[np.unsignedinteger]:
    """The elements of a tensor as whole numbers, flat, in the memory of the tensor if it is dense and on the CPU.

    Raises:
        ValueError: the tensor has no elements of its own in memory.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kind = (
            "on the meta device"
            if tensor.device.type == "meta"
            else f"of layout {str(tensor.layout).removeprefix('torch.')}"
        )
        raise ValueError(
            f"a tensor {kind} cannot be kept in an archive, which holds plain dense tensors. Convert it first."
        )
    dtype_name(tensor.dtype)
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    if tensor.dtype in _COMPLEX:
        plain = torch.view_as_real(plain).reshape(-1)
    return plain.view(_SIGNED[plain.dtype.itemsize]).numpy().view(unsigned(tensor.dtype))


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, NDArray[np.unsignedinteger]]:
    """A new tensor, and its elements as whole numbers in the same memory."""
    real = real_dtype(dtype)
    words = torch.empty(num_elements(shape, dtype), dtype=_SIGNED[real.itemsize])
    tensor = words.view(real)
    if dtype in _COMPLEX:
        tensor = torch.view_as_complex(tensor.reshape(-1, 2))
    return tensor.reshape(shape), words.numpy().view(unsigned(dtype))


def floats_of(bits: NDArray[np.unsignedinteger], dtype: torch.dtype) -> NDArray[np.floating] | NDArray[np.integer]:
    """What whole numbers of bits stand for, as numbers that can be put in order; bfloat16 and smaller as float32."""
    real = real_dtype(dtype)
    width = np.dtype(f"i{bits.itemsize}") if bits.itemsize > 1 else np.dtype(np.uint8)
    tensor = torch.from_numpy(np.ascontiguousarray(bits).view(width)).view(real)
    if real.is_floating_point:
        return tensor.to(torch.float64 if real is torch.float64 else torch.float32).numpy()
    return tensor.numpy().astype(np.uint8) if real is torch.bool else tensor.numpy()


def blocks(elements: NDArray[np.unsignedinteger], size: int = BLOCK) -> Iterator[NDArray[np.unsignedinteger]]:
    """Views of so many elements each, the last of fewer."""
    for start in range(0, len(elements), size):
        yield elements[start : start + size]

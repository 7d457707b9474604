"""The arithmetic of an update: sums that are exact in any order, and roundings with bits of the generator.

Legend of shapes: K directions, R rows, C columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional import SignStream, random_words
from featherlight.optim.zeroth_order.targets import Factors, Target


def subtract_(rows: Float[Tensor, "R C"], factors: Factors, coefficients: Float[Tensor, "K"], rate: float) -> None:
    """Subtracts `rate * sum_k c_k left_k right_k^T` from rows of a weight, in place; the factors are for these rows."""
    if rate == 0.0:
        return
    weighted_left = factors.left * coefficients[:, None]
    if factors.right is None:
        rows.sub_(weighted_left.sum(0)[:, None].mul_(rate))
    elif len(coefficients) == 1:
        rows.addr_(weighted_left[0].mul_(rate), factors.right[0], alpha=-1)
    else:
        rows.sub_((weighted_left.T @ factors.right).mul_(rate))


def random_halves(
    shape: torch.Size, stream: SignStream, target: Target, start: int, device: torch.device
) -> tuple[Int[Tensor, "*n"], int]:
    """Random numbers in [0, 2**16) for elements `start` on of a target, and how many words were drawn for them."""
    first, last = start // 2, (start + shape.numel() + 1) // 2
    words = random_words(last - first, stream=stream, parameter=target.index, start=first, device=device)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten()[start % 2 :][: shape.numel()]
    return halves.to(torch.int32).view(shape), len(words)


def round_stochastically(
    rows: Tensor, exact: Float[Tensor, "R C"], stream: SignStream, target: Target, start: int
) -> int:
    """Writes `exact` to the 16-bit `rows`, up or down with the odds of the distance. Returns the words drawn.

    bfloat16 is the upper half of float32: 16 random bits are added below it and cut off. For float16 the weight is
    counted in its own last places, of which float32 holds 13 binary digits more, so 13 random bits are added.
    """
    noise, num_words = random_halves(exact.shape, stream, target, start, exact.device)
    if rows.dtype == torch.bfloat16:
        bits = (exact.view(torch.int32) + noise) & -65536
        rows.copy_(bits.view(torch.float32))
        return num_words
    exponent = torch.frexp(exact).exponent.clamp_(min=-13)
    units = torch.ldexp(exact, 11 - exponent)
    rounded = torch.floor(units + (noise >> 3).to(exact.dtype) / 8192)
    rows.copy_(torch.ldexp(rounded, exponent - 11))
    return num_words


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast inside float32 products for the length of the block."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision

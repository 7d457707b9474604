"""Random signs addressed by (seed, step, direction, parameter, element).

Legend of shapes: K directions, N elements, W words of 32 bits.
Element `e` of a stream is bit `e % 32` of word `e // 32`; four words make one Philox block, so 128 signs cost one call.
The counter of a block is (block, parameter, direction, step) and the key is the 64-bit seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional.philox import philox_4x32

SIGNS_PER_BLOCK = 128
"""Signs that one call of the generator gives: a segment starts at a multiple of it."""

_BLOCKS_AT_ONCE = 1 << 14
_WORDS_UNPACKED_AT_ONCE = 1 << 13
_ROUNDING_DOMAIN = 1 << 31


@dataclass(frozen=True, kw_only=True)
class SignStream:
    """Where the random bits of one step come from.

    Args:
        seed: 64-bit key of the generator, in [0, 2**64).
        step: which step, in [0, 2**32).
    """

    seed: int
    step: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"`seed` must fit in 64 bits without sign; got {self.seed}. Pass a value in [0, 2**64).")
        if not 0 <= self.step < 1 << 32:
            raise ValueError(f"`step` must fit in 32 bits without sign; got {self.step}. Start a new journal.")

    def words(
        self,
        blocks: Int[Tensor, "*n"],
        parameters: Tensor | int,
        directions: Tensor | int,
        steps_on: Tensor | int = 0,
    ) -> Tensor:
        """Four words for each block, (*n, 4), int64; all others broadcast against `blocks`, `steps_on` from this step."""
        steps = self.step + steps_on
        shape = torch.broadcast_shapes(
            blocks.shape, *(x.shape for x in (parameters, directions, steps) if isinstance(x, Tensor))
        )
        counter = torch.empty(*shape, 4, dtype=torch.int64, device=blocks.device)
        for column, value in enumerate((blocks, parameters, directions, steps)):
            counter[..., column] = value
        return philox_4x32(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of elements of one parameter's stream.

    Args:
        parameter: its number in the generator's counter.
        start: the first element, a multiple of 128.
        size: the number of elements.
    """

    parameter: int
    start: int
    size: int

    @property
    def num_blocks(self) -> int:
        """Generator blocks that cover the segment."""
        return -(-self.size // SIGNS_PER_BLOCK)


class SignBits:
    """Packed signs of several segments, for several directions, drawn together.

    Args:
        stream: seed and step.
        segments: which elements of which parameters.
        directions: the direction numbers, (K,) int64, on the device where the bits are wanted.
        steps_on: how many steps behind the stream's each direction stands, (K,); None is 0 for all.

    Attributes:
        num_words: random words that were drawn for it.

    Memory: K bits per element, rounded up to whole blocks of 128; a few directions are unpacked at first use.
    """

    def __init__(
        self,
        stream: SignStream,
        segments: Sequence[Segment],
        directions: Int[Tensor, "K"],
        *,
        steps_on: Int[Tensor, "K"] | None = None,
    ) -> None:
        self._unpacked: dict[torch.dtype, Tensor] = {}
        steps_on = torch.zeros_like(directions) if steps_on is None else steps_on
        self._first_word = [0]
        for segment in segments:
            self._first_word.append(self._first_word[-1] + 4 * segment.num_blocks)
        counts = torch.tensor([segment.num_blocks for segment in segments], dtype=torch.int64)
        parameter = torch.tensor([s.parameter for s in segments], dtype=torch.int64).repeat_interleave(counts)
        shift = torch.tensor([s.start // SIGNS_PER_BLOCK for s in segments], dtype=torch.int64) - (
            counts.cumsum(0) - counts
        )
        block = torch.arange(parameter.numel()) + shift.repeat_interleave(counts)
        block, parameter = block.to(directions.device), parameter.to(directions.device)
        self.num_words = directions.numel() * self._first_word[-1]
        self._words = torch.empty(directions.numel(), self._first_word[-1], dtype=torch.int32, device=directions.device)
        rows = max(1, _BLOCKS_AT_ONCE // max(1, block.numel()))
        for first in range(0, directions.numel(), rows):
            for start in range(0, block.numel(), _BLOCKS_AT_ONCE):
                some = slice(start, min(start + _BLOCKS_AT_ONCE, block.numel()))
                which = slice(first, first + rows)
                drawn = stream.words(
                    block[None, some], parameter[None, some], directions[which, None], steps_on[which, None]
                )
                self._words[first : first + rows, 4 * some.start : 4 * some.stop] = _to_int32(drawn.flatten(-2))

    def signs(
        self, which: int, start: int, count: int, dtype: torch.dtype, *, rows: Int[Tensor, "k"] | slice = slice(None)
    ) -> Float[Tensor, "K N"]:
        """Signs of elements start .. start + count of the `which`-th segment, +1 or -1 in `dtype`; not to be written to.

        Args:
            which: number of the segment.
            start: first element.
            count: how many elements, N.
            dtype: of the result.
            rows: which of the directions, in any order and number.
        """
        first = self._first_word[which] + start // 32
        last = self._first_word[which] + (start + count + 31) // 32
        if self._words.numel() <= _WORDS_UNPACKED_AT_ONCE:
            if dtype not in self._unpacked:
                self._unpacked[dtype] = _unpack(self._words, dtype)
            some = self._unpacked[dtype][rows, 32 * first : 32 * last]
        else:
            some = _unpack(self._words[rows, first:last], dtype)
        return some[:, start % 32 : start % 32 + count]


def random_signs(
    shape: Sequence[int], *, stream: SignStream, parameter: int, direction: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor of +1 and -1, element `e` in row-major order being element `e` of the stream.

    Args:
        shape: of the result.
        stream: seed and step.
        parameter: index of the parameter, below 2**31.
        direction: number of the direction.
        dtype: of the result.
    """
    size = math.prod(shape)
    bits = SignBits(stream, [Segment(parameter=parameter, start=0, size=size)], torch.tensor([direction]))
    return bits.signs(0, 0, size, dtype).reshape(tuple(shape))


def signs_at(
    elements: Int[Tensor, "*n"], *, stream: SignStream, parameter: int, directions: Tensor | int, dtype: torch.dtype
) -> tuple[Float[Tensor, "*n"], int]:
    """The signs of single elements, drawing only the blocks they stand in.

    Args:
        elements: element numbers, (*n).
        stream: seed and step.
        parameter: index of the parameter.
        directions: direction numbers, broadcast against `elements`.
        dtype: of the signs.

    Returns:
        The signs, (*n), and the number of words that were drawn for them.
    """
    blocks, directions = torch.broadcast_tensors(
        elements // SIGNS_PER_BLOCK, torch.as_tensor(directions, device=elements.device)
    )
    unique, inverse = torch.unique(directions * (1 << 32) + blocks, return_inverse=True)
    words = stream.words(unique & 0xFFFFFFFF, parameter, unique >> 32)
    word = words.flatten()[inverse * 4 + (elements // 32) % 4]
    return 1 - 2 * ((word >> (elements % 32)) & 1).to(dtype), words.numel()


def random_words(count: int, *, stream: SignStream, parameter: int, start: int, device: torch.device) -> Tensor:
    """Words start .. start + count of the parameter's rounding stream, int64 in [0, 2**32), (count,).

    The stream is apart from that of the signs: its parameter index has the top bit set.
    """
    first = start // 4
    blocks = torch.arange(first, (start + count + 3) // 4, device=device)
    drawn = stream.words(blocks, parameter | _ROUNDING_DOMAIN, 0).flatten()
    return drawn[start - 4 * first :][:count]


def pack_signs(signs: Float[Tensor, "K N"]) -> Int[Tensor, "K O"]:
    """Signs as bits, eight a byte, (K, ceil(N / 8)) uint8."""
    padded = torch.nn.functional.pad((signs < 0).to(torch.uint8), (0, -signs.shape[1] % 8))
    places = torch.arange(8, device=signs.device, dtype=torch.uint8)
    return (padded.view(len(signs), padded.shape[1] // 8, 8) << places).sum(-1, dtype=torch.uint8)


def unpack_signs(octets: Int[Tensor, "K O"], count: int, dtype: torch.dtype) -> Float[Tensor, "K N"]:
    """The first `count` signs of each row that `pack_signs` made."""
    signs = _sign_table(dtype, octets.device).index_select(0, octets.flatten().to(torch.int32))
    return signs.view(len(octets), 8 * octets.shape[1])[:, :count]


def _to_int32(words: Tensor) -> Tensor:
    return (words ^ (1 << 31)).sub_(1 << 31).to(torch.int32)


def _unpack(words: Int[Tensor, "K W"], dtype: torch.dtype) -> Float[Tensor, "K N"]:
    """The signs of packed words, eight at a time from a table."""
    octets = words.contiguous().view(torch.uint8).flatten().to(torch.int32)
    signs = _sign_table(dtype, words.device).index_select(0, octets)
    return signs.view(words.shape[0], 32 * words.shape[1])


def forget_tables() -> None:
    """Lets go of tables that are kept from call to call, so that none of them is a fake tensor of a traced step."""
    _sign_table.cache_clear()


@lru_cache
def _sign_table(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "256 8"]:
    """The signs of each octet, lowest bit first."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return 1 - 2 * bits.to(dtype)

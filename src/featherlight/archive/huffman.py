"""Gap-coded Huffman, the published coding of pruned and shared weights: for comparison, and where nothing may be compiled.

A nonzero is the zeros in front of it in 5 bits (8 in convolutions) and its level, both Huffman-coded; where more zeros
stand between, a zero is put in.

Source: Han, Mao and Dally 2016 (arXiv 1510.00149), sections 2 and 4, with the widths of its section 5.
"""

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featherlight.archive.elements import BLOCK
from featherlight.archive.levels import ZERO, Levels, gaps_of
from featherlight.archive.sections import Section, Sink, number, piece

_LONGEST_CODE = 24


class GapHuffman:
    """Huffman codes of gaps and of levels."""

    def write(self, levels: Levels, sink: Sink) -> None:
        """Codes all levels."""
        width = 8 if len(levels.shape) > 2 else 5
        counts = np.zeros((2, 2 * ZERO), np.int64)
        for block in levels.blocks():
            for k, stream in enumerate(gaps_of(block, (1 << width) - 1)):
                counts[k] += np.bincount(stream, minlength=2 * ZERO)
        codes = [_Code(np.flatnonzero(one), _lengths(one[one > 0])) for one in counts]
        sink(bytes([width]) + b"".join(code.write() for code in codes))
        for block in levels.blocks():
            streams = gaps_of(block, (1 << width) - 1)
            sink(number(len(streams[0])))
            for code, stream in zip(codes, streams, strict=True):
                sink(piece(code.encode(stream)))

    def read(
        self, section: Section, shape: tuple[int, ...], total: int, take: Callable[[NDArray[np.int16]], None]
    ) -> None:
        """Decodes all levels."""
        section.read(1)
        codes = [_read_code(section), _read_code(section)]
        for start in range(0, total, BLOCK):
            block = np.zeros(min(BLOCK, total - start), dtype=np.int16)
            count = section.number()
            if count > len(block):
                raise ValueError(f"{count} nonzeros among {len(block)} elements were told.")
            values, gaps = (code.decode(section.piece(), count) for code in codes)
            places = np.cumsum(gaps + 1) - 1
            if count and places[-1] >= len(block):
                raise ValueError(f"a nonzero at place {places[-1]} of {len(block)} was told.")
            block[places] = values - ZERO
            take(block)


class _Code:
    """A canonical Huffman code: symbols in order of the length of their code words."""

    def __init__(self, symbols: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        order = np.lexsort((symbols, lengths))
        self._told = symbols, lengths
        self._symbols, self._lengths = symbols[order], lengths[order]
        words, word = [], 0
        for k, length in enumerate(self._lengths):
            word = (word + 1) << int(length - self._lengths[k - 1]) if k else 0
            words.append(word)
        self._words = np.array(words, dtype=np.int64)

    def write(self) -> bytes:
        symbols, lengths = self._told
        steps = np.diff(symbols, prepend=0)
        return number(len(symbols)) + b"".join(
            number(int(s)) + bytes([int(n)]) for s, n in zip(steps, lengths, strict=True)
        )

    def encode(self, stream: NDArray[np.int64]) -> bytes:
        index = np.zeros(2 * ZERO, np.int64)
        index[self._symbols] = np.arange(len(self._symbols))
        lengths, words = self._lengths[index[stream]], self._words[index[stream]]
        ends = np.cumsum(lengths)
        bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
        for k in range(int(lengths.max(initial=0))):
            longer = lengths > k
            bits[ends[longer] - 1 - k] = words[longer] >> k & 1
        return np.packbits(bits).tobytes()

    def decode(self, content: bytes, count: int) -> NDArray[np.int64]:
        """As many symbols; a length at a time: the words of each length are a range of numbers."""
        if count and not len(self._symbols):
            raise ValueError(f"{count} symbols were told of a code without any.")
        bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8)).tolist()
        first = {int(n): (int(self._words[k]), k) for k, n in reversed(list(enumerate(self._lengths)))}
        many = np.bincount(self._lengths, minlength=_LONGEST_CODE + 1).tolist()
        found, at = np.zeros(count, np.int64), 0
        for i in range(count):
            word, length = 0, 0
            while True:
                if at >= len(bits) or length >= _LONGEST_CODE:
                    raise ValueError("a code word was told that there is not.")
                word, length, at = word << 1 | bits[at], length + 1, at + 1
                if length in first and 0 <= word - first[length][0] < many[length]:
                    found[i] = self._symbols[first[length][1] + word - first[length][0]]
                    break
        return found


def _read_code(section: Section) -> _Code:
    count, at = section.number(), 0
    if count > 4097:
        raise ValueError(f"a code of {count} symbols was told.")
    symbols, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for k in range(count):
        at += section.number()
        symbols[k], lengths[k] = at, section.read(1)[0]
    if count and (
        at >= 2 * ZERO or not 1 <= lengths.min() <= lengths.max() <= _LONGEST_CODE or np.sum(0.5**lengths) > 1
    ):
        raise ValueError("a code was told that cannot be.")
    return _Code(symbols, lengths)


def _lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of each symbol's code word."""
    lengths = np.ones(len(counts), np.int64) if len(counts) == 1 else np.zeros(len(counts), np.int64)
    heap = [(int(count), k, [k]) for k, count in enumerate(counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        lengths[first[2] + second[2]] += 1
        heapq.heappush(heap, (first[0] + second[0], first[1], first[2] + second[2]))
    return lengths if lengths.max(initial=0) <= _LONGEST_CODE else _lengths(counts // 2 + 1)

"""Ways to code levels. Each is a name in the file, a way to write and a way to read, a block of levels at a time."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featherlight.archive.elements import BLOCK
from featherlight.archive.huffman import GapHuffman
from featherlight.archive.levels import ZERO, Levels, gaps_of, num_columns
from featherlight.archive.needed import needed
from featherlight.archive.sections import Counted, Section, Sink, number, piece

_SEARCHED = 1 << 21
_RATES = (6, 12)
_BLOCKS_OF_A_PIECE = 4
_SPARSE = 0.5
_LONGEST_GAP = 255
_TOTAL = 1 << 16


class LevelCoding(Protocol):
    """Writes levels as bytes, and reads them again."""

    def write(self, levels: Levels, sink: Sink) -> None:
        """Codes all levels of a tensor."""
        ...

    def read(
        self, section: Section, shape: tuple[int, ...], total: int, take: Callable[[NDArray[np.int16]], None]
    ) -> None:
        """Decodes them, and hands them on in blocks of at most 65,536.

        Args:
            section: what `write` wrote.
            shape: of the tensor.
            total: number of its elements.
            take: is handed each block, which it must not keep.

        Raises:
            ValueError: it was not written so.
        """
        ...


class Mixed:
    """Odds mixed from several adaptive contexts: the smallest files.

    Small sparse tensors are tried at several settings. About 70 ns a weight of a pruned layer, either way, on one core.
    """

    def write(self, levels: Levels, sink: Sink) -> None:
        """Codes all levels at the best of a few settings."""
        nonzeros = sum(int(np.count_nonzero(block)) for block in levels.blocks())
        if len(levels.elements) > _SEARCHED or nonzeros > _SPARSE * len(levels.elements):
            self._write_at(levels, sink, levels.period(), _RATES[0])
            return
        settings = [(period, rate) for period in {0, levels.period()} for rate in _RATES]
        sizes = []
        for period, rate in settings:
            counted = Counted()
            self._write_at(levels, counted, period, rate)
            sizes.append(counted.num_bytes)
        self._write_at(levels, sink, *settings[sizes.index(min(sizes))])

    def _write_at(self, levels: Levels, sink: Sink, period: int, rate: int) -> None:
        needed("numba", "code levels by mixed contexts")
        from featherlight.archive import mixing, range_coder

        sink(bytes([rate]) + number(period))
        state = mixing.new_state(num_columns(levels.shape), period=period, rate=rate)
        left = len(levels.elements)
        data = np.zeros(min(left, BLOCK * _BLOCKS_OF_A_PIECE) * 2 + 64, dtype=np.uint8)
        coder = range_coder.new_coder(encoding=True)
        for count, block in enumerate(levels.blocks(), start=1):
            mixing.code_levels(state, mixing.tables(), coder, data, block)
            left -= len(block)
            if left == 0 or count % _BLOCKS_OF_A_PIECE == 0:
                size = range_coder.finish_encoding(coder, data)
                if size < 0:
                    raise OverflowError("levels that mixed contexts make larger")
                sink(piece(data[:size].tobytes()) if left else data[:size].tobytes())
                coder = range_coder.new_coder(encoding=True)

    def read(
        self, section: Section, shape: tuple[int, ...], total: int, take: Callable[[NDArray[np.int16]], None]
    ) -> None:
        """Decodes all levels."""
        needed("numba", "decode levels of mixed contexts")
        from featherlight.archive import mixing, range_coder

        rate, period = section.read(1)[0], section.number()
        if period == 1 or period > max(num_columns(shape), 1):
            raise ValueError(f"a period of {period} columns was told.")
        state = mixing.new_state(num_columns(shape), period=period, rate=rate)
        coder, data = range_coder.new_coder(encoding=False), np.empty(0, np.uint8)
        for count, start in enumerate(range(0, total, BLOCK)):
            if count % _BLOCKS_OF_A_PIECE == 0:
                is_last = total - start <= BLOCK * _BLOCKS_OF_A_PIECE
                data = np.frombuffer(section.read(section.left) if is_last else section.piece(), dtype=np.uint8).copy()
                coder = range_coder.new_coder(encoding=False)
                range_coder.start_decoding(coder, data)
            block = np.zeros(min(BLOCK, total - start), dtype=np.int16)
            mixing.code_levels(state, mixing.tables(), coder, data, block)
            take(block)


class Ans:
    """Asymmetric numeral systems with one table of odds for the tensor: the fastest to decode.

    A pruned tensor is coded as the gaps between its nonzeros and their levels, another one as its levels. Through the package
    `constriction`; its odds are made from whole numbers that stand in the file and sum to 65,536.
    """

    def write(self, levels: Levels, sink: Sink) -> None:
        """Codes all levels."""
        counts, dense, nonzeros = np.zeros((2, 2 * ZERO), np.int64), np.zeros(2 * ZERO, np.int64), 0
        for block in levels.blocks():
            for k, stream in enumerate(gaps_of(block, _LONGEST_GAP)):
                counts[k] += np.bincount(stream, minlength=2 * ZERO)
            dense += np.bincount(block.astype(np.int64) + ZERO, minlength=2 * ZERO)
            nonzeros += int(np.count_nonzero(block))
        sparse = nonzeros < _SPARSE * len(levels.elements)
        tables = [_fitted(one) for one in (counts if sparse else [dense])]
        sink(bytes([sparse]) + b"".join(table.write() for table in tables))
        for block in levels.blocks():
            streams = gaps_of(block, _LONGEST_GAP) if sparse else (block.astype(np.int64) + ZERO,)
            if sparse:
                sink(number(len(streams[0])))
            for table, stream in zip(tables, streams, strict=True):
                sink(piece(table.encode(stream)))

    def read(
        self, section: Section, shape: tuple[int, ...], total: int, take: Callable[[NDArray[np.int16]], None]
    ) -> None:
        """Decodes all levels."""
        sparse = section.read(1)[0]
        tables = [_read_table(section) for _ in range(2 if sparse else 1)]
        for start in range(0, total, BLOCK):
            size = min(BLOCK, total - start)
            count = section.number() if sparse else size
            if count > size:
                raise ValueError(f"{count} nonzeros among {size} elements were told.")
            values = (tables[0].decode(section.piece(), count) - ZERO).astype(np.int16)
            if not sparse:
                take(values)
                continue
            places = np.cumsum(tables[1].decode(section.piece(), count) + 1) - 1
            if count and places[-1] >= size:
                raise ValueError(f"a nonzero at place {places[-1]} of {size} was told.")
            block = np.zeros(size, dtype=np.int16)
            block[places] = values
            take(block)


class _Table:
    """Odds of symbols, at least 1 each, that sum to 65,536."""

    def __init__(self, symbols: NDArray[np.int64], odds: NDArray[np.int64]) -> None:
        self.symbols, self.odds = symbols, odds
        self._model = None
        if len(symbols) > 1:
            self._stream = needed("constriction", "code levels by asymmetric numeral systems").stream
            self._model = self._stream.model.Categorical(odds.astype(np.float32) / _TOTAL, perfect=False)

    def write(self) -> bytes:
        """The symbols that occur and their odds."""
        steps = np.diff(self.symbols, prepend=-1) - 1
        numbers = [len(self.symbols), *(int(one) for pair in zip(steps, self.odds, strict=True) for one in pair)]
        return b"".join(number(one) for one in numbers)

    def encode(self, symbols: NDArray[np.int64]) -> bytes:
        if self._model is None or not len(symbols):
            return b""
        coder = self._stream.stack.AnsCoder()
        coder.encode_reverse(np.searchsorted(self.symbols, symbols).astype(np.int32), self._model)
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, content: bytes, count: int) -> NDArray[np.int64]:
        if not len(self.symbols):
            if count:
                raise ValueError(f"{count} symbols were told of a table without any.")
            return np.zeros(0, np.int64)
        if self._model is None or not count:
            return np.full(count, self.symbols[0])
        if len(content) % 4 or content[-4:] == bytes(4):
            raise ValueError("a stream of numeral systems was told that could not have been written.")
        coder = self._stream.stack.AnsCoder(np.frombuffer(content, dtype="<u4").astype(np.uint32))
        return self.symbols[coder.decode(self._model, count)]


def _read_table(section: Section) -> _Table:
    count = section.number()
    if count > 4097:
        raise ValueError(f"a table of {count} symbols was told.")
    symbols, odds, at = np.zeros(count, np.int64), np.zeros(count, np.int64), -1
    for k in range(count):
        at += 1 + section.number()
        symbols[k], odds[k] = at, section.number()
        if at >= 2 * ZERO or not 1 <= odds[k] <= _TOTAL:
            raise ValueError("a table with odds out of order was told.")
    if count and odds.sum() != _TOTAL:
        raise ValueError(f"a table whose odds sum to {odds.sum()} was told.")
    return _Table(symbols, odds)


def _fitted(counts: NDArray[np.int64]) -> _Table:
    symbols = np.flatnonzero(counts)
    return _Table(symbols, _whole_odds(counts[symbols]) if len(symbols) else symbols)


def _whole_odds(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Odds in proportion to counts, at least 1 each."""
    odds = np.maximum(counts * _TOTAL // counts.sum(), 1)
    spare = _TOTAL - int(odds.sum())
    while spare:
        most = int(np.argmax(odds))
        step = spare if spare > 0 else -min(-spare, int(odds[most]) - 1)
        odds[most] += step
        spare -= step
    return odds


CODINGS: Mapping[str, LevelCoding] = MappingProxyType({"mixed": Mixed(), "ans": Ans(), "huffman": GapHuffman()})
"""Those a file can name."""

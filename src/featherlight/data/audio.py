"""Recordings: wav files and folders of them, read a window at a time, and tones that are made up.

Legend of shapes: N windows, C channels, T samples.
"""

from __future__ import annotations

import hashlib
import math
import wave
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from featherlight.data.splits import split_rows

_ADVICE = "Save it as PCM of 8, 16, 24 or 32 bits, as in: ffmpeg -i {name} -c:a pcm_s16le out.wav"
_INT16 = 32767


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A recording on disk, of which the header alone is known.

    Attributes:
        path: of the wav file.
        rate: samples a second.
        channels: C.
        length: T.
    """

    path: Path
    rate: int
    channels: int
    length: int

    @classmethod
    def of(cls, path: Path) -> Clip:
        """That of a file; raises ValueError where its header cannot be read, or its samples are no PCM."""
        with _opened(path) as file:
            return cls(path=path, rate=file.getframerate(), channels=file.getnchannels(), length=file.getnframes())

    def window(self, start: int, length: int) -> Float[NDArray[np.float32], "C T"]:
        """Some of its samples as numbers in [-1, 1); raises ValueError where the file is cut short."""
        with _opened(self.path) as file:
            file.setpos(start)
            data, width = file.readframes(length), file.getsampwidth()
        samples = _from_pcm(data, width).reshape(-1, self.channels).T
        if samples.shape[1] != length:
            raise ValueError(
                f"{self.path} is cut short: its header promises {self.length:,} samples, and there are no {length:,} from "
                f"{start:,} on. Copy it again."
            )
        return samples


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Mono windows of recordings of one rate, each equally likely, by their place in an endless stream.

    Recordings of several channels are averaged. Only headers are kept in memory; of memory that windows take, that of one.

    Attributes:
        clips: on disk, or whole as numbers in [-1, 1], (T,).
        rate: samples a second.
    """

    clips: Sequence[Clip | NDArray[np.float32]]
    rate: int
    _ends: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lengths = [len(one) if isinstance(one, np.ndarray) else one.length for one in self.clips]
        object.__setattr__(self, "_ends", list(accumulate(lengths)))

    @property
    def seconds(self) -> float:
        """Of all recordings together."""
        return (self._ends[-1] if self._ends else 0) / self.rate

    def num_windows(self, length: int) -> int:
        """How many windows that do not overlap there are."""
        starts = [0, *self._ends]
        return sum((stop - start) // length for start, stop in zip(starts, self._ends, strict=False))

    def draw(self, start: int, count: int, *, length: int, seed: int) -> Float[Tensor, "count 1 length"]:
        """Random windows, those at places `start` to `start + count` of the stream; raises ValueError where all are shorter."""
        rooms = list(accumulate(max(0, room + 1 - length) for room in self._lengths()))
        if not rooms or not rooms[-1]:
            raise self._too_short(length)
        found = []
        for place in range(start, start + count):
            which = int(np.random.Generator(np.random.Philox(key=[seed, place])).integers(rooms[-1]))
            number = bisect_right(rooms, which)
            found.append(self._mono(number, which - (rooms[number - 1] if number else 0), length))
        return torch.from_numpy(np.stack(found))[:, None]

    def first(self, count: int, *, length: int) -> Float[Tensor, "N 1 length"]:
        """Up to `count` windows that do not overlap, taken from each recording in turn; raises ValueError as `draw` does."""
        places = [
            (turn, number) for number, room in enumerate(self._lengths()) for turn in range(min(count, room // length))
        ]
        if not places:
            raise self._too_short(length)
        chosen = sorted(places)[:count]
        return torch.from_numpy(np.stack([self._mono(number, turn * length, length) for turn, number in chosen]))[
            :, None
        ]

    def digest(self) -> str:
        """SHA-256 of names, rates and lengths; of whole recordings also of their samples."""
        digest = hashlib.sha256(repr(self.rate).encode())
        for one in self.clips:
            known = (
                one.tobytes()
                if isinstance(one, np.ndarray)
                else repr((one.path.name, one.channels, one.length)).encode()
            )
            digest.update(known)
        return digest.hexdigest()

    def _lengths(self) -> list[int]:
        return [stop - start for start, stop in zip([0, *self._ends], self._ends, strict=False)]

    def _mono(self, number: int, start: int, length: int) -> NDArray[np.float32]:
        clip = self.clips[number]
        if isinstance(clip, np.ndarray):
            return clip[start : start + length]
        return clip.window(start, length).mean(0, dtype=np.float32)

    def _too_short(self, length: int) -> ValueError:
        longest = max(self._lengths(), default=0)
        return ValueError(
            f"windows of {length:,} samples are asked for, and the longest of {len(self.clips):,} recordings has {longest:,}. "
            "Take shorter windows or longer recordings."
        )


def load_recordings(path: Path, *, valid_fraction: float) -> tuple[Recordings, Recordings]:
    """The wav files in a folder and the folders in it: those to train on, and a share that is split off to validate.

    A folder with a single file gives its last part to validate.

    Args:
        path: of the folder.
        valid_fraction: share of the files that is split off, the same ones each time.

    Raises:
        ValueError: no files, one that cannot be read, files of several rates, or a share that leaves a part empty.
    """
    files = wav_files(path)
    if not files:
        raise ValueError(f"there are no wav files in {path}. Put some there, or correct the path.")
    clips = [Clip.of(file) for file in files]
    other = next((clip for clip in clips if clip.rate != clips[0].rate), None)
    if other is not None:
        raise ValueError(
            f"{other.path} has {other.rate:,} samples a second and {clips[0].path} {clips[0].rate:,}; one model takes one rate, "
            "and nothing is resampled here. Bring all to one, as in: ffmpeg -i in.wav -ar 16000 out.wav"
        )
    if len(clips) == 1:
        samples, _ = read_wav(files[0])
        mono = samples.mean(0, dtype=np.float32)
        stop = len(mono) - round(len(mono) * valid_fraction)
        return Recordings(clips=[mono[:stop]], rate=clips[0].rate), Recordings(clips=[mono[stop:]], rate=clips[0].rate)
    share = max(valid_fraction, 1 / len(clips)) if valid_fraction < 1 else valid_fraction
    parts = split_rows(torch.zeros(len(clips)), valid_fraction=share, seed=0, stratify=False)
    train, valid = ([clips[i] for i in part.tolist()] for part in parts)
    return Recordings(clips=train, rate=clips[0].rate), Recordings(clips=valid, rate=clips[0].rate)


def wav_files(folder: Path) -> list[Path]:
    """The wav files in a folder and the folders in it, in order of name; hidden ones are left out."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".wav" and file.name[0] != ".")


def read_wav(path: Path) -> tuple[Float[NDArray[np.float32], "C T"], int]:
    """Samples of a wav file as numbers in [-1, 1), and how many there are a second.

    Raises:
        ValueError: it cannot be read, or its samples are no PCM of 8, 16, 24 or 32 bits.
    """
    clip = Clip.of(path)
    return clip.window(0, clip.length), clip.rate


def write_wav(path: Path, samples: Float[NDArray, "C T"], rate: int) -> None:
    """Writes samples in [-1, 1] as PCM of 16 bits; what is beyond is cut to it.

    Raises:
        ValueError: samples of another shape, or that are not finite.
    """
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise ValueError(f"`samples` must be finite and of the shape (channels, samples); got {samples.shape}.")
    pcm = np.rint(np.clip(samples, -1, 1) * _INT16).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(pcm))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(pcm.T).tobytes())


def synthesize_tones(count: int, *, seconds: float, rate: int, seed: int) -> Recordings:
    """Made-up recordings: notes of a few harmonics that swell and fade, one to three at a time, with a little noise.

    Args:
        count: how many.
        seconds: of each.
        rate: samples a second.
        seed: of everything drawn.
    """
    clips = []
    for number in range(count):
        draw = np.random.Generator(np.random.Philox(key=[seed, number]))
        time = np.arange(round(seconds * rate)) / rate
        sound = 0.003 * draw.standard_normal(len(time))
        for _ in range(int(draw.integers(1, 4))):
            pitch, middle = 110 * 2 ** draw.uniform(0, 3), draw.uniform(0, seconds)
            envelope = np.exp(-0.5 * ((time - middle) / (seconds * draw.uniform(0.15, 0.5))) ** 2)
            for overtone in range(1, 5):
                if overtone * pitch < rate / 2:
                    phase = 2 * math.pi * (overtone * pitch * time + draw.random())
                    sound += 0.2 * draw.uniform(0.3, 1) / overtone * envelope * np.sin(phase)
        clips.append((sound / max(1.0, np.abs(sound).max() / 0.95)).astype(np.float32))
    return Recordings(clips=clips, rate=rate)


@contextmanager
def _opened(path: Path) -> Iterator[wave.Wave_read]:
    """A wav file of PCM, open for reading."""
    try:
        with wave.open(str(path), "rb") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}. Check the path.") from None
    except (wave.Error, EOFError, OSError) as error:
        advice = _ADVICE.format(name=path.name)
        raise ValueError(
            f"{path} cannot be read as a wav file ({str(error) or 'it is cut short'}). {advice}"
        ) from error


def _from_pcm(data: bytes, width: int) -> NDArray[np.float32]:
    """Samples of 1 (unsigned), 2, 3 or 4 bytes, little-endian, as numbers in [-1, 1)."""
    data = data[: len(data) // width * width]
    if width == 1:
        return ((np.frombuffer(data, np.uint8) - 128.0) / 128).astype(np.float32)
    if width == 3:
        whole = np.zeros((len(data) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (whole.view("<i4")[:, 0] / 2**31).astype(np.float32)
    return (np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)

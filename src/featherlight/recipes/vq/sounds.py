"""Sounds for autoencoders: windows of recordings, or of tones that are made up.

Legend of shapes: N windows, C channels (1), T samples.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from featherlight.data import Recordings, load_recordings, synthesize_tones
from featherlight.recipes.vq.config import AudioVqConfig
from featherlight.recipes.vq.losses import SoundError
from featherlight.recipes.vq.task import Task
from featherlight.report import Block, LineChart
from featherlight.trainer import Display

_TONES = "tones"
_NUM_TONES, _TONE_SECONDS, _TONE_RATE = (160, 16), 2.0, 8000
_SHOWN_SAMPLES = 400


def sound_task(config: AudioVqConfig, display: Display) -> Task:
    """Reads the recordings of a config, or makes tones up.

    Raises:
        ValueError: there are none, they cannot be read, or windows are longer than they are.
    """
    display.say("synthesizing tones" if config.data == _TONES else f"loading {config.data}")
    train, valid = _recordings(config)
    shown = valid.first(config.evaluated, length=config.length)
    train.draw(0, 1, length=config.length, seed=config.seed)
    what = "synthesized tones" if config.data == _TONES else f"recordings in {config.data}"
    return Task(
        source=config.data,
        channels=1,
        sizes=(config.length,),
        num_train=max(1, train.num_windows(config.length)),
        batch=lambda start, count: train.draw(start, count, length=config.length, seed=config.seed),
        rows=lambda start, count: range(start, start + count),
        valid=shown,
        test=None,
        low=-1.0,
        high=1.0,
        loss=lambda variance: SoundError(variance=variance, spectra=config.spectra),
        decibels=("signal to noise", None),
        unit=("second", config.length / train.rate),
        show=lambda rows, caption: show_sounds(rows, caption, rate=train.rate),
        digest=train.digest(),
        facts={
            "data": what,
            "training sound": f"{len(train.clips):,} clips, {train.seconds:,.0f} s, {train.rate:,} samples a second",
            "validation sound": f"{len(shown):,} windows of {config.length:,} samples",
        },
        about={"kind": "sounds", "rate": train.rate},
    )


def _recordings(config: AudioVqConfig) -> tuple[Recordings, Recordings]:
    if config.data == _TONES:
        parts = [
            synthesize_tones(count, seconds=_TONE_SECONDS, rate=_TONE_RATE, seed=seed)
            for seed, count in enumerate(_NUM_TONES)
        ]
        return parts[0], parts[1]
    path = Path(config.data)
    if not path.is_dir():
        raise ValueError(f"`data` is {config.data!r}, which is neither {_TONES!r} nor a folder of wav files.")
    return load_recordings(path, valid_fraction=config.valid_fraction)


def show_sounds(rows: Sequence[tuple[str, Tensor]], caption: str, *, rate: int) -> Block:
    """The middle of the first window of each row, as lines over time."""
    length = min(_SHOWN_SAMPLES, rows[0][1].shape[-1])
    start = (rows[0][1].shape[-1] - length) // 2
    times = [1000 * number / rate for number in range(length)]
    lines = {
        name or f"{number}": (times, sound[0, start : start + length].tolist())
        for name, sounds in rows
        for number, sound in enumerate(sounds.detach().cpu())
        if number == 0 or not name
    }
    return LineChart(x_label="milliseconds", y_label="amplitude", lines=lines, caption=caption)

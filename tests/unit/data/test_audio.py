"""Wav files of every width, windows by their place in a stream, and what is said where a file does not fit."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from featherlight.data import Recordings, load_recordings, read_wav, synthesize_tones, write_wav


def save(path: Path, data: bytes, *, width: int, channels: int, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def pcm(values: np.ndarray, width: int) -> bytes:
    """Whole numbers of so many bytes, one at a time."""
    if width == 1:
        return bytes(int(value) + 128 for value in values)
    return b"".join(int(value).to_bytes(width, "little", signed=True) for value in values)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_every_width_are_read_to_the_bit(tmp_path: Path, width: int, channels: int) -> None:
    top = 2 ** (8 * width - 1)
    values = np.array([0, 1, -1, top - 1, -top, top // 3, -(top // 2), 7])
    path = save(tmp_path / "a.wav", pcm(values, width), width=width, channels=channels)
    samples, rate = read_wav(path)
    assert rate == 8000
    assert samples.dtype == np.float32
    expected = (values / top).astype(np.float32).reshape(-1, channels).T
    np.testing.assert_array_equal(samples, expected)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 50)).astype(np.float32)
    write_wav(tmp_path / "a.wav", samples, 16000)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav")[0], samples, atol=5e-5)
    with pytest.raises(ValueError, match="must be finite and of the shape"):
        write_wav(tmp_path / "b.wav", samples[0], 16000)


def test_windows_come_from_all_places_and_are_the_same_when_asked_again(tmp_path: Path) -> None:
    ramp = (np.arange(40) / 100).astype(np.float32)
    clips = Recordings(clips=[ramp[:12], ramp[:5], ramp[12:40]], rate=100)
    drawn = clips.draw(0, 500, length=8, seed=1)
    assert drawn.shape == (500, 1, 8)
    assert torch.equal(clips.draw(100, 50, length=8, seed=1), drawn[100:150])
    starts = (100 * drawn[:, 0, 0]).round().int()
    assert set(starts.tolist()) == {*range(5), *range(12, 33)}
    torch.testing.assert_close(drawn[:, 0], (starts[:, None] + torch.arange(8)) / 100)
    assert clips.num_windows(8) == 4
    assert (100 * clips.first(9, length=8)[:, 0, 0]).round().int().tolist() == [0, 12, 20, 28]
    with pytest.raises(ValueError, match="windows of 29 samples are asked for, and the longest of 3 recordings has 28"):
        clips.draw(0, 1, length=29, seed=0)


def test_a_folder_is_split_by_files_and_channels_are_averaged(tmp_path: Path) -> None:
    for number in range(4):
        both = np.stack([np.full(20, number / 10), np.full(20, number / 10 + 0.2)])
        write_wav(tmp_path / f"{number}.wav", both.astype(np.float32), 1000)
    train, valid = load_recordings(tmp_path, valid_fraction=0.25)
    assert (len(train.clips), len(valid.clips), train.rate, train.seconds) == (3, 1, 1000, 0.06)
    levels = {
        round(float(part.first(9, length=20)[i].mean()), 3) for part in (train, valid) for i in range(len(part.clips))
    }
    assert levels == {0.1, 0.2, 0.3, 0.4}
    train, valid = load_recordings(tmp_path, valid_fraction=0.1)
    assert (len(train.clips), len(valid.clips)) == (3, 1), "too few for a tenth, and one of them validates"
    for number in range(1, 4):
        (tmp_path / f"{number}.wav").unlink()
    train, valid = load_recordings(tmp_path, valid_fraction=0.25)
    assert (train.seconds, valid.seconds) == (0.015, 0.005)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no wav files in"):
        load_recordings(tmp_path, valid_fraction=0.5)
    write_wav(tmp_path / "a.wav", np.zeros((1, 9), np.float32), 1000)
    write_wav(tmp_path / "b.wav", np.zeros((1, 9), np.float32), 2000)
    with pytest.raises(ValueError, match=r"b\.wav has 2,000 samples a second and .*a\.wav 1,000.*nothing is resampled"):
        load_recordings(tmp_path, valid_fraction=0.5)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"b\.wav cannot be read as a wav file .* PCM"):
        load_recordings(tmp_path, valid_fraction=0.5)
    cut = save(tmp_path / "c.wav", bytes(200), width=2, channels=1)
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"c\.wav is cut short: its header promises 100 samples"):
        read_wav(cut)


def test_tones_are_sound_and_come_from_their_seed() -> None:
    one, again, other = (synthesize_tones(3, seconds=0.1, rate=8000, seed=seed) for seed in (0, 0, 1))
    assert one.digest() == again.digest() != other.digest()
    sound = one.first(3, length=800)
    assert sound.abs().max() <= 0.95
    assert (sound.square().mean(2).sqrt() > 0.005).all()
    spectrum = torch.fft.rfft(sound).abs().square()
    assert (spectrum.topk(20, dim=2).values.sum(2) / spectrum.sum(2) > 0.5).all()

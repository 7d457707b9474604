"""What is done with a finished autoencoder: images or sounds to codes and back, and new ones from its prior.

Legend of shapes: C channels, S sizes (rows and columns, or time), s positions, B examples.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from featherlight.data import read_wav, write_wav
from featherlight.data.audio import wav_files
from featherlight.data.image_files import decode_image, image_files
from featherlight.nn.models import default_device
from featherlight.nn.vector_quantizers import Codes
from featherlight.recipes.vq.images import as_bytes, as_floats
from featherlight.recipes.vq.networks import Networks, read_networks
from featherlight.trainer import Tracker, replace_directory, silent

_SUFFIX = ".codes.npz"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An image or a sound as codes.

    Attributes:
        codes: of one example, (1, *s, ...).
        sizes: of the example; what the codes stand for beyond it is cut off.
    """

    codes: Codes
    sizes: tuple[int, ...]


class TrainedCodec:
    """The autoencoder of a finished run, for images or sounds of any size.

    Args:
        path: of the run directory, or of its model directory.
        device: as for `default_device`.

    Attributes:
        networks: in evaluation mode.
        device: where they are.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, path: Path, *, device: str | None = None) -> None:
        self.device = default_device(device)
        self.networks: Networks = read_networks(path).to(self.device)
        self._about: dict[str, Any] = dict(self.networks.blueprint.about)

    @property
    def kind(self) -> str:
        """What it is for: "images" or "sounds"."""
        return self._about["kind"]

    @torch.no_grad()
    def encode(self, example: Float[Tensor, "C *S"]) -> Encoded:
        """The codes of one example, with values in the range that it was trained on; edges are repeated to whole positions.

        Raises:
            ValueError: another number of channels or axes.
        """
        blueprint = self.networks.blueprint
        if example.ndim != 1 + len(blueprint.sizes) or len(example) != blueprint.channels:
            axes = ", ".join(("rows", "columns") if len(blueprint.sizes) == 2 else ("samples",))
            raise ValueError(
                f"an example must have the shape ({blueprint.channels} channels, {axes}); got {tuple(example.shape)}."
            )
        sizes = tuple(example.shape[1:])
        missing = [-size % blueprint.factor for size in sizes]
        around = [part for size in reversed(missing) for part in (0, size)]
        whole = pad(example[None].to(self.device), around, mode="replicate")
        return Encoded(codes=self.networks.autoencoder.encode(whole), sizes=sizes)

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Float[Tensor, "C *S"]:
        """What the codes stand for, cut to the range and the sizes of the example; raises ValueError for others' codes."""
        codes = Codes(*(None if one is None else one.to(self.device) for one in encoded.codes))  # pyright: ignore
        output = self.networks.limited(self.networks.autoencoder.decode(codes))[0]
        return output[(slice(None), *(slice(size) for size in encoded.sizes))].cpu()

    def sample(self, count: int, *, seed: int, temperature: float = 1.0) -> Float[Tensor, "B C *S"]:
        """New examples of the sizes it was trained on, drawn by its prior; raises ValueError where it has none."""
        return self.networks.sample(count, seed=seed, temperature=temperature).cpu()

    def read(self, file: Path) -> Float[Tensor, "C *S"]:
        """An image or wav file as an example; raises ValueError where it cannot be read, or has another rate."""
        if self.kind == "sounds":
            samples, rate = read_wav(file)
            if rate != self._about["rate"]:
                raise ValueError(
                    f"{file} has {rate:,} samples a second, and the model was trained on {self._about['rate']:,}. Resample it."
                )
            return torch.from_numpy(samples.mean(0, keepdims=True, dtype=np.float32))
        channels = self.networks.blueprint.channels
        if channels not in (1, 3):
            raise ValueError(f"the model takes images of {channels} channels, which no image file has; use `encode`.")
        pixels = decode_image(file, "L" if channels == 1 else "RGB", str(file))
        return as_floats(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))

    def write(self, example: Float[Tensor, "C *S"], file: Path) -> None:
        """An example as a wav file, or as an image file without loss (.png)."""
        if self.kind == "sounds":
            write_wav(file, example.numpy(), self._about["rate"])
            return
        from PIL import Image

        pixels = as_bytes(example[None])[0].numpy()
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file)

    @property
    def suffix(self) -> str:
        """Of the files that it writes."""
        return ".wav" if self.kind == "sounds" else ".png"


def encode_folder(codec: TrainedCodec, folder: Path, out: Path, *, track: Tracker = silent) -> dict[str, Any]:
    """Encodes all images or wav files in a folder and the folders in it, each to a file of codes of the same name.

    Args:
        codec: of a finished run.
        folder: of the files.
        out: directory for the codes, which must not exist.
        track: shows how far it is.

    Returns:
        How many files there were, and the bits that their codes take at a fixed length, to which an entropy coder or a
        smaller header is not applied. The files themselves are larger, since indices are kept in whole bytes.

    Raises:
        ValueError: no files, one that does not fit the model, or an `out` that exists.
    """
    files = image_files(folder) if codec.kind == "images" else wav_files(folder)
    _check_out(out)
    if not files:
        raise ValueError(f"there are no {codec.kind} in {folder}. Put some there, or correct the path.")
    each = codec.networks.autoencoder.quantizer.bits_per_position
    positions = 0

    def write(path: Path) -> None:
        nonlocal positions
        for file in track(files, "encoding", len(files)):
            encoded = codec.encode(codec.read(file))
            positions += _num_positions(codec, encoded)
            target = path / file.relative_to(folder).with_name(file.name + _SUFFIX)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_codes(target, encoded)

    out.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(out, write)
    return {"files": len(files), "bits": positions * each}


def decode_folder(codec: TrainedCodec, folder: Path, out: Path, *, track: Tracker = silent) -> dict[str, Any]:
    """Decodes all files of codes in a folder, as `encode_folder` wrote it, to images (.png) or wav files.

    Args:
        codec: of the run that the codes are of.
        folder: of the codes.
        out: directory for the images or wav files, which must not exist.
        track: shows how far it is.

    Returns:
        How many files there were.

    Raises:
        ValueError: no files, one that is damaged or of another model, or an `out` that exists.
    """
    files = sorted(folder.rglob(f"*{_SUFFIX}"))
    _check_out(out)
    if not files:
        raise ValueError(f"there are no files of codes ({_SUFFIX}) in {folder}. Make some with `encode_folder`.")

    def write(path: Path) -> None:
        for file in track(files, "decoding", len(files)):
            name = file.name.removesuffix(_SUFFIX)
            name = name if name.endswith(codec.suffix) else name + codec.suffix
            target = path / file.relative_to(folder).with_name(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            codec.write(codec.decode(read_codes(file)), target)

    out.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(out, write)
    return {"files": len(files)}


def write_codes(path: Path, encoded: Encoded) -> None:
    """Codes as a NumPy archive: `indices`, `sizes`, and `weights` of mixed codes. An index of -1 is no code."""
    indices = encoded.codes.indices.cpu().numpy()
    arrays: dict[str, NDArray] = {
        "indices": indices.astype(np.int16 if indices.size == 0 or indices.max() < 2**15 else np.int32),
        "sizes": np.array(encoded.sizes),
    }
    if encoded.codes.weights is not None:
        arrays["weights"] = encoded.codes.weights.float().cpu().numpy()
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_codes(path: Path) -> Encoded:
    """What `write_codes` wrote; raises ValueError where it is damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            indices = torch.from_numpy(archive["indices"].astype(np.int64))
            weights = torch.from_numpy(archive["weights"]) if "weights" in archive.files else None
            sizes: Iterable[Any] = archive["sizes"].tolist()
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of codes, or is damaged ({error}). Encode it again.") from error
    return Encoded(codes=Codes(indices, weights), sizes=tuple(sizes))


def _num_positions(codec: TrainedCodec, encoded: Encoded) -> int:
    shape = encoded.codes.indices.shape
    axes = len(codec.networks.autoencoder.quantizer.code_shape)
    count = 1
    for size in shape[: len(shape) - axes]:
        count *= size
    return count


def _check_out(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists already. Give another directory.")

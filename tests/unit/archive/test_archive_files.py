"""Any state_dict comes back to the same bits, in little memory, and every byte of the file is accounted for."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featherlight.archive import CODINGS, Archive, expand, inspect_archive, load_into, write_archive

pytest.importorskip("numba")
every_coding = pytest.mark.parametrize("coding", CODINGS)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pruned(*shape: int, values: int = 16, keep: float = 0.1) -> Tensor:
    """A sparse weight of few values, some columns fuller than others."""
    g = generator()
    columns = torch.rand(shape[-1], generator=g) * 2 * keep
    book = torch.randn(values, generator=g).half().float()
    chosen = book[torch.randint(values, shape, generator=g)]
    return chosen.where(torch.rand(*shape, generator=g) < columns, 0.0)


def odd_tensors() -> dict[str, Tensor]:
    g = generator()
    dense = torch.randn(120, 70, generator=g)
    tensors = {
        "no axis": torch.tensor(3.5),
        "no elements": torch.zeros(0, 4),
        "bool": torch.rand(170, generator=g) > 0.5,
        "counted": torch.arange(5000),
        "transposed": dense.t(),
        "strided": dense[::3, 1:-1],
        "complex": torch.randn(3000, generator=g, dtype=torch.complex64),
        "conjugate": torch.randn(30, generator=g, dtype=torch.complex128).conj(),
        "no numbers": torch.tensor([float("nan"), -0.0, 0.0, float("inf"), 5e-324] * 40),
        "Ωeight ↯ 名": torch.full((3, 3), 7, dtype=torch.uint8),
        "zeros": torch.zeros(700, 800),
        "grid": (torch.randint(-99, 99, (60, 70), generator=g) * 0.013).to(torch.float32),
        "whole": torch.randint(-1 << 40, 1 << 40, (999,), generator=g),
        "pruned": pruned(120, 320),
        "kernel": pruned(20, 12, 5, 5, keep=0.5),
        "long": pruned(70_001),
        "many values": torch.randint(-1900, 1900, (120, 70), generator=g).to(torch.int16),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        tensors[str(dtype)] = (dense * 9).to(dtype)
    return tensors | {"tied": dense, "tied again": dense, "copy": dense.clone()}


def same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    views = [one.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for one in (first, second)]
    return torch.equal(*views)


@every_coding
def test_any_state_dict_comes_back_to_the_same_bits(coding: str, tmp_path: Path) -> None:
    tensors = odd_tensors()
    size = write_archive(tmp_path / "a.feather", tensors, coding=coding, metadata={"from": "ä test"})
    archive = Archive(tmp_path / "a.feather")
    assert size == archive.num_bytes == (tmp_path / "a.feather").stat().st_size
    found = archive.state_dict()
    assert list(found) == list(tensors)
    assert [name for name, one in tensors.items() if not same_bits(one, found[name])] == []
    assert archive.metadata == {"from": "ä test"}
    assert archive.entries["copy"].same == "tied"
    assert found["tied again"] is found["tied"]
    assert {"planes", "zstd", "raw", coding} <= {one.coding for one in archive.entries.values()}


@every_coding
def test_every_byte_is_accounted_for(coding: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.feather", odd_tensors(), coding=coding)
    account = inspect_archive(Archive(tmp_path / "a.feather"))
    assert sum(account.other_bytes.values()) + sum(one.num_bytes for one in account.rows) == account.num_bytes
    (row,) = [one for one in account.rows if one.name == "pruned"]
    assert row.kept == int((pruned(120, 320) != 0).sum())
    assert row.codebook_bytes + row.index_bytes + row.value_bytes + row.digest_bytes == row.num_bytes
    assert row.index_bytes > 0 < row.value_bytes


def test_the_mixed_coding_is_the_smallest_and_far_below_the_others(tmp_path: Path) -> None:
    sizes = {
        coding: write_archive(tmp_path / f"{coding}.feather", {"w": pruned(100, 784, keep=0.04)}, coding=coding)
        for coding in CODINGS
    }
    assert sizes["mixed"] < 0.97 * sizes["ans"]
    assert sizes["mixed"] < 0.9 * sizes["huffman"]


def pairs() -> Iterator[tuple[str, Tensor]]:
    g = generator()
    for k in range(1):
        yield f"sparse {k}", pruned(300, 1000)
        yield f"dense {k}", torch.randn(300, 1000, generator=g)
        yield f"whole {k}", torch.randint(-1 << 60, 1 << 60, (150_000,), generator=g)


def test_writing_and_reading_take_a_mebibyte_beside_one_tensor(tmp_path: Path) -> None:
    """Torch's memory holds the tensors themselves; what is traced is all that is beside them."""
    path = tmp_path / "a.feather"
    write_archive(path, odd_tensors())  # compiles
    Archive(path).state_dict()
    tracemalloc.start()
    try:
        write_archive(path, pairs())
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for _ in Archive(path).tensors():
            pass
        expand(Archive(path), tmp_path / "a.safetensors")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < 1 << 20
    assert read < 1 << 20


def test_a_module_is_loaded_and_a_safetensors_file_written(tmp_path: Path) -> None:
    path = tmp_path / "net.feather"
    net = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    write_archive(path, net.state_dict())
    other = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    load_into(Archive(path), other)
    assert all(torch.equal(one, other.state_dict()[name]) for name, one in net.state_dict().items())
    expand(Archive(path), tmp_path / "net.safetensors")
    assert all(
        torch.equal(one, net.state_dict()[name]) for name, one in load_file(tmp_path / "net.safetensors").items()
    )
    before = {name: one.clone() for name, one in net.state_dict().items()}
    for module, sentence in (
        (nn.Sequential(nn.Linear(30, 21)), r"lacks .* beside. Build"),
        (nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 6)), r"has 2.weight of shape \(5, 20\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_into(Archive(path), module)
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in before.items())


@pytest.mark.parametrize(
    ("tensors", "options", "sentence"),
    [
        ({"w": torch.zeros(3, device="meta")}, {}, "w: a tensor on the meta device cannot be kept"),
        ({"w": torch.eye(3).to_sparse()}, {}, "w: a tensor of layout sparse_coo cannot be kept"),
        ([("w", torch.zeros(1)), ("w", torch.ones(1))], {}, "none may be there twice; got 'w'"),
        ({"w": torch.zeros(1)}, {"coding": "zip"}, "`coding` is 'zip', and there are only mixed, ans, huffman"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_no_file_is_left(
    tensors: dict[str, Tensor], options: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_archive(tmp_path / "a.feather", tensors, **options)
    assert list(tmp_path.iterdir()) == []


def test_some_tensors_are_expanded_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    write_archive(path, {"one/w": torch.ones(3), "two": torch.zeros(2)})
    expand(Archive(path), tmp_path / "a.safetensors", names={"one/w": "w"})
    assert {name: one.tolist() for name, one in load_file(tmp_path / "a.safetensors").items()} == {"w": [1.0] * 3}
    for wrong, sentence in (({"three": "x"}, "no tensor 'three'"), ({"two": "x", "one/w": "x"}, "a name of its own")):
        with pytest.raises(ValueError, match=sentence):
            expand(Archive(path), tmp_path / "b.safetensors", names=wrong)
    assert not (tmp_path / "b.safetensors").exists()

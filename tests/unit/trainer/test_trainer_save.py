"""Saves: what was saved trains on to the same bits, and damage is named."""

import errno
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from featherlight.files import write_atomically
from featherlight.meter import Meter
from featherlight.optim import MeZO, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.trainer import load_save, write_save
from tests.unit.optim.problems import bits_of, make_model, make_objective

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD with momentum": lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), 0.01, betas=(0.8, 0.99), amsgrad=True),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), 0.5, max_iter=3, history_size=4),
    "MeZO": lambda m: MeZO(m, 1e-2, seed=2**64 - 1),
    "ZerothOrderSGD": lambda m: ZerothOrderSGD(
        m, 1e-2, normalize=SpreadNormalized(), directions=RankOneSigns(None), seed=2**63
    ),
}


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.step(make_objective(model, step))


def make(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    model = make_model(dtype=dtype, seed=seed)
    model.register_buffer("constant", torch.full((2,), 1.0 + seed))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_saved_run_goes_on_to_the_same_bits(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model, path = make(dtype), tmp_path / "save"
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, range(3))
    meter = Meter()
    progress = {"step": 3, "seconds": 0.1 + 0.2, "note": "ä"}
    write_save(path, model, optimizer, progress, meter=meter)
    assert meter.bytes_written == path.stat().st_size
    train(model, optimizer, range(3, 6))
    other = make(dtype, seed=9)
    resumed = OPTIMIZERS[kind](other)
    assert load_save(path, other, resumed) == progress
    train(other, resumed, range(3, 6))
    assert bits_of(other) == bits_of(model)


def _transposed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Linear(5, 7)
    model.weight = nn.Parameter(torch.randn(5, 7).t())
    return model


def _convolution(kind: type[nn.Conv2d | nn.Conv3d], layout: torch.memory_format, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind(3, 4, 3).to(memory_format=layout)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (partial(_convolution, nn.Conv2d, torch.channels_last), (1, 3, 5, 5)),
        (partial(_convolution, nn.Conv3d, torch.channels_last_3d), (1, 3, 5, 5, 5)),
        (_transposed, (2, 5)),
    ],
)
def test_weights_in_another_order_go_on_to_the_same_bits(
    tmp_path: Path, made: Callable[[int], nn.Module], shape: tuple[int, ...]
) -> None:
    def step(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.arange(float(math.prod(shape))).reshape(shape).sin()).square().sum().backward()
        optimizer.step()

    model, other = made(0), made(9)
    assert not next(model.parameters()).is_contiguous()
    optimizer, resumed = (torch.optim.AdamW(one.parameters(), 0.1, fused=True) for one in (model, other))
    path = tmp_path / "save"
    step(model, optimizer)
    write_save(path, model, optimizer, {"step": 1}, meter=Meter())
    step(model, optimizer)
    load_save(path, other, resumed)
    step(other, resumed)
    assert bits_of(other) == bits_of(model)


def write_small(path: Path) -> tuple[nn.Module, Optimizer]:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    write_save(path, model, optimizer, {"step": 1}, meter=Meter())
    return model, optimizer


def test_every_truncation_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "save"
    model, optimizer = write_small(path)
    whole, before = path.read_bytes(), bits_of(model)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"the save .*save"):
            load_save(path, model, optimizer)
    assert bits_of(model) == before


def test_every_flipped_byte_is_a_clear_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "save"
    model, optimizer = write_small(path)
    whole, before, state = path.read_bytes(), bits_of(model), str(optimizer.state_dict())
    for offset in range(len(whole)):
        data = bytearray(whole)
        data[offset] ^= 0x01
        path.write_bytes(bytes(data))
        try:
            outcome: Any = load_save(path, model, optimizer)
        except ValueError as error:
            outcome = "the save" in str(error)
        assert outcome in ({"step": 1}, True)
        assert bits_of(model) == before
        assert str(optimizer.state_dict()) == state


@pytest.mark.parametrize("content", [None, b"", b"not a save at all"])
def test_what_is_not_a_save_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "save"
    if content is not None:
        path.write_bytes(content)
    model = make()
    with pytest.raises(ValueError, match="cannot be read"):
        load_save(path, model, OPTIMIZERS["MeZO"](model))


@pytest.mark.parametrize("other", [nn.Linear(4, 6), nn.Linear(1, 1).double(), nn.Linear(1, 1).requires_grad_(False)])
def test_a_save_of_another_model_is_refused_and_nothing_is_loaded(tmp_path: Path, other: nn.Module) -> None:
    path = tmp_path / "save"
    write_small(path)
    before = bits_of(other)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(ValueError, match="another model or another choice of trained parameters"):
        load_save(path, other, optimizer)
    assert bits_of(other) == before


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_previous_save(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "save"
    model, optimizer = write_small(path)
    whole = path.read_bytes()
    with torch.no_grad():
        model.weight.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_save(path, model, optimizer, {"step": 2}, meter=Meter())
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["save"]
    assert load_save(path, model, optimizer) == {"step": 1}


def test_a_writer_that_fails_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, lambda file: (file.write(b"new"), full()))
    assert path.read_bytes() == b"old"
    assert write_atomically(path, lambda file: file.write(b"newer")) == 5
    assert path.read_bytes() == b"newer"


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    path = tmp_path / "save"
    write_small(path)
    assert b"pickle" not in path.read_bytes()
    torch.save({"a": torch.zeros(1)}, path)
    model = make()
    with pytest.raises(ValueError, match="cannot be read"):
        load_save(path, model, OPTIMIZERS["MeZO"](model))

"""Several saves of a run: the newest sound one is taken, and none is removed before a newer one was read back."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featherlight.files import replace_file
from featherlight.meter import Meter
from featherlight.trainer import check_manifest, load_save, replace_directory, saves
from featherlight.trainer.saves import STATE, keep_save, newest_save
from tests.unit.optim.problems import bits_of, make_model, make_objective


class Stopped(BaseException):
    """Stands for a kill: no handler of the code under test may take it for an error it knows."""


def keep(folder: Path, steps: int) -> list[torch.Tensor]:
    """A save after so many steps, and the weights in it."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        optimizer.step(make_objective(model, step))
    keep_save(folder, model, optimizer, {"step": steps}, meter=Meter())
    return bits_of(model)


def newest(folder: Path, said: list[str] | None = None) -> int:
    """How many steps are in the save that would be taken up."""
    path = newest_save(folder, (said if said is not None else []).append)
    assert path is not None
    model = make_model(seed=3)
    return load_save(path, model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))["step"]


def test_only_the_newest_save_stays(tmp_path: Path) -> None:
    folder = tmp_path / "saves"
    assert newest_save(folder, print) is None
    for steps in (1, 2, 2):
        keep(folder, steps)
        (only,) = saves.saves(folder)
        assert check_manifest(only) == []
        assert newest(folder) == steps


@pytest.mark.parametrize("calls", ["fsync", "replace", "rename", "open"])
def test_a_kill_anywhere_in_a_save_leaves_one_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: str
) -> None:
    owner = Path if calls in ("rename", "open") else os
    usual = getattr(owner, calls)
    for kill_at in range(1, 100):
        folder = tmp_path / f"{kill_at}" / "saves"
        folder.mkdir(parents=True)
        keep(folder, 1)
        made = 0

        def counted(*given, **named):
            nonlocal made
            made += 1
            if made == kill_at:  # noqa: B023
                raise Stopped
            return usual(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, calls, counted)
            try:
                keep(folder, 2)
            except Stopped:
                pass
            else:
                break
        assert newest(folder) in (1, 2)
        keep(folder, 3)
        assert newest(folder) == 3
        assert len(saves.saves(folder)) == 1
    assert 1 < kill_at < 99


def damage_newest(folder: Path, how: str) -> Path:
    path = saves.saves(folder)[0]
    if how == "flip":
        data = bytearray((path / STATE).read_bytes())
        data[len(data) // 2] ^= 1
        (path / STATE).write_bytes(data)
    elif how == "cut":
        os.truncate(path / STATE, 100)
    elif how == "missing":
        (path / STATE).unlink()
    else:
        (path / "manifest.json").write_text(how)
    return path


HOW = (
    "flip",
    "cut",
    "missing",
    "",
    "[]",
    '{"version": 1, "files": {"../../x": {"bytes": 1, "sha256": ""}}}',
    "[" * 9999,
)


@pytest.mark.parametrize("how", HOW, ids=range(len(HOW)))
def test_a_damaged_save_is_passed_over_by_name(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "saves"
    keep(folder, 1)
    older = shutil.copytree(saves.saves(folder)[0], tmp_path / "older")
    keep(folder, 2)
    older.rename(folder / "save-000000001")
    path = damage_newest(folder, how)
    said: list[str] = []
    assert newest(folder, said) == 1
    (sentence,) = said
    assert "skipped a damaged save" in sentence
    assert str(path) in sentence
    shutil.rmtree(folder / "save-000000001")
    with pytest.raises(ValueError, match=r"all saves in .* are damaged"):
        newest_save(folder, print)


def test_a_save_that_the_disk_gives_back_altered_is_refused_and_the_older_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saves"
    keep(folder, 1)
    rename = Path.rename

    def worse(path: Path, target: Path) -> Path:
        os.truncate(path / STATE, 50)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", worse)
        with pytest.raises(OSError, match="could not be read back"):
            keep(folder, 2)
    assert newest(folder) == 1
    assert len(saves.saves(folder)) == 1


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saves"
    keep(folder, 1)
    usage = namedtuple("usage", "total used free")(100, 99, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"a save needs about .* MiB and the disk has 0.0 MiB free") as raised:
        keep(folder, 2)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(folder)
    assert [path.name for path in folder.iterdir()] == ["save-000001"]


def test_a_directory_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(text: str):
        def write(folder: Path) -> None:
            (folder / "deep" / "er").mkdir(parents=True)
            (folder / "deep" / "er" / "file").write_text(text)

        return write

    replace_directory(path, fill("one"))
    with pytest.raises(ZeroDivisionError):
        replace_directory(path, lambda folder: folder.mkdir() or 1 / 0)
    assert (path / "deep" / "er" / "file").read_text() == "one"
    replace_directory(path, fill("two"))
    assert (path / "deep" / "er" / "file").read_text() == "two"
    assert check_manifest(path) == []
    (path / "deep" / "er" / "file").write_text("owt")
    assert check_manifest(path) == [f"{path}/deep/er/file is altered: its SHA-256 is not the one in manifest.json."]
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_files_are_open_to_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        keep(tmp_path / "saves", 1)
        tensors = {"w": torch.zeros(3)}

        def fill(path: Path) -> None:
            path.mkdir()
            save_file(tensors, path / "model.safetensors")

        replace_directory(tmp_path / "model", fill)
        replace_file(tmp_path / "rule.safetensors", lambda path: save_file(tensors, path))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}

"""What is intact is told from what is damaged; two runs are told apart; one small file stands for a run."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from featherlight.meter import Meter
from featherlight.optim import ZerothOrderSGD
from featherlight.trainer import JournalWriter, difference, read_journal_or_share, replay_journal, share, verify
from tests.unit.optim.problems import bits_of, make_model, make_objective


def make_run(path: Path, *, steps: int = 3, lr: float = 1e-2, other_from: int | None = None, base: str = "b") -> Any:
    """A run directory with a config and a journal; from a step on it sees other data."""
    path.mkdir()
    (path / "config.toml").write_text(f'recipe = "x"\nseed = 1\n[optimizer]\nlr = {lr}\n')
    (path / "metrics.jsonl").write_text("")
    model = make_model()
    journal = JournalWriter(path / "journal", header={"base": base, "data": "d"}, fitted={}, meter=Meter())
    optimizer = ZerothOrderSGD(model, 1e-2, journal=journal)
    for step in range(steps):
        shift = 50 if other_from is not None and step >= other_from else 0
        optimizer.step(make_objective(model, step + shift))
    journal.note_state(steps)
    journal.close()
    return model


def told(first: Path, second: Path) -> list[tuple[str, Any, Any]]:
    return [(one.what, one.first, one.second) for one in difference(first, second)]


def test_runs_are_told_apart_by_config_digests_and_first_step(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "same")
    assert told(tmp_path / "a", tmp_path / "same") == []
    make_run(tmp_path / "b", lr=0.5, base="other")
    assert told(tmp_path / "a", tmp_path / "b") == [
        ("config optimizer.lr", 0.01, 0.5),
        ("digest of the base", "b", "other"),
    ]
    make_run(tmp_path / "c", other_from=1)
    found = told(tmp_path / "a", tmp_path / "c")
    assert {what.partition(":")[0] for what, _, _ in found} == {"step 2"}
    assert any(what.endswith(("coefficients", "scale")) for what, _, _ in found)
    make_run(tmp_path / "d", steps=5)
    assert told(tmp_path / "a", tmp_path / "d") == [("steps", 3, 5)]
    (tmp_path / "d" / "journal").unlink()
    assert told(tmp_path / "a", tmp_path / "d") == [("journal", "kept", "none")]
    with pytest.raises(ValueError, match="is not a run directory"):
        difference(tmp_path / "a", tmp_path)


def test_a_shared_run_rebuilds_the_model_and_every_truncation_and_flip_is_found(tmp_path: Path) -> None:
    model = make_run(tmp_path / "run")
    done = share(tmp_path / "run", tmp_path / "small")
    assert done.size == (tmp_path / "small").stat().st_size
    again = make_model()
    replay_journal(read_journal_or_share(tmp_path / "small"), again)
    assert bits_of(again) == bits_of(model)
    assert share(tmp_path / "run", tmp_path / "twin").weights == done.weights
    assert (tmp_path / "twin").read_bytes() == (tmp_path / "small").read_bytes()
    whole, path = (tmp_path / "small").read_bytes(), tmp_path / "bad"
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        assert verify(path)[0].state == "damaged"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        assert verify(path)[0].state == "damaged"


def test_what_cannot_be_shared_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "there").touch()
    with pytest.raises(ValueError, match="exists already"):
        share(tmp_path / "run", tmp_path / "there")
    with (tmp_path / "run" / "journal").open("ab") as file:
        file.write(b"half a rec")
    with pytest.raises(ValueError, match=r"damaged after step 3: 10 bytes .* Resume the run"):
        share(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "journal").unlink()
    with pytest.raises(ValueError, match=r"has no journal.*forward-only"):
        share(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ValueError, match="is not a run directory"):
        share(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("config.toml", 1, "holds no journal"),
        ("journal", 3 << 30, "which none has"),
        ("journal", 1, "is not a journal"),
    ],
)
def test_a_sealed_file_that_is_hostile_is_refused(tmp_path: Path, name: str, size: int, sentence: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"x")
        archive.infolist()[0].file_size = size
        archive.comment = b"0" * 64
    data = buffer.getvalue()[:-64]
    path = tmp_path / "share"
    path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
    with pytest.raises(ValueError, match=sentence):
        read_journal_or_share(path)


def test_parts_of_a_run_are_named_with_their_state(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    states = {Path(one.part).name: one.state for one in verify(tmp_path / "run")}
    assert states == {"config, metrics": "unchecked", "journal": "intact"}
    data = bytearray((tmp_path / "run" / "journal").read_bytes())
    data[-100] ^= 1
    (tmp_path / "run" / "journal").write_bytes(data)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "step"\n{}\n')
    found = {Path(one.part).name: one for one in verify(tmp_path / "run")}
    assert found["journal"].state == found["config, metrics"].state == "damaged"
    assert "damaged after step 2" in found["journal"].text or "damaged after step 3" in found["journal"].text
    assert verify(tmp_path / "run" / "journal")[0].state == "damaged"
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="nothing to verify"):
            verify(path)

"""Models from directories and from the hub's cache; what is written of them; the device they run on."""

import os
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch

from featherlight.nn.models import Pretrained, default_device, load_pretrained, resolve_model, save_pretrained
from featherlight.nn.models import hub as hub_module
from tests.e2e import tiny_models


def load(path: Path | str, num_outputs: int | None = 2) -> Pretrained:
    return load_pretrained(str(path), num_outputs=num_outputs, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str, build) -> Path:
    """Puts a tiny model into the cache as a download would."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots").mkdir()
    return build(folder / "snapshots" / ("a" * 40))


def test_a_sentence_model_of_the_hub_is_known_as_one(hub: Path) -> None:
    folder = cached(hub, "some/encoder", tiny_models.sentence_model)
    source = resolve_model("some/encoder")
    assert Path(source) == folder
    assert type(load(source).model).__name__ == "SentenceClassifier"


def test_a_model_of_which_only_a_part_is_cached_is_not_taken(hub: Path) -> None:
    folder = cached(hub, "some/encoder", tiny_models.bert)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not, or not whole, in the local cache .*HF_HUB_OFFLINE"):
        resolve_model("some/encoder")


@pytest.mark.parametrize("name", ["no/such/folder", "./models/x", "/nowhere", "a b", "--x", "up/..", ""])
def test_what_cannot_be_a_hub_id_is_a_missing_directory(hub: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no model directory|not a model directory"):
        resolve_model(name)


def test_without_a_network_a_hub_id_fails_at_once_and_in_one_sentence(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    asked = []
    snapshot = hub_module._snapshot
    monkeypatch.setattr(
        hub_module, "_snapshot", lambda name, *, local: asked.append(local) or snapshot(name, local=local)
    )
    with pytest.raises(ValueError, match=r"`some/model` is no directory, .*could not be fetched .* offline") as caught:
        resolve_model("some/model")
    assert "\n" not in str(caught.value)
    assert asked == [True], "no download is begun, which would retry"
    assert capfd.readouterr() == ("", "")


def test_a_name_the_hub_does_not_know(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(name: str) -> Path:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "_fetched", unknown)
    with pytest.raises(ValueError, match=r"`gtp2` is neither a directory nor on the Hugging Face hub.*spelling"):
        resolve_model("gtp2")


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"no weights as safetensors \(it has pytorch_model\.bin, and a pickle is never"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_what_is_no_language_model_is_refused_as_one(tmp_path: Path, name: str) -> None:
    folder = getattr(tiny_models, name)(tmp_path / name)
    with pytest.raises(ValueError, match=r"no (whole )?language model"):
        load(folder, None)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_language_model_is_whole(tmp_path: Path, name: str) -> None:
    loaded = load(getattr(tiny_models, name)(tmp_path / name), None)
    assert not loaded.fresh
    assert loaded.head is None


@pytest.mark.parametrize("name", ["bert", "sentence_model", "gpt2"])
def test_a_save_does_not_depend_on_what_was_tokenised_before(tmp_path: Path, name: str) -> None:
    source = getattr(tiny_models, name)(tmp_path / "source")
    tokenizer = tiny_models.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=9)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.save_pretrained(source)
    written = []
    for number, use in enumerate((False, True)):
        loaded = load(source)
        if use:
            loaded.tokenizer("good film " * 20, truncation=True, max_length=5)
        save_pretrained(loaded, tmp_path / str(number), {})
        written.append({f.name: f.read_bytes() for f in (tmp_path / str(number)).rglob("token*") if f.is_file()})
    assert written[0] == written[1]
    assert b'"max_length": 9' in written[0]["tokenizer.json"]


@pytest.mark.parametrize("name", ["bert", "sentence_model", "gpt2"])
def test_a_save_has_the_modes_of_the_umask_whatever_the_source_has(tmp_path: Path, name: str) -> None:
    source = getattr(tiny_models, name)(tmp_path / "source")
    for entry in source.rglob("*"):
        entry.chmod(0o500 if entry.is_dir() else 0o400)
    try:
        loaded = load(source)
        before = os.umask(0o027)
        try:
            save_pretrained(loaded, tmp_path / "saved", {})
        finally:
            os.umask(before)
    finally:
        for entry in source.rglob("*"):
            entry.chmod(0o700)
    files = [entry for entry in (tmp_path / "saved").rglob("*") if entry.is_file()]
    assert {oct(entry.stat().st_mode & 0o777) for entry in files} == {"0o640"}
    assert any(entry.suffix == ".safetensors" for entry in files)
    assert load(tmp_path / "saved").max_length == loaded.max_length


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert default_device() == default_device("auto") == default_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"this machine has no device `{name}`: .* sees 0 of type"):
            default_device(name)
    for name in ("gpu", "cuda:x", "meta", ""):
        with pytest.raises(ValueError, match=r"Name cpu, cuda, cuda:0, mps or auto"):
            default_device(name)


def test_the_best_device_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert default_device() == torch.device("cuda")
    assert default_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"sees 1 of type cuda\. Name one of them"):
        default_device("cuda:1")

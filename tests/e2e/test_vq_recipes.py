"""Autoencoders with a vector quantizer from end to end, by the command line: report, resuming, codes of files and back."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featherlight.data import read_wav, synthesize_tones, write_wav
from featherlight.recipes.vq import experiment as module
from featherlight.recipes.vq.use import TrainedCodec, decode_folder, encode_folder
from featherlight.report import read_run

TINY = ("network.width=8", "network.blocks=1", "network.block_width=4", "evaluated=64", "evaluations=2", "device=cpu")
PRIOR = ("prior.steps=6", "prior.width=16", "prior.blocks=1", "prior.heads=2", "prior.samples=3")


def settings(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def weights(run_directory: Path) -> dict[str, torch.Tensor]:
    return load_file(run_directory / "model" / "model.safetensors")


def sections_of(run_directory: Path) -> dict[str, str]:
    """Titles of the sections, and what stands in each."""
    found = json.loads((run_directory / "sections.json").read_text())["sections"]
    return {one["title"]: json.dumps(one) for one in found}


SMALL = ("quantizer.codebook_size=16", "quantizer.features=8", "steps=8")
ADVERSARY = ("adversary.width=4", "adversary.start=0.5", "crop=16", "batch=4", "valid_fraction=0.3")


@pytest.mark.parametrize("quantizer", ["vq", "scq"])
def test_digits_leave_a_report_and_a_model(run, tmp_path, quantizer):
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    done = run("run", "vq/digits", *settings(*TINY, *PRIOR, *SMALL, f"quantizer.kind={quantizer}"), "--out", out)
    assert done.code == 0, done.err
    found = sections_of(out)
    assert {"Reconstructions", "Codebook", "Rate and distortion", "Samples of the prior"} <= found.keys()
    assert "hard perplexity" in found["Codebook"]
    assert "bits a pixel" in found["Rate and distortion"]
    assert "Reconstructions" in (out / "report.html").read_text()
    record = read_run(out)
    assert record.summary is not None
    assert record.summary.counters.steps == 14
    assert record.summary.metric is not None
    assert record.summary.metric.name == "mse"
    assert record.summary.metric.last < record.summary.metric.start
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in metrics if line["kind"] == "eval"][-1]["values"]
    assert {"psnr", "hard perplexity", "mass perplexity", "bits a position", "prior bits a position"} <= last.keys()
    assert "this works on fine-tuned text models" in run("evaluate", out, "--data", "rows.jsonl").err


@pytest.mark.parametrize("recipe", ["vq/digits", "vq/bsds"])
def test_a_run_that_is_stopped_in_either_stage_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, recipe):
    pytest.importorskip("sklearn")
    own = (
        ("quantizer.kind=vq",)
        if recipe == "vq/digits"
        else (*ADVERSARY, f"data={photographs(tmp_path / 'photographs')}")
    )
    command = ("run", recipe, *settings(*TINY, *PRIOR, *SMALL, *own))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*command, "--out", whole)
    assert done.code == 0, done.err
    for step in (3, 11):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            assert run(*command, "--out", parts).code == 130
    assert run(*command, "--out", parts).code == 0
    one, other = weights(whole), weights(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = read_run(whole).steps, read_run(parts).steps
    assert [point.loss for point in one] == [point.loss for point in other]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Sends Ctrl-C when the batch of so many steps, over both stages, is asked for."""
    first, second = module.Codec._objective, module.Codec._prior_objective

    def interrupting(real, offset):
        def objective(self, step, meter):
            if step + offset == at:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, step, meter)

        return objective

    monkeypatch.setattr(module.Codec, "_objective", interrupting(first, 0))
    monkeypatch.setattr(module.Codec, "_prior_objective", interrupting(second, 8))


def photographs(folder: Path) -> Path:
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(6):
        small = draw.integers(0, 255, (5, 6 + number, 3), dtype=np.uint8)
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((50 + 3 * number, 40)).save(folder / "deep" / f"{number}.png")
    return folder


def test_photographs_learn_with_an_adversary_and_go_to_codes_and_back(run, tmp_path):
    folder = photographs(tmp_path / "photographs")
    out, codes, back = tmp_path / "run", tmp_path / "codes", tmp_path / "back"
    done = run(
        *("run", "vq/bsds", "--out", out),
        *settings(*TINY, *PRIOR, *SMALL, *ADVERSARY, f"data={folder}", "network.strides=[2,2]", "quantizer.kind=vq"),
    )
    assert done.code == 0, done.err
    assert not any(name.startswith("discriminator") for name in weights(out))
    codec = TrainedCodec(out, device="cpu")
    told = encode_folder(codec, folder, codes)
    assert told == {"files": 6, "bits": sum(10 * -(-(50 + 3 * n) // 4) * 4 for n in range(6))}
    assert decode_folder(codec, codes, back) == {"files": 6}
    for file in sorted((folder / "deep").iterdir()):
        example, again = codec.read(file), codec.read(back / "deep" / file.name)
        assert again.shape == example.shape
        torch.testing.assert_close(again, codec.decode(codec.encode(example)), atol=1 / 255, rtol=0)
    assert codec.sample(2, seed=0).shape == (2, 3, 16, 16)
    assert torch.equal(codec.sample(2, seed=0), codec.sample(2, seed=0))


def test_sound_learns_by_a_residual_quantizer_and_goes_to_codes_and_back(run, tmp_path):
    folder = tmp_path / "tones"
    folder.mkdir()
    for number, clip in enumerate(synthesize_tones(8, seconds=0.3, rate=8000, seed=0).clips):
        write_wav(folder / f"{number}.wav", np.stack([clip, clip]), 8000)
    out = tmp_path / "run"
    done = run(
        *("run", "vq/audio", "--out", out),
        *settings(*TINY, *PRIOR, f"data={folder}", "length=1024", "steps=10", "batch=8", "valid_fraction=0.25"),
        *settings("quantizer.stages=3", "quantizer.codebook_size=8", "quantizer.features=4", "optimizer.lr=3e-3"),
    )
    assert done.code == 0, done.err
    found = sections_of(out)
    assert "first 2 of 3 stages" in found["Rate and distortion"]
    assert "bits a second" in found["Rate and distortion"]
    codec = TrainedCodec(out, device="cpu")
    encode_folder(codec, folder, tmp_path / "codes")
    decode_folder(codec, tmp_path / "codes", tmp_path / "back")
    samples, rate = read_wav(tmp_path / "back" / "3.wav")
    assert (samples.shape, rate) == ((1, 2400), 8000)
    with pytest.raises(ValueError, match=r"codes exists already"):
        encode_folder(codec, folder, tmp_path / "codes")
    (tmp_path / "codes" / "3.wav.codes.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no file of codes, or is damaged"):
        decode_folder(codec, tmp_path / "codes", tmp_path / "again")


@pytest.mark.parametrize(
    ("recipe", "change", "sentence"),
    [
        ("vq/digits", "quantizer.kind=vqq", "Did you mean vq?"),
        ("vq/digits", "quantizer.stages=4", "a quantizer of the kind scq does not read it"),
        ("vq/digits", "network.strides=[3]", "must be even numbers"),
        ("vq/digits", "network.strides=[2,2,2,2]", "strides of [2, 2, 2, 2] do not divide"),
        ("vq/digits", "crop=4", "Leave `crop` out"),
        ("vq/audio", "data=nowhere", "neither 'tones' nor a folder"),
        ("vq/audio", "prior.heads=3", "must divide `prior.width`"),
    ],
)
def test_bad_choices_get_a_sentence(run, tmp_path, recipe, change, sentence):
    pytest.importorskip("sklearn")
    done = run("run", recipe, *settings(change), "--out", tmp_path / "run")
    assert done.code == 2
    assert sentence in done.err


def test_a_run_that_diverges_is_reported_and_the_sweep_goes_on(run, tmp_path):
    tiny = ("--set", "steps=4", "--set", "evaluations=1", "--set", "evaluated=50", "--set", "prior=none")
    rates = ("--set", "quantizer.kind=vq", "--set", "optimizer.lr=1e6,1e-3")
    done = run("run", "vq/digits", *tiny, *rates, "--out", tmp_path / "sweep")
    assert "Traceback" not in done.err
    summaries = sorted(tmp_path.glob("sweep/*/summary.json"))
    stops = [json.loads(path.read_text())["stopped"] for path in summaries]
    assert sorted(stops) == ["finished", "not finite"], done.err


def test_a_list_that_looks_like_a_sweep_is_explained(run, tmp_path):
    done = run("run", "vq/digits", "--set", "network.strides=2,2", "--out", tmp_path / "run")
    assert done.code == 2
    assert "`network.strides` takes a list and got 2. Write it in brackets, such as [2,2]" in done.err

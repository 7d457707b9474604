"""Models of text: vocabularies, corpora, pairs to be translated, configs, and models as directories."""

import pytest
import torch

from featherlight.nn.models import Gpt
from featherlight.recipes.text.config import LanguageConfig, TextNetworkConfig, TranslationConfig
from featherlight.recipes.text.networks import (
    about_language,
    language_network,
    read_language_model,
    settled,
    write_model,
)
from featherlight.recipes.text.translation import BEGIN, END, FIRST, PADDING, draw_pairs
from featherlight.recipes.text.vocabulary import Vocabulary, load_corpus

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 10


@pytest.mark.parametrize("characters", ["", "".join(sorted(set(TEXT)))], ids=["bytes", "characters"])
def test_a_text_comes_back_from_its_tokens(characters):
    vocabulary = Vocabulary(characters=characters)
    tokens = vocabulary.encode(TEXT)
    assert vocabulary.decode(tokens) == TEXT
    assert int(tokens.max()) < len(vocabulary)


def test_a_corpus_is_split_at_its_end_and_counts_what_a_token_is_of(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "t.txt"), tokens="bytes", valid_fraction=0.2, context=8)
    whole = corpus.vocabulary.decode(torch.cat([corpus.train, corpus.valid]))
    assert whole == TEXT
    valid = corpus.vocabulary.decode(corpus.valid)
    assert corpus.characters_per_token == len(valid) / len(valid.encode())
    assert len(valid) == round(0.2 * len(TEXT))
    with pytest.raises(ValueError, match=r"too short: a part of it has \d+ tokens, and a sequence takes 901"):
        load_corpus(str(tmp_path / "t.txt"), tokens="bytes", valid_fraction=0.2, context=900)


def test_shakespeare_is_as_usual(real_data):
    corpus = load_corpus("shakespeare", tokens="characters", valid_fraction=0.5, context=8)
    assert (len(corpus.vocabulary), len(corpus.train), len(corpus.valid)) == (65, 1003854, 111540)


@pytest.mark.parametrize("task", ["copy", "reverse", "sort"])
def test_pairs_are_what_the_task_says(task):
    config = TranslationConfig(task=task, symbols=5, shortest=2, longest=6)
    pairs = draw_pairs(config, 50, 7)
    assert torch.equal(pairs.source, draw_pairs(config, 50, 7).source)
    assert not torch.equal(pairs.source, draw_pairs(config, 50, 8).source)
    lengths = set()
    for source, target in zip(pairs.source.tolist(), pairs.target.tolist(), strict=True):
        length = source.index(END)
        lengths.add(length)
        symbols = source[:length]
        wanted = {"copy": symbols, "reverse": symbols[::-1], "sort": sorted(symbols)}[task]
        assert all(FIRST <= one < FIRST + 5 for one in symbols)
        assert source[length + 1 :] == [PADDING] * (6 - length)
        assert target == [BEGIN, *wanted, END, *[PADDING] * (6 - length)]
    assert lengths == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("kind", ["gpt", "lstm", "rnn"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_from_its_directory(kind, tied, tmp_path):
    config = TextNetworkConfig(kind=kind, width=16, blocks=2, heads=2, tied=tied, norm="layer")
    vocabulary = Vocabulary(characters="abc")
    model = language_network(config, 3, 8, seed=1).eval()
    write_model(tmp_path / "model", model, about_language(config, vocabulary, 8))
    again = read_language_model(tmp_path)
    tokens = vocabulary.encode("abcab")[None]
    torch.testing.assert_close(again.model(tokens), model(tokens), rtol=0, atol=0)
    assert again.vocabulary == vocabulary
    assert (again.model.head.weight is again.model.tokens.weight) == tied
    assert isinstance(again.model, Gpt) == (kind == "gpt")
    (tmp_path / "model" / "config.json").write_text('{"architecture": "other"}')
    with pytest.raises(ValueError, match="cannot be read as a model of text"):
        read_language_model(tmp_path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TextNetworkConfig(width=10, heads=4), "must divide `network.width`; got 4 and 10"),
        (lambda: TextNetworkConfig(dropout=1.0), "must lie in"),
        (lambda: TextNetworkConfig(blocks=0), "`network.blocks` must be at least 1"),
        (lambda: LanguageConfig(context=0), "`context` must be at least 1"),
        (lambda: LanguageConfig(prompt=""), "a character at least"),
        (lambda: LanguageConfig(valid_fraction=1.0), "between 0 and 1"),
        (lambda: TranslationConfig(shortest=5, longest=4), "in this order"),
        (lambda: TranslationConfig(network=TextNetworkConfig(kind="rnn")), "`network.kind` is 'rnn'"),
        (lambda: LanguageConfig(steps=0), "`steps` must be at least 1"),
        (lambda: LanguageConfig(seed=-1), "must be in"),
        (lambda: settled(LanguageConfig(method="zo")), "must be one of .*adamw.*; got 'zo'"),
        (
            lambda: Vocabulary(characters="abc").encode("abx"),
            "1 characters that the model has no token for, such as 'x'",
        ),
        (
            lambda: read_language_model(__import__("pathlib").Path("nowhere")),
            "there is no model of text at nowhere",
        ),
    ],
)
def test_what_is_wrong_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

"""The config: what is written is what is read, and what is misspelt is found."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.recipes.config import to_toml
from featherlight.recipes.finetune import FinetuneConfig, OptimizerConfig
from featherlight.recipes.finetune.command import default_name, merged_config
from featherlight.recipes.finetune.config import config_from_text

CONFIGS = st.builds(
    FinetuneConfig,
    model=st.text(min_size=1),
    train=st.text(min_size=1),
    text=st.lists(st.text(min_size=1), max_size=2).map(tuple),
    method=st.sampled_from(["zo", "svrg", "fzoo", "lozo", "conmezo", "agzo", "mezo", "adamw"]),
    steps=st.none() | st.integers(1, 10**6),
    minutes=st.none() | st.floats(0.1, 1e4),
    seed=st.integers(0, 2**63 - 1),
    batch=st.integers(1, 4096),
    head_start=st.none() | st.booleans(),
    optimizer=st.builds(
        OptimizerConfig, lr=st.none() | st.floats(1e-9, 1.0), directions=st.none() | st.integers(1, 64)
    ),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CONFIGS)
def test_a_written_config_reads_as_itself(config: FinetuneConfig) -> None:
    assert config_from_text(to_toml(config, recipe="finetune/custom"), source="config.toml") == config


def test_flags_win_over_changes_and_changes_over_the_file(tmp_path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('model = "a"\ntrain = "b"\nbatch = 4\nminutes = 3\n[optimizer]\nsigma = 0.5\nlr = 1.0\n')
    config = merged_config({"steps": 7}, lr=0.1, config_file=file, changes=["optimizer.sigma=0.25", "batch=8"])
    assert (config.batch, config.steps, config.minutes) == (8, 7, None)
    assert (config.optimizer.lr, config.optimizer.sigma) == (0.1, 0.25)


def test_names_of_runs_say_model_data_and_method() -> None:
    config = FinetuneConfig(model="/models/My BERT", train="data/reviews 2.parquet", method="adamw")
    assert default_name(config) == "My-BERT-reviews-2-adamw"
    assert default_name(replace(config, method="zo")).endswith("-zo")


@pytest.mark.parametrize("values", [{"lr": 0.0}, {"lr": float("inf")}, {"sigma": -1.0}])
def test_optimizer_values_are_checked(values: dict) -> None:
    with pytest.raises(ValueError, match="finite positive"):
        OptimizerConfig(**values)

"""The friendly face of the fine-tuning recipe: from flags to a config."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.config import changed, from_mapping, known_keys, parse_set, read_toml
from featherlight.recipes.finetune.config import RECIPE, FinetuneConfig
from featherlight.recipes.runner import Plan, plan_runs


def merged_config(
    given: Mapping[str, Any], *, lr: float | None, config_file: Path | None, changes: Sequence[str]
) -> FinetuneConfig:
    """The config of a file, changed by `--set`, changed by flags.

    Raises:
        ValueError: model or data are missing, an unknown key, or a wrong value.
    """
    values: dict[str, Any] = read_toml(config_file)[1] if config_file is not None else {}
    values |= given
    if "steps" in given and "minutes" not in given:
        values.pop("minutes", None)
    missing = [name for name in ("model", "train") if name not in values]
    if missing and values.keys() <= set(known_keys(FinetuneConfig)):
        flags = " and ".join(f"`--{name}`" for name in missing)
        raise ValueError(
            f"{flags} {'is' if len(missing) == 1 else 'are'} missing: a fine-tune needs a model and rows to train on, such "
            "as --model minilm --train stdlib-docs."
        )
    config = from_mapping(FinetuneConfig, values, source=str(config_file or "the command line"))
    chosen = {key: _one(key, values) for key, values in map(parse_set, changes) if key not in given}
    chosen |= {} if lr is None else {"optimizer.lr": lr}
    if "steps" in chosen and "minutes" not in chosen.keys() | values.keys():
        chosen["minutes"] = None
    return changed(config, chosen, source="--set")


def plan_finetune(
    given: Mapping[str, Any], *, lr: float | None, config_file: Path | None, changes: Sequence[str], out: Path | None
) -> Plan:
    """The one run of a fine-tune, in `out` or in a directory named after it; raises as `merged_config` does."""
    config = merged_config(given, lr=lr, config_file=config_file, changes=changes)
    path = out if out is not None else Path("runs") / default_name(config)
    return plan_runs(find_recipe(RECIPE), base=config, changes=[], seeds=1, out=path)


def default_name(config: FinetuneConfig) -> str:
    """Model, data and method, such as minilm-stdlib-docs-zo."""
    parts = (Path(config.model).name, Path(config.train).stem, config.method)
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-") for part in parts)


def _one(key: str, values: Sequence[Any]) -> Any:
    if len(values) > 1:
        raise ValueError(
            f"`--set {key}` has {len(values)} values, and a fine-tune takes one. `featherlight run finetune/custom` makes a "
            "sweep of several."
        )
    return values[0]

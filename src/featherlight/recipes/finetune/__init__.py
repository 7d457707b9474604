"""Fine-tuning of pretrained text models: `config.py` what is asked, `run.py` how it is done, `use.py` what comes of it."""

from featherlight.recipes.finetune.config import FinetuneConfig, OptimizerConfig, config_from_mapping, read_config
from featherlight.recipes.finetune.run import Finished, finetune

__all__ = ["FinetuneConfig", "Finished", "OptimizerConfig", "config_from_mapping", "finetune", "read_config"]

"""Fine-tuning of pretrained text models.

`config.py` is what is asked, `experiment.py` how it is put together, `use.py` what is done with the result, `recipes.py`
the recipes, `command.py` the face on the command line.
"""

from featherlight.recipes.finetune.config import FinetuneConfig, OptimizerConfig

__all__ = ["FinetuneConfig", "OptimizerConfig"]

"""Image classification: `config.py` what is asked, `experiment.py` how it is put together, `recipes.py` the recipes."""

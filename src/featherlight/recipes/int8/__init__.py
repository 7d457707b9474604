"""Image classifiers for whole numbers of 8 bits: `config.py` what is asked, `experiment.py` how, `recipes.py` the recipes."""

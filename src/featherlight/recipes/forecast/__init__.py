"""What a system does, told from what is done to it: `config.py`, `experiment.py`, a linear rival, and the recipes."""

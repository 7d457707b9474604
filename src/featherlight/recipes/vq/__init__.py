"""Autoencoders with vector quantizers: `config.py` what is asked, `quantizers.py` the quantizers by name, `experiment.py`
how a run is put together, `recipes.py` the recipes, `use.py` what is done with a finished one.
"""

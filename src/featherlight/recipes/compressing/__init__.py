"""Post-training compression.

`models.py` what is compressed and how well it does, `rounding.py` weights to a grid, `search.py` how coarse the grid may be.
"""

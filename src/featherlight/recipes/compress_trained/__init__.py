"""What `featherlight compress` does to a network that is trained already; recipes that train one small are in `recipes/compress`.

`models.py` what is compressed and how well it does, `rounding.py` weights to a grid, `search.py` how coarse the grid may be,
`picture.py` where the bytes of a file are.
"""

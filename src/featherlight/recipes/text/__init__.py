"""Text: `config.py` what is asked, `language.py` and `translation.py` how it is put together, `recipes.py` the recipes."""

"""Deep compression of image classifiers: `config.py` what is asked, `experiment.py` the stages, `sections.py` what is shown."""

"""Recipes of fine-tunes that need nothing but what installed packages carry, and the one that `finetune` fills in."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.finetune.config import FinetuneConfig

_STDLIB_DOCS = FinetuneConfig(model="minilm", train="stdlib-docs", trainable="last:2", minutes=1.0)


@recipe(cost="2 minutes on 2 cores, the memory of inference", data="docstrings of Python's own library")
def stdlib_docs() -> FinetuneConfig:
    """MiniLM tells module families by their docstrings: head start, then forward passes alone."""
    return _STDLIB_DOCS


@recipe(cost="2 minutes on 2 cores", data="docstrings of Python's own library")
def stdlib_docs_adamw() -> FinetuneConfig:
    """The same with AdamW, the ceiling where memory allows it."""
    return replace(_STDLIB_DOCS, method="adamw")


@recipe(cost="as its budget says", data="your own file")
def custom() -> FinetuneConfig:
    """What `featherlight finetune` fills in: any model, any file of texts, any method."""
    return FinetuneConfig(model="minilm", train="stdlib-docs")

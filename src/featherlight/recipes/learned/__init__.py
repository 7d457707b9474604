"""Optimizers learned on a class of problems, beside tuned ones that were not."""

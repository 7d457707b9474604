"""Predicts what fits before it runs: memory and time of ways to train, and the cheapest activation checkpointing."""

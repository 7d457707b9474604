"""Recipes: a run is a function of a frozen config."""

"""Modules, and ways to run parts of them."""

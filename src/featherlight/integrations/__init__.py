"""Thin adapters between featherlight and other people's formats and trainers."""

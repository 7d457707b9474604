"""Implicit models: sequential and state-driven training, and the full implicit layer in the usual loop."""

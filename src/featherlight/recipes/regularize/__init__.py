"""Small studies of what regularizes: the same training with one thing varied, side by side in one report."""

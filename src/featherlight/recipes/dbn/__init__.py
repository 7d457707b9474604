"""Deep belief nets."""

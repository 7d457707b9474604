"""Networks on whole numbers of 8 bits."""

"""Training in number formats of few bits: real ones, and emulated ones beside them."""

"""What fits before it runs: costs of chains and the cheapest activation checkpointing."""

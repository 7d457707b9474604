"""Train, fine-tune and ship neural networks within a budget of memory, time and bytes."""

__version__ = "0.1.0"

"""From model to model: the base of a fine-tune held in few bits."""

from featherlight.transforms.quantize_base import QuantizedBase, dequantize, quantize_base

__all__ = ["QuantizedBase", "dequantize", "quantize_base"]

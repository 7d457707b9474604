"""From model to model: the seam that transforms share, and the base of a fine-tune held in few bits."""

from featherlight.transforms.protocols import ModelTransform, TransformStack
from featherlight.transforms.quantize_base import QuantizedBase, dequantize, quantize_base

__all__ = ["ModelTransform", "QuantizedBase", "TransformStack", "dequantize", "quantize_base"]

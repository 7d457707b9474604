"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer

__all__ = ["Codes", "Quantized", "Quantizer", "lengths_to_mask"]

"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer
from featherlight.nn.vector_quantizers.usage import CodebookUsage, StageUsage, Usage
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid

__all__ = [
    "CodebookUsage",
    "Codes",
    "Quantized",
    "Quantizer",
    "StageUsage",
    "Usage",
    "WeightGrid",
    "lengths_to_mask",
]

"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.assignment import Assignment, Cosine, Nearest, nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook, DataInit, codebook_parameter_groups
from featherlight.nn.vector_quantizers.kmeans import KMeans
from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer
from featherlight.nn.vector_quantizers.usage import CodebookUsage, StageUsage, Usage
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid

__all__ = [
    "Assignment",
    "Codebook",
    "CodebookUsage",
    "Codes",
    "Cosine",
    "DataInit",
    "KMeans",
    "Nearest",
    "Quantized",
    "Quantizer",
    "StageUsage",
    "Usage",
    "WeightGrid",
    "codebook_parameter_groups",
    "lengths_to_mask",
    "nearest_codes",
]

"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.assignment import Assignment, Cosine, Nearest, nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook, DataInit, codebook_parameter_groups
from featherlight.nn.vector_quantizers.kmeans import KMeans
from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer

__all__ = [
    "Assignment",
    "Codebook",
    "Codes",
    "Cosine",
    "DataInit",
    "KMeans",
    "Nearest",
    "Quantized",
    "Quantizer",
    "codebook_parameter_groups",
    "lengths_to_mask",
    "nearest_codes",
]

"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.assignment import Assignment, Cosine, Nearest, nearest_codes
from featherlight.nn.vector_quantizers.codebook import Codebook, DataInit, codebook_parameter_groups
from featherlight.nn.vector_quantizers.compatibility import VectorQuantizeOptions
from featherlight.nn.vector_quantizers.dead_codes import ReplaceDead
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, RotationTrick, StraightThrough
from featherlight.nn.vector_quantizers.kmeans import KMeans, Start
from featherlight.nn.vector_quantizers.learning import Assigned, EmaUpdate, GradientUpdate, Learner, Learning
from featherlight.nn.vector_quantizers.peer_weights import load_vector_quantize
from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.projected import ProjectedQuantizer
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer
from featherlight.nn.vector_quantizers.vector_quantizer import VectorQuantizer

__all__ = [
    "Assigned",
    "Assignment",
    "Codebook",
    "Codes",
    "Cosine",
    "DataInit",
    "EmaUpdate",
    "GradientEstimator",
    "GradientUpdate",
    "KMeans",
    "Learner",
    "Learning",
    "Nearest",
    "ProjectedQuantizer",
    "Quantized",
    "Quantizer",
    "ReplaceDead",
    "RotationTrick",
    "Start",
    "StraightThrough",
    "VectorQuantizeOptions",
    "VectorQuantizer",
    "codebook_parameter_groups",
    "lengths_to_mask",
    "load_vector_quantize",
    "nearest_codes",
]

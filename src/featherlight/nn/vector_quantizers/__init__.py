"""Vector quantizers: layers that replace vectors by codes, all with one result."""

from featherlight.nn.vector_quantizers.assignment import Assignment, Cosine, Nearest, nearest_codes
from featherlight.nn.vector_quantizers.balancing import Balancing, EntropyBalancing
from featherlight.nn.vector_quantizers.codebook import Codebook, DataInit, codebook_parameter_groups
from featherlight.nn.vector_quantizers.compatibility import VectorQuantizeOptions
from featherlight.nn.vector_quantizers.dead_codes import ReplaceDead
from featherlight.nn.vector_quantizers.diveq import DiVeQ
from featherlight.nn.vector_quantizers.finite_scalar import FiniteScalarQuantizer
from featherlight.nn.vector_quantizers.gradients import GradientEstimator, RotationTrick, StraightThrough
from featherlight.nn.vector_quantizers.grouped import GroupedQuantizer
from featherlight.nn.vector_quantizers.gumbel import GumbelQuantizer
from featherlight.nn.vector_quantizers.kmeans import KMeans, Start
from featherlight.nn.vector_quantizers.learning import Assigned, EmaUpdate, GradientUpdate, Learner, Learning
from featherlight.nn.vector_quantizers.lookup_free import EntropyLoss, LookupFreeQuantizer
from featherlight.nn.vector_quantizers.mixing import Exact, Mixing, Mixture, Relaxed, Sparse, bits_of
from featherlight.nn.vector_quantizers.peer_weights import load_vector_quantize
from featherlight.nn.vector_quantizers.positions import lengths_to_mask
from featherlight.nn.vector_quantizers.projected import ProjectedQuantizer
from featherlight.nn.vector_quantizers.residual import ResidualQuantizer, StageDropout
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer
from featherlight.nn.vector_quantizers.sim_vq import SimVQ
from featherlight.nn.vector_quantizers.soft_convex import SoftConvexQuantizer
from featherlight.nn.vector_quantizers.usage import CodebookUsage, StageUsage, Usage
from featherlight.nn.vector_quantizers.vector_quantizer import VectorQuantizer
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid

__all__ = [
    "Assigned",
    "Assignment",
    "Balancing",
    "Codebook",
    "CodebookUsage",
    "Codes",
    "Cosine",
    "DataInit",
    "DiVeQ",
    "EmaUpdate",
    "EntropyBalancing",
    "EntropyLoss",
    "Exact",
    "FiniteScalarQuantizer",
    "GradientEstimator",
    "GradientUpdate",
    "GroupedQuantizer",
    "GumbelQuantizer",
    "KMeans",
    "Learner",
    "Learning",
    "LookupFreeQuantizer",
    "Mixing",
    "Mixture",
    "Nearest",
    "ProjectedQuantizer",
    "Quantized",
    "Quantizer",
    "Relaxed",
    "ReplaceDead",
    "ResidualQuantizer",
    "RotationTrick",
    "SimVQ",
    "SoftConvexQuantizer",
    "Sparse",
    "StageDropout",
    "StageUsage",
    "Start",
    "StraightThrough",
    "Usage",
    "VectorQuantizeOptions",
    "VectorQuantizer",
    "WeightGrid",
    "bits_of",
    "codebook_parameter_groups",
    "lengths_to_mask",
    "load_vector_quantize",
    "nearest_codes",
]

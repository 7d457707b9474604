"""From model to model: the seam that transforms share, pruning, shared weights, and a base held in few bits."""

from featherlight.transforms.dead_units import DeadUnits, remove_dead_units, zero_dead_units
from featherlight.transforms.protocols import ModelTransform, TransformStack
from featherlight.transforms.prune import Prune, prune_weights
from featherlight.transforms.prune_channels import ChannelsPruned, prune_channels
from featherlight.transforms.prune_patterns import Global, LayerAdaptive, NOfM, PerLayer, SparsityPattern
from featherlight.transforms.prune_schedule import AT_ONCE, CubicSchedule
from featherlight.transforms.prune_sparse_kernels import use_sparse_kernels
from featherlight.transforms.quantize_base import QuantizedBase, dequantize, quantize_base
from featherlight.transforms.share_weights import ShareWeights
from featherlight.transforms.share_weights_codes import FixedCodes, Reassigned, rate_distortion_codes
from featherlight.transforms.share_weights_kmeans import kmeans_1d
from featherlight.transforms.share_weights_rate import RatePenalty, estimated_bits, expected_bits_per_weight
from featherlight.transforms.share_weights_rounding import share_weights, squared_gradients

__all__ = [
    "AT_ONCE",
    "ChannelsPruned",
    "CubicSchedule",
    "DeadUnits",
    "FixedCodes",
    "Global",
    "LayerAdaptive",
    "ModelTransform",
    "NOfM",
    "PerLayer",
    "Prune",
    "QuantizedBase",
    "RatePenalty",
    "Reassigned",
    "ShareWeights",
    "SparsityPattern",
    "TransformStack",
    "dequantize",
    "estimated_bits",
    "expected_bits_per_weight",
    "kmeans_1d",
    "prune_channels",
    "prune_weights",
    "quantize_base",
    "rate_distortion_codes",
    "remove_dead_units",
    "share_weights",
    "squared_gradients",
    "use_sparse_kernels",
    "zero_dead_units",
]

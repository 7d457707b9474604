"""Modules, and ways to run parts of them. The layers that networks are built from can be imported from here."""

from featherlight.nn.implicit import Equilibrium, ImplicitLayer, ODELayer
from featherlight.nn.vector_quantizers import Codebook, Codes, Quantized, SoftConvexQuantizer, VectorQuantizer

__all__ = [
    "Codebook",
    "Codes",
    "Equilibrium",
    "ImplicitLayer",
    "ODELayer",
    "Quantized",
    "SoftConvexQuantizer",
    "VectorQuantizer",
]

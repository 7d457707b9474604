"""Pure tensor functions: counter-based random bits, matrices kept as small whole numbers, and what their levels cost."""

from featherlight.functional.entropy_model import EntropyModel, level_contexts, soft_assign
from featherlight.functional.fake_quantize import fake_quantize, fake_quantize_learned, grid_codes, symmetric_high
from featherlight.functional.integer_grid import IntegerGrid
from featherlight.functional.philox import philox_4x32
from featherlight.functional.quantized_tensor import LowRankChange, QuantizedTensor
from featherlight.functional.signs import (
    SIGNS_PER_BLOCK,
    Segment,
    SignBits,
    SignStream,
    pack_signs,
    random_signs,
    random_words,
    signs_at,
    unpack_signs,
)

__all__ = [
    "SIGNS_PER_BLOCK",
    "EntropyModel",
    "IntegerGrid",
    "LowRankChange",
    "QuantizedTensor",
    "Segment",
    "SignBits",
    "SignStream",
    "fake_quantize",
    "fake_quantize_learned",
    "grid_codes",
    "level_contexts",
    "pack_signs",
    "philox_4x32",
    "random_signs",
    "random_words",
    "signs_at",
    "soft_assign",
    "symmetric_high",
    "unpack_signs",
]

"""Pure tensor functions: counter-based random bits, small whole numbers, and formats of few bits."""

from featherlight.functional.entropy_model import EntropyModel, level_contexts, soft_assign
from featherlight.functional.fake_quantize import fake_quantize, fake_quantize_learned, grid_codes, symmetric_high
from featherlight.functional.float_formats import (
    FORMATS,
    BlockFormat,
    FloatFormat,
    NumberFormat,
    float32_scales,
    power_of_two_scales,
    round_to,
    two_level_scales,
)
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
    "FORMATS",
    "SIGNS_PER_BLOCK",
    "BlockFormat",
    "EntropyModel",
    "FloatFormat",
    "IntegerGrid",
    "LowRankChange",
    "NumberFormat",
    "QuantizedTensor",
    "Segment",
    "SignBits",
    "SignStream",
    "fake_quantize",
    "fake_quantize_learned",
    "float32_scales",
    "grid_codes",
    "level_contexts",
    "pack_signs",
    "philox_4x32",
    "power_of_two_scales",
    "random_signs",
    "random_words",
    "round_to",
    "signs_at",
    "soft_assign",
    "symmetric_high",
    "two_level_scales",
    "unpack_signs",
]

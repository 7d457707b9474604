"""Pure tensor functions: the counter-based random bits that every direction is made of."""

from featherlight.functional.philox import philox_4x32
from featherlight.functional.signs import (
    SIGNS_PER_BLOCK,
    Segment,
    SignBits,
    SignStream,
    random_signs,
    random_words,
    signs_at,
)

__all__ = [
    "SIGNS_PER_BLOCK",
    "Segment",
    "SignBits",
    "SignStream",
    "philox_4x32",
    "random_signs",
    "random_words",
    "signs_at",
]

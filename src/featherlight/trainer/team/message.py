"""What a process tells of a step, as bytes: 25 and two for each direction.

u8 flags, f32 scale, f32 loss, f64 seconds, 8 bytes digest, K x i16 coefficient        little-endian
"""

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from featherlight.optim.zeroth_order import Part

_HEAD = struct.Struct("<Bffd8s")
_SIGNALLED, _FAILED, _DIGEST = 1, 2, 4
HEAD_BYTES = _HEAD.size
_NOTHING = Part(coefficients=torch.zeros(0, dtype=torch.int64), scale=0.0, loss=0.0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a process tells of a step.

    Attributes:
        part: its coefficients; empty where it failed.
        seconds: it has spent in steps.
        signalled: whether it was asked to stop.
        failed: whether its losses were not finite.
        digest: first 8 bytes of that of its weights before the step; None where none is due.
    """

    part: Part = _NOTHING
    seconds: float = 0.0
    signalled: bool = False
    failed: bool = False
    digest: bytes | None = None

    def encode(self) -> bytes:
        """The bytes."""
        flags = _SIGNALLED * self.signalled | _FAILED * self.failed | _DIGEST * (self.digest is not None)
        head = _HEAD.pack(flags, self.part.scale, self.part.loss, self.seconds, self.digest or bytes(8))
        return head + self.part.coefficients.numpy().astype("<i2").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From what `encode` made; raises ValueError for what it did not."""
        if len(data) < HEAD_BYTES or (len(data) - HEAD_BYTES) % 2:
            raise ValueError(f"{len(data)} bytes are no message of a step. The processes run different versions.")
        flags, scale, loss, seconds, digest = _HEAD.unpack_from(data)
        integers = torch.from_numpy(np.frombuffer(data, "<i2", offset=HEAD_BYTES).astype(np.int64))
        return cls(
            part=Part(coefficients=integers, scale=scale, loss=loss),
            seconds=seconds,
            signalled=bool(flags & _SIGNALLED),
            failed=bool(flags & _FAILED),
            digest=digest if flags & _DIGEST else None,
        )

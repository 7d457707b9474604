"""In which format matrix products and convolutions are computed, while the weights stay in float32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

_COMPUTE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """In which format matrix products and convolutions are computed; what sums (norms, softmax, losses) stays in float32.

    The parameters are the float32 master weights: each forward pass makes copies of them in the lower format, their
    gradients are in float32, and so is the optimizer's state. `featherlight.objective.autocast` puts a loss under it.

    Args:
        compute: float32, bfloat16 or float16. float16 has so small a range that training by gradients also needs
            `featherlight.optim.WithLossScaling`.

    Raises:
        ValueError: another format.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740, section 3.1); torch.autocast.
    """

    compute: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.compute not in _COMPUTE:
            raise ValueError(
                f"`compute` must be torch.float32, torch.bfloat16 or torch.float16, in which autocast can compute; got "
                f"{self.compute}. Smaller formats are emulated, see featherlight.functional.round_to."
            )

    @property
    def needs_scaling(self) -> bool:
        """Whether gradients underflow without loss scaling, since the format ends at 2**-24."""
        return self.compute is torch.float16

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """Within the block, operations on a device compute in the format; anything is as it was in float32."""
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)

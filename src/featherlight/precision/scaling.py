"""The factor of the loss that keeps small gradients above the end of float16, and how it finds its size."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SMALLEST_NORMAL = 2.0**-14
"""Of float16; below it entries lose bits, and below 2**-25 they are rounded to zero."""

_KEPT = ("scale", "good_steps", "skipped", "recomputed", "in_vain", "underflow_share")


class LossScaler:
    """A factor of the loss that doubles after a stretch of good steps and is halved where a gradient overflows.

    It is a power of two, so that scaling and unscaling change no bit of a gradient that neither over- nor underflows.
    It holds no tensors. `featherlight.optim.WithLossScaling` decides by it which steps are applied.

    Args:
        initial: scale of the first step, a power of two of at least 1.
        growth_every: good steps in turn after which the scale is doubled.

    Attributes:
        scale: of the next gradient; never below 1.
        good_steps: applied since the scale last changed.
        skipped: steps that were not applied, since a gradient was not finite.
        recomputed: gradients that were computed again at half the scale, in the midst of a step.
        in_vain: steps in turn that were skipped at a scale of 1, which cannot fall further.
        underflow_share: of the entries of the last gradient, those that the scale saved: non-zero, but in float16 without
            it zero or subnormal.
        overflowed: whether the last gradient was not finite.

    Raises:
        ValueError: `initial` is no power of two of at least 1, or `growth_every` is below 1.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740, section 3.2). torch.amp.GradScaler refuses closures, lets the scale
    fall below 1 and counts nothing, so it is not used.
    """

    def __init__(self, *, initial: float = 2.0**16, growth_every: int = 2000) -> None:
        if not 1 <= initial < 2.0**127 or math.frexp(initial)[0] != 0.5:
            raise ValueError(
                f"`initial` must be a power of two from 1 on, by which scaling changes no bits; got {initial}. Take 2.0**16."
            )
        if growth_every < 1:
            raise ValueError(f"`growth_every` must be at least 1 step; got {growth_every}. 2000 is usual.")
        self.growth_every = growth_every
        self.scale = float(initial)
        self.good_steps = 0
        self.skipped = 0
        self.recomputed = 0
        self.in_vain = 0
        self.underflow_share = 0.0
        self.overflowed = False

    def unscale(self, gradients: Iterable[Tensor], total: Callable[[Tensor], Tensor] = lambda counts: counts) -> None:
        """Divides gradients by the scale, in place, and notes whether they overflowed and what the scale saved.

        Args:
            gradients: of the scaled loss, in float32 or another format of its range; dense, sparse or spread over
                processes.
            total: sums counts, int64, (3,), over the processes that share the step, so that all agree on a skip.

        Cost: about seven passes over the gradients, and one synchronization with the device.
        """
        found = torch.zeros(3, dtype=torch.int64)
        with torch.no_grad():
            for gradient in gradients:
                entries = _own_entries(gradient)
                if entries.numel():
                    here = _counts(entries.mul_(1 / self.scale))
                    found = found.to(here.device) + here
            non_finite, saved, in_all = total(found).tolist()
        self.overflowed = non_finite > 0
        self.underflow_share = saved / max(in_all, 1)

    def note_applied(self) -> None:
        """Counts a good step, after a stretch of which the scale is doubled."""
        self.in_vain = 0
        self.good_steps += 1
        if self.good_steps == self.growth_every:
            self.scale, self.good_steps = 2 * self.scale, 0

    def note_skipped(self) -> None:
        """Counts a step that was not applied, and halves the scale."""
        self.in_vain = self.in_vain + 1 if self.scale == 1 else 0
        self.skipped += 1
        self._halve()

    def note_recomputed(self) -> None:
        """Counts a gradient that is to be computed again in the midst of a step, and halves the scale."""
        self.recomputed += 1
        self._halve()

    def state_dict(self) -> dict[str, Any]:
        """Numbers by name: all that the next steps depend on."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        for name in _KEPT:
            setattr(self, name, state[name])

    def _halve(self) -> None:
        self.scale, self.good_steps = max(1.0, self.scale / 2), 0


def _counts(entries: Tensor) -> Tensor:
    """Whether one is not finite, how many are non-zero but not normal in float16, and how many there are; int64, (3,).

    Comparisons go to floats and their sums are of whole numbers, which is far quicker than by way of booleans.
    """
    size = entries.abs()
    flags = torch.empty(size.shape, dtype=torch.float32, device=size.device)
    below = torch.lt(size, SMALLEST_NORMAL, out=flags).sum()
    zero = torch.eq(size, 0, out=flags).sum()
    in_all = torch.tensor(entries.numel(), device=size.device)
    return torch.stack(((~size.amax().isfinite()).long(), (below - zero).long(), in_all))


def _own_entries(gradient: Tensor) -> Tensor:
    """The entries of a gradient that this process holds, as a view."""
    if gradient.is_sparse:
        return gradient._values()
    if type(gradient) is Tensor:
        return gradient
    from torch.distributed.tensor import DTensor

    return gradient.to_local() if isinstance(gradient, DTensor) else gradient

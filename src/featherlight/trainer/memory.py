"""What a run takes: weights, a forward pass, a training step, and what AdamW would take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from featherlight.functional import QuantizedTensor
from featherlight.meter import AllocationPeak, allocation_peak, saved_for_backward_bytes
from featherlight.objective import BatchObjective, Objective
from featherlight.trainer.parallel import own_bytes

_PROBED_EXAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes of tensors: weights, and peaks with the weights counted in. None is what could not be measured.

    `curve` is what the steps took after each change, above the weights.
    """

    weights: int
    measured_by: str
    inference_peak: int | None = None
    adamw_estimate: int | None = None
    training_peak: int | None = None
    curve: Sequence[int] = ()

    def with_training(self, peak: AllocationPeak) -> "MemoryUse":
        """With the peak of training steps and the curve to it, measured as bytes above the weights."""
        return replace(self, training_peak=self.weights + peak.bytes, curve=tuple(peak.curve))


def measure_memory(model: nn.Module, objective: Objective | None = None) -> MemoryUse:
    """Measures a forward pass of a batch, and what AdamW would take from its weights and what a pass saves.

    The activations of a backward pass are measured on two examples and scaled to the batch; gradients and the two
    moments of AdamW take three times the trained weights. Without an objective only the weights are known.
    """
    weights = sum(own_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(iter((*model.parameters(), *model.buffers()))).device
    measured_by = "tensor allocations" + (" on CUDA" if device.type == "cuda" else ", torch profiler")
    if objective is None:
        return MemoryUse(weights=weights, measured_by=measured_by)
    training = model.training
    model.eval()
    with torch.no_grad(), allocation_peak(device) as inference:
        objective.value()
    found = MemoryUse(weights=weights, inference_peak=weights + inference.bytes, measured_by=measured_by)
    if isinstance(objective, BatchObjective):
        few = objective.narrow(_PROBED_EXAMPLES)
        saved = saved_for_backward_bytes(lambda: few.loss(model, few.batch))
        scaled = saved * (objective.micro_batch or objective.num_examples) // few.num_examples
        found = replace(found, adamw_estimate=weights + sum(map(_more_with_adamw, trained)) + scaled)
    model.train(training)
    return found


def _more_with_adamw(parameter: nn.Parameter) -> int:
    """Bytes that AdamW needs besides: gradient and moments, and floats instead of what is quantized."""
    if isinstance(parameter, QuantizedTensor):
        return 4 * parameter.numel() * parameter.element_size() - own_bytes(parameter)
    return 3 * own_bytes(parameter)

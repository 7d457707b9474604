"""Ranges from calibration data: every activation's histogram, and what a rule makes of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherlight.transforms.quantize.graph import QuantizedGraph, quantized_graph
from featherlight.transforms.quantize.ranges import CalibrationRange, Histogram, LeastSquares

_BINS = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Data that ranges of activations are chosen from.

    Args:
        batches: inputs of the model, each a batch; looked at twice.
        ranges: what chooses a range.

    Raises:
        ValueError: there are no batches, one is empty, or one holds NaN or infinite numbers.
    """

    batches: Sequence[Tensor]
    ranges: CalibrationRange = field(default_factory=LeastSquares)

    def __post_init__(self) -> None:
        if not len(self.batches) or any(not batch.numel() for batch in self.batches):
            raise ValueError(
                "the calibration data are empty, so that there is no range to choose. Give a few hundred examples of training "
                "data, in batches."
            )
        for number, batch in enumerate(self.batches):
            if batch.is_floating_point() and not torch.isfinite(batch).all():
                raise ValueError(
                    f"batch {number} of the calibration data holds NaN or infinite numbers, which would make every range "
                    "infinite. Take them out."
                )


@torch.no_grad()
def calibrate(model: nn.Module, calibration: Calibration) -> None:
    """Sets the range of every activation of a prepared model from data, with the weights rounded.

    Args:
        model: prepared.
        calibration: the data and the rule.

    Raises:
        ValueError: data of another shape than the example, or an activation that is not finite, or 0 on all data.

    Cost: two forward passes over the data, in evaluation mode.
    """
    graph = quantized_graph(model)
    for batch in calibration.batches:
        if tuple(batch.shape[1:]) != graph.example_shape:
            raise ValueError(
                f"calibration data have the shape {tuple(batch.shape)}, but the model was prepared for examples of the shape "
                f"{graph.example_shape}, with the batch before it. Prepare the data as for training."
            )
    with _recorded(model, graph, seen := _Ends()):
        for batch in calibration.batches:
            model(batch)
    seen.check(graph)
    with _recorded(model, graph, histograms := _Histograms(seen)):
        for batch in calibration.batches:
            model(batch)
    for name, counts in histograms.counts.items():
        low, high = calibration.ranges.ends(
            Histogram(counts_N=counts, low=seen.low[name], high=seen.high[name]), levels=graph.grid.levels
        )
        graph.quantizer(name).set_range(low, high)


class _Ends:
    """The lowest and the highest value of each activation."""

    def __init__(self) -> None:
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}

    def record(self, name: str, value: Tensor) -> None:
        low, high = (float(end) for end in value.aminmax())
        self.low[name] = min(low, self.low.get(name, low))
        self.high[name] = max(high, self.high.get(name, high))

    def check(self, graph: QuantizedGraph) -> None:
        for name in graph.activations:
            low, high = self.low[name], self.high[name]
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise ValueError(
                    f"`{name}` is not finite on the calibration data (it reaches {low:g} to {high:g}), so that it has no range. "
                    "Look for NaN in the weights, or overflow."
                )
            if low == high == 0:
                raise ValueError(
                    f"`{name}` is 0 on all calibration data, which says nothing of its range: the layer is dead, or the data are "
                    "constant. Take other data, or leave the layer out."
                )


class _Histograms:
    """How often values of each activation fell into equal bins between its ends."""

    def __init__(self, ends: _Ends) -> None:
        self._ends = ends
        self.counts: dict[str, Tensor] = {}

    def record(self, name: str, value: Tensor) -> None:
        low, high = self._ends.low[name], self._ends.high[name]
        if low == high:
            made = torch.zeros(_BINS)
            made[-1] = value.numel()
        else:
            made = torch.histc(value.float(), _BINS, low, high).cpu()
        self.counts[name] = self.counts.get(name, 0) + made.to(torch.float64)


@contextmanager
def _recorded(model: nn.Module, graph: QuantizedGraph, recorder: _Ends | _Histograms) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    graph.recorder = recorder
    try:
        yield
    finally:
        graph.recorder = None
        for module, mode in modes.items():
            module.training = mode

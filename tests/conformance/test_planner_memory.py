"""One contract for a handful of nets and optimizers: the predicted peak is within 2% of the profiler's."""

import pytest
import torch

from benchmarks.planner_memory import OPTIMIZERS, predicted, steps
from benchmarks.planner_nets import NETS
from featherlight.meter import allocation_peak

CASES = [
    ("MLP", "AdamW"),
    ("MLP", "Muon"),
    ("LeNet-5", "SGD"),
    ("LSTM of text", "AdamW"),
    ("LSTM of text", "MeZO"),
    ("autoencoder", "Prodigy"),
    ("vector quantizer", "zo"),
    ("BERT", "AdamW"),
]


@pytest.mark.parametrize(("net", "optimizer"), CASES)
def test_predicted_peaks_are_those_of_the_profiler(net: str, optimizer: str) -> None:
    assert optimizer in OPTIMIZERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = NETS[net]()
        found = predicted(problem, optimizer)
        assert found.measured is None
        with allocation_peak() as peak:
            steps(problem, optimizer)
    assert abs(found.above_start / peak.bytes - 1) <= 0.02

"""A vector quantizer in float64, row by row: nearest codes, losses and their gradients, moving averages."""

import torch
from torch import Tensor


class SlowVectorQuantizer:
    """One codebook, learned by moving averages; `counts` and `sums` are what they hold."""

    def __init__(self, codes_KF: Tensor, *, decay: float, eps: float, commitment: float) -> None:
        self.codes = codes_KF.double().clone()
        self.counts = torch.ones(len(codes_KF), dtype=torch.float64)
        self.sums = self.codes.clone()
        self.decay, self.eps, self.commitment = decay, eps, commitment

    def step(self, rows_NF: Tensor, mask_N: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
        """One training batch: values, indices, the loss and its gradient with respect to the rows; learns from it."""
        rows = rows_NF.double()
        values, grads = torch.zeros_like(rows), torch.zeros_like(rows)
        indices = torch.full((len(rows),), -1)
        loss, number = 0.0, int(mask_N.sum())
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for n in range(len(rows)):
            if not mask_N[n]:
                continue
            distances = [float((rows[n] - code).square().sum()) for code in self.codes]
            k = distances.index(min(distances))
            indices[n], values[n] = k, self.codes[k]
            loss += self.commitment * distances[k] / rows.shape[1] / number
            grads[n] = 2 * self.commitment * (rows[n] - self.codes[k]) / rows.shape[1] / number
            counts[k] += 1
            sums[k] += rows[n]
        self._learn(counts, sums)
        return values, indices, loss, grads

    def _learn(self, counts: Tensor, sums: Tensor) -> None:
        self.counts = self.decay * self.counts + (1 - self.decay) * counts
        self.sums = self.decay * self.sums + (1 - self.decay) * sums
        total = float(self.counts.sum())
        for k in range(len(self.codes)):
            smoothed = (self.counts[k] + self.eps) / (total + len(self.codes) * self.eps) * total
            self.codes[k] = self.sums[k] / smoothed

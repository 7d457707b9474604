"""A strictly triangular model as a feed-forward network of sparse layers.

Legend of shapes: N samples, I inputs, S numbers of a state, Y outputs, z what a layer reads.
"""

import torch
from torch import Tensor, nn

from featherlight.nn.implicit.convert.sparse import stacked
from featherlight.nn.implicit.convert.system import ImplicitSystem
from featherlight.nn.implicit.results import ImplicitResult


class FeedForward(nn.Module):
    """The model x = phi(A x + B u + b), y = C x + D u + e by one pass through its blocks, from the last to the first.

    Entries of the matrices and biases are parameters, so that a converted network can be trained on; entries that are
    nought stay so.

    Args:
        system: with nothing on and below the diagonal blocks of A.

    Attributes:
        values: nonzero entries of each layer's matrix, the states' from the last block on, then the read-out's.
        biases: of each layer.

    Raises:
        ValueError: A is not strictly upper block triangular, or there is no state.

    Cost: one product of a sparse matrix with (z, N) a layer. It keeps all states of a batch, as backpropagation does.
    """

    def __init__(self, system: ImplicitSystem) -> None:
        super().__init__()
        _check(system)
        self.in_features, self.state_dim, self.out_features = system.b.shape[1], system.a.shape[0], system.c.shape[0]
        self._activations = [block.activation for block in reversed(system.blocks)]
        self.values, self.biases = nn.ParameterList(), nn.ParameterList()
        ab, cd = stacked([[system.a, system.b]]), stacked([[system.c, system.d]])
        end = self.state_dim
        for k, block in enumerate(reversed(system.blocks)):
            row = ab.indices()[0]
            kept = (row >= end - block.size) & (row < end)
            self._add(k, ab.indices()[:, kept], ab.values()[kept], end - block.size, end)
            self.biases.append(nn.Parameter(system.state_bias[end - block.size : end].clone()))
            end -= block.size
        self._add(len(system.blocks), cd.indices(), cd.values(), 0, 0)
        self.biases.append(nn.Parameter(system.output_bias.clone()))

    def forward(self, u: Tensor) -> ImplicitResult:
        """Values and states.

        Args:
            u: (..., I).

        Raises:
            ValueError: another number of inputs.
        """
        if u.ndim < 1 or u.shape[-1] != self.in_features:
            raise ValueError(
                f"the inputs must end in an axis of {self.in_features}, a flattened sample; got shape {tuple(u.shape)}."
            )
        positions = u.shape[:-1]
        z = u.reshape(-1, self.in_features).mT
        for k, activation in enumerate(self._activations):
            z = torch.cat((activation(self._times(k, z)), z))
        values, states = self._times(len(self._activations), z).mT, z[: self.state_dim].mT
        return ImplicitResult(
            values.reshape(*positions, self.out_features),
            states.reshape(*positions, self.state_dim),
            u.new_zeros(positions),
            torch.zeros(positions, dtype=torch.int8, device=u.device),
        )

    def _add(self, k: int, index: Tensor, values: Tensor, begin: int, end: int) -> None:
        """Rows from `begin`; columns count from `end`, as the states before are not there yet."""
        shift = torch.tensor([[begin], [end]], device=index.device)
        self.register_buffer(f"_index_{k}", index - shift)
        self.values.append(nn.Parameter(values.clone()))

    def _times(self, k: int, z: Tensor) -> Tensor:
        bias = self.biases[k]
        matrix = torch.sparse_coo_tensor(
            self.get_buffer(f"_index_{k}"),
            self.values[k],
            (len(bias), len(z)),
            is_coalesced=True,
            check_invariants=False,
        )
        return torch.sparse.mm(matrix, z) + bias[:, None]


def _check(system: ImplicitSystem) -> None:
    sizes = torch.tensor([block.size for block in system.blocks], dtype=torch.int64, device=system.a.device)
    block = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    (row, column), values = system.a.indices(), system.a.values()
    wrong = (block[column] <= block[row]) & (values != 0)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"A is not strictly upper block triangular: entry ({int(row[first])}, {int(column[first])}) is "
            f"{float(values[first]):.4g}. Use `to_strictly_triangular`, which orders states and takes the diagonal out, or "
            "ImplicitLayer."
        )

"""What several processes that train one quantizer agree on: sums over all of them.

Only training calls these, at the same points in each process, as `torch.nn.SyncBatchNorm` does. In a single process
they cost nothing.
"""

import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together; 1 where `torch.distributed` was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of one tensor of each process, on all, without a gradient; `tensor` itself in a single process.

    Args:
        tensor: any shape, the same in each process.
    """
    if num_processes() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total

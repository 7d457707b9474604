"""Hands weights of two in four to the sparse matrix units of a GPU."""

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from featherlight.transforms.prune_layers import weight_sites

_ALIGNED = 64


def use_sparse_kernels(model: nn.Module) -> tuple[str, ...]:
    """Makes the weights of linear layers that `NOfM(2, 4)` pruned tensors that GPUs multiply with at up to twice the speed.

    Call it on the converted model, in the dtype that it will run in, as the last thing: such weights are for inference and
    cannot be saved as they are.

    Args:
        model: on a GPU of compute capability 8 or above, in float16 or bfloat16.

    Returns:
        The names of the weights. Linear layers whose weights are not two in four, or whose sizes are no multiples of 64, stay.

    Raises:
        ValueError: the model is not on such a GPU, is of another dtype, or no weight is two in four.

    Source: Mishra et al. 2021 (arXiv 2104.08378); torch.sparse.to_sparse_semi_structured.
    """
    sites = {n: site for n, site in weight_sites(model).items() if isinstance(site.module, nn.Linear)}
    first = next(iter(model.parameters()))
    capable = first.is_cuda and torch.cuda.get_device_capability(first.device) >= (8, 0)
    if not capable:
        raise ValueError(
            f"the model is on {first.device}, and matrices of two in four are multiplied faster only on GPUs of compute "
            "capability 8.0 or above (Ampere and later). Elsewhere the plain weights with their zeros give the same results."
        )
    if first.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"the model is of {first.dtype}; call .half() or .bfloat16() on it first.")
    done = []
    for name, site in sites.items():
        weight = site.parameter.detach()
        if weight.shape[0] % _ALIGNED or weight.shape[1] % _ALIGNED:
            continue
        if bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all()):
            site.module.weight = nn.Parameter(to_sparse_semi_structured(weight), requires_grad=False)
            done.append(name)
    if not done:
        raise ValueError(
            f"none of the {len(sites)} linear weights has two zeros in each four inputs and sizes that are multiples of 64. "
            "Prune with NOfM(2, 4) and convert first."
        )
    return tuple(done)

"""What changes in each training step cannot be computed twice."""

import torch


def refuse_recomputation(what: str) -> None:
    """Stops a forward pass that is run again within a backward pass, as `torch.utils.checkpoint` does.

    Args:
        what: changed since the first time, so that gradients would be those of another function.

    Raises:
        ValueError: outside torch.compile, within a backward pass.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint asks
        raise ValueError(
            f"A quantizer in training is computed again in the backward pass, with other {what} than before, so gradients "
            "would be wrong without a sign. Leave the quantizer out of `torch.utils.checkpoint`: hand it the layers before "
            "and behind, which hold the memory."
        )

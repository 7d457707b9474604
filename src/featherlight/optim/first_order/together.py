"""Several optimizers of different parameters that go by one gradient, and Muon with AdamW as the case in point."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from featherlight.optim._several import SeveralOptimizers


class OptimizersTogether(SeveralOptimizers):
    """Evaluates an objective once and steps with each of several optimizers of different parameters.

    Schedulers, saves and loads see one optimizer: the groups of all, in order, and one state.

    Args:
        optimizers: of different parameters; they are not to be used by themselves any more.

    Attributes:
        optimizers: as given; they share this one's groups and state.
        replayable: False, whatever they are.

    Raises:
        ValueError: no optimizers, or a parameter that two of them have.

    The optimizers keep all they must not lose in `state` and `param_groups`, as torch's do, and need no closure.
    """

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], Float[Tensor, ""]] | None = None
    ) -> Float[Tensor, ""] | None:
        """One step of each optimizer; returns the loss of the closure, which is called once."""
        loss = None
        if closure is not None:
            if not callable(closure):
                raise ValueError(
                    "OptimizersTogether.step needs an Objective, a closure that fills the gradients, or nothing where they are "
                    f"filled; got a {type(closure).__name__}."
                )
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss


def muon_with_adamw(
    model: nn.Module, lr: float, *, weight_decay: float = 0.1, head: nn.Module | None = None, momentum: float = 0.95
) -> OptimizersTogether:
    """torch's Muon for the weight matrices inside a model, and AdamW for all else that is trained.

    Args:
        model: the parameters that require a gradient are trained.
        lr: of both: Muon's steps are scaled to the root mean square of AdamW's.
        weight_decay: decoupled, of both.
        head: the output layer, whose matrix goes to AdamW; None where there is none to be kept apart.
        momentum: of Muon.

    Source: Jordan et al. 2024 (Muon), which keeps embeddings, heads, vectors and filters out; Liu et al. 2025
    (arXiv 2502.16982, section 2.2) for the scale.
    """
    kept_out = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    kept_out |= set() if head is None else {id(parameter) for parameter in head.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in kept_out]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        options = {"weight_decay": weight_decay, "momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
        found.append(Muon(matrices, lr=lr, **options))
    if others:
        found.append(AdamW(others, lr=lr, weight_decay=weight_decay, fused=True))
    if not found:
        raise ValueError("no parameter of `model` requires a gradient, so nothing would be trained.")
    return OptimizersTogether(found)

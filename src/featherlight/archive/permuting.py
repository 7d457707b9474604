"""Hidden units put in order, so that full rows stand beside full rows: the function stays, and contexts foretell more.

Legend of shapes: U units of a hidden layer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_BY_ELEMENT = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish),
    *(nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_chains(model: nn.Sequential, *, prefix: str = "") -> list[tuple[str, ...]]:
    """Layers of a sequence whose hidden units are seen by the next layer alone: names of the layer, norms between, and the next.

    Args:
        model: a sequence; sequences in it are gone through as well. Anything that mixes units ends a chain.
        prefix: of the names, with its dot, where the sequence is part of a larger model.
    """
    chains: list[tuple[str, ...]] = []
    begun: list[str] = []
    for name, module in _flat(model, prefix):
        if isinstance(module, _LAYERS):
            groups = getattr(module, "groups", 1)
            if begun and groups == 1:
                chains.append((*begun, name))
            begun = [name] if groups == 1 else []
        elif isinstance(module, _NORMS) and begun:
            begun.append(name)
        elif not isinstance(module, _BY_ELEMENT):
            begun = []
    return chains


def sort_hidden_units(tensors: Mapping[str, Tensor], chains: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """A state_dict with the hidden units of each chain in order of how many of their weights are not zero.

    The model computes the same, but for the order in which floats are summed. The result replaces the state_dict before it is
    written; nothing of the order has to be kept.

    Args:
        tensors: of the whole model.
        chains: names of a layer, of the norms behind it if any, and of the next layer, with nothing between but what treats units
            alike, as `find_chains` finds them. A flattened map counts as one unit with several places.

    Raises:
        ValueError: a layer that is not there, or layers that do not fit one another.
    """
    found = dict(tensors)
    for chain in chains:
        if len(chain) < 2 or any(f"{one}.weight" not in found for one in (chain[0], chain[-1])):
            raise ValueError(
                f"a chain must name two layers of the model or more; got {list(chain)}. Take names as in its state_dict, "
                "without `.weight`."
            )
        first, following = found[f"{chain[0]}.weight"], found[f"{chain[-1]}.weight"]
        units = len(first)
        if following.dim() < 2 or following.shape[1] % units:
            raise ValueError(
                f"{chain[-1]} takes {following.shape[1:2]} inputs, which is no multiple of the {units} units of {chain[0]}. Are "
                "there layers between?"
            )
        order_U = torch.argsort((first.flatten(1) != 0).sum(1), descending=True, stable=True)
        for name in chain[:-1]:
            for key, one in found.items():
                if key.rpartition(".")[0] == name and one.dim() > 0 and len(one) == units:
                    found[key] = one[order_U]
        grouped = following.unflatten(1, (units, -1))
        found[f"{chain[-1]}.weight"] = grouped[:, order_U].flatten(1, 2)
    return found


def _flat(model: nn.Sequential, prefix: str) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            found += _flat(module, f"{prefix}{name}.")
        else:
            found.append((prefix + name, module))
    return found

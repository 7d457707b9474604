"""Finds the chain of a model: modules that are called one after the other, each with what the one before returned."""

from torch import nn


def find_chain(model: nn.Module) -> tuple[str, ...]:
    """The modules of a model that follow each other: layers of an `nn.Sequential`, or blocks of an `nn.ModuleList`.

    Of all such stacks in the model the one with the most weights is taken, and of stacks inside of it the model's own stages are
    left whole: branches within a block are part of its stage. An `nn.Sequential` of sequentials is opened, so that its stages are
    the blocks of all of them.

    Args:
        model: any module, such as an `nn.Sequential`, a network of `featherlight.nn.models`, or a model of transformers.

    Returns:
        Names of the stages, for `measure_chain` and `ActivationCheckpoint`.

    Raises:
        ValueError: the model has no such stack of two modules or more.
    """
    best: tuple[int, int, tuple[str, ...]] = (-1, 0, ())
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1:
            stages = _opened(module, f"{name}." if name else "")
            size = sum(parameter.numel() for parameter in module.parameters())
            if len(stages) > 1:
                best = max(best, (size, len(stages), stages))
    if not best[2]:
        raise ValueError(
            f"{type(model).__name__} has no nn.Sequential and no nn.ModuleList of two modules or more, so that no chain "
            "was found. Name the modules of the chain yourself, in the order in which the model calls them."
        )
    return best[2]


def _opened(stack: nn.Module, prefix: str) -> tuple[str, ...]:
    """The stages of a stack; sequentials in it that are large against the others are opened."""
    stages: list[str] = []
    for name, child in stack._modules.items():
        if child is None:
            continue
        if isinstance(child, nn.Sequential) and _is_stack(child):
            stages.extend(_opened(child, f"{prefix}{name}."))
        else:
            stages.append(f"{prefix}{name}")
    return tuple(stages)


def _is_stack(module: nn.Sequential) -> bool:
    """Whether its members are blocks of several layers themselves."""
    members = list(module)
    return len(members) > 1 and all(_layers(member) > 1 for member in members)


def _layers(module: nn.Module) -> int:
    return sum(1 for one in module.modules() if next(one.parameters(recurse=False), None) is not None)

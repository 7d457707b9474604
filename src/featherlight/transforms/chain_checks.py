"""What the modules of a chain must keep to, and the sentences for those that do not."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

References = Sequence["weakref.ref[Tensor] | None"]


def references(leaves: Sequence[Any]) -> References:
    """Weak references to tensors; None in the places of what is no tensor."""
    return [weakref.ref(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]


def versions(leaves: Sequence[Any]) -> list[int]:
    """How often each tensor was written to; 0 for what is no tensor."""
    return [leaf._version if isinstance(leaf, Tensor) else 0 for leaf in leaves]


def find_links(names: Sequence[str], stage: int, outputs: References, leaves: Sequence[Any]) -> dict[int, int]:
    """Which arguments of a stage come from the stage before.

    Args:
        names: of the stages.
        stage: that is called.
        outputs: what the stage before returned.
        leaves: the flattened arguments.

    Returns:
        Places among the arguments, and of the same tensors among the outputs; all tensors, for the first stage.

    Raises:
        ValueError: there are none.
    """
    if stage == 0:
        return {place: place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    alive = {
        id(tensor): place for place, one in enumerate(outputs) if one is not None and (tensor := one()) is not None
    }
    links = {place: alive[id(leaf)] for place, leaf in enumerate(leaves) if id(leaf) in alive}
    if not links:
        raise ValueError(
            f"stage `{names[stage]}` is not handed what `{names[stage - 1]}` returned: something is computed between the "
            "two. Name stages that follow each other directly, or a module that holds what lies between them."
        )
    return links


def require_in_order(names: Sequence[str], modules: Sequence[nn.Module], stage: int, module: nn.Module) -> None:
    """Raises ValueError unless `module` is the next stage."""
    if stage < len(modules) and modules[stage] is module:
        return
    called = next(name for name, one in zip(names, modules, strict=True) if one is module)
    expected = f"`{names[stage]}` is next in the chain" if stage < len(names) else "the chain has come to its end"
    raise ValueError(
        f"stage `{called}` was called where {expected}. Name the stages in the order in which the model calls them, each as "
        "often as it is called in one pass."
    )


def require_usable(name: str, leaves: Sequence[Any], before: Sequence[int], outputs: Sequence[Any]) -> None:
    """Raises ValueError if a stage has written to its input, or returned nothing that has a gradient.

    Args:
        name: of the stage.
        leaves: its flattened arguments.
        before: their versions before it was called.
        outputs: what it returned, flattened.
    """
    if versions(leaves) != list(before):
        raise _changed_in_place(name)
    ends = [any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in end) for end in (leaves, outputs)]
    if ends == [True, False]:
        raise ValueError(
            f"stage `{name}` returns nothing that has a gradient, although its input has one, so that no stage before it "
            "would be trained. Take it out of the chain, or return a tensor that depends on its input."
        )


@contextmanager
def in_place_named(name: str) -> Iterator[None]:
    """Has torch's refusal to write to a leaf, in a stage that is run on its own, name the stage."""
    try:
        yield
    except RuntimeError as error:
        if "in-place operation" in str(error):
            raise _changed_in_place(name) from error
        raise


def _changed_in_place(name: str) -> ValueError:
    return ValueError(
        f"stage `{name}` changes its input in place, so that the stage before it cannot be run again. Use a form that "
        "returns a new tensor (such as ReLU without `inplace`), or name a module that holds both as one stage."
    )

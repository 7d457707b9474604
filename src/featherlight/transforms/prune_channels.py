"""Takes whole channels out of a network, with all that depends on them, through torch-pruning."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ChannelsPruned:
    """What was taken out.

    Attributes:
        widths: outputs of each layer by name, before and after.
        parameters: of the network, before and after.
    """

    widths: dict[str, tuple[int, int]]
    parameters: tuple[int, int]


def prune_channels(
    model: nn.Module,
    example: Tensor,
    sparsity: float,
    *,
    keep: Sequence[str] = (),
    together: bool = False,
    multiple_of: int | None = None,
) -> ChannelsPruned:
    """Removes the channels of least magnitude and whatever belongs to them in other layers, in place: tensors get smaller.

    Layers whose outputs are added, as in residual networks, lose the same channels. Shapes change, so that it is done before
    an optimizer is made, and a network is trained further afterwards; it is no ModelTransform, since a stage that is taken up
    again could not know the shapes.

    Args:
        model: any module that torch-pruning can trace.
        example: an input, such as one image.
        sparsity: share of the channels that goes, in [0, 1).
        keep: names of layers whose outputs stay all, such as the head.
        together: whether channels of all layers are ranked together; else each layer loses the same share.
        multiple_of: widths stay multiples of it, which hardware may want.

    Returns:
        Widths and numbers of parameters.

    Raises:
        ValueError: torch-pruning is not installed, a share out of range, a layer that is not there, nothing to prune, or a
            model that torch-pruning cannot follow.

    Cost: a forward and a backward pass on `example`.
    Source: Fang et al. 2023 (DepGraph, arXiv 2301.12900); magnitude of groups as in Li et al. 2017.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must lie in [0, 1), the share of channels that goes; got {sparsity}. At 1 no channel would be left."
        )
    if importlib.util.find_spec("torch_pruning") is None:
        raise ValueError(
            "prune_channels needs the package torch-pruning, which is not installed. Run: pip install 'featherlight[channels]'"
        )
    layers = {name: one for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.modules.conv._ConvNd))}
    if unknown := [name for name in keep if name not in layers]:
        raise ValueError(f"`keep` names {unknown[0]!r}, and the layers are {', '.join(layers)}.")
    if len(layers) <= len(set(keep)):
        raise ValueError(
            f"{type(model).__name__} has no layer to prune: of {len(layers)} linear layers and convolutions {len(set(keep))} are "
            "kept. Leave some out of `keep`."
        )
    before, parameters = {name: len(one.weight) for name, one in layers.items()}, _count(model)
    _run(model, example, sparsity, [layers[name] for name in keep], together=together, multiple_of=multiple_of)
    return ChannelsPruned(
        widths={name: (before[name], len(one.weight)) for name, one in layers.items()},
        parameters=(parameters, _count(model)),
    )


def _run(
    model: nn.Module,
    example: Tensor,
    sparsity: float,
    kept: list[nn.Module],
    *,
    together: bool,
    multiple_of: int | None,
) -> None:
    import torch_pruning

    training = model.training
    wanted = {name: one.requires_grad for name, one in model.named_parameters()}
    try:
        with torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                model.eval().requires_grad_(True),
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                global_pruning=together,
                pruning_ratio=sparsity,
                ignored_layers=kept,
                round_to=multiple_of or 1,
            )
            pruner.step()
    except (IndexError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be pruned by channels ({type(error).__name__}: {error}): torch-pruning does not "
            "follow something in it, such as a shortcut that pads channels with zeros. The model may be changed in part; load "
            "it again."
        ) from error
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        for name, one in model.named_parameters():
            one.requires_grad_(wanted[name])


def _count(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())

"""Which parameters are trained, and which blocks before them are frozen and need to run only once."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from featherlight.nn.frozen_prefix import FrozenPrefix, find_blocks, modules_before
from featherlight.nn.models import Pretrained
from featherlight.recipes.parameter_names import matching

_LAST = re.compile(r"last:(\d+)")


def select_trainable(loaded: Pretrained, choice: str, probe: Mapping[str, Tensor]) -> FrozenPrefix | None:
    """Sets `requires_grad` of every parameter by the user's choice.

    Args:
        loaded: the model.
        choice: "default", "all", "last:N" or a regular expression of parameter names.
        probe: inputs of a small batch, to see in which order modules run.

    Returns:
        The frozen blocks before the first trained one, if nothing before it is trained; else None.

    Raises:
        ValueError: the choice fits no parameter, or asks for more blocks than there are.
    """
    names = dict(loaded.model.named_parameters())
    tables = {id(m.weight) for m in loaded.model.modules() if isinstance(m, nn.Embedding)}
    if choice == "all":
        chosen = set(names)
    elif choice == "default":
        chosen = {name for name, parameter in names.items() if id(parameter) not in tables}
    elif match := _LAST.fullmatch(choice):
        chosen = _last_blocks(loaded.model, int(match[1]), probe, tables)
    else:
        chosen = matching(choice, names)
    chosen |= {name for name in loaded.fresh if name in names}
    for name, parameter in names.items():
        parameter.requires_grad_(name in chosen)
    return _frozen_prefix(loaded.model, probe)


def _frozen_prefix(model: nn.Module, probe: Mapping[str, Tensor]) -> FrozenPrefix | None:
    """The blocks before the first one that is trained, if nothing that runs before it is trained either."""
    try:
        _, blocks = find_blocks(model)
    except ValueError:
        return None
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    first = trained.index(True) if any(trained) else len(blocks) - 1
    if first == 0:
        return None
    before = modules_before(model, blocks[first], probe)
    if any(parameter.requires_grad for module in before for parameter in module.parameters(recurse=False)):
        return None
    return FrozenPrefix(model, blocks, first)


def add_adapters(loaded: Pretrained, rank: int) -> Pretrained:
    """Puts LoRA adapters of `rank` on the linear layers of the model, with PEFT; they and what is fresh are trained.

    Layers whose weight is tied to an embedding and layers that are themselves fresh are left as they are.

    Raises:
        ValueError: PEFT is not installed, or no layer is left to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError(
            "`--lora` needs the package peft, which is not installed. Run `pip install featherlight[lora]`."
        ) from None
    from transformers.pytorch_utils import Conv1D

    tables = {id(m.weight) for m in loaded.model.modules() if isinstance(m, nn.Embedding)}
    fresh = {name for name, _ in loaded.model.named_parameters() if name in loaded.fresh}
    layers = {
        name: type(module) is Conv1D
        for name, module in loaded.model.named_modules()
        if type(module) in (nn.Linear, Conv1D)
        and id(module.weight) not in tables
        and module is not loaded.head
        and not any(one.startswith(f"{name}.") for one in fresh)
    }
    if not layers:
        raise ValueError(
            f"{type(loaded.model).__name__} has no linear layer for adapters to go on. Use `--trainable` instead of `--lora`."
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(layers), fan_in_fan_out=any(layers.values()))
    inject_adapter_in_model(config, loaded.model)
    adapters = {name for name, _ in loaded.model.named_parameters() if ".lora_" in name}
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name in adapters | fresh)
    return replace(loaded, fresh=frozenset(adapters | fresh))


def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter to the layer below it and takes it away, so that the model is of its own class throughout."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def _last_blocks(model: nn.Module, count: int, probe: Mapping[str, Tensor], tables: set[int]) -> set[str]:
    name, blocks = find_blocks(model)
    if not 1 <= count <= len(blocks):
        raise ValueError(
            f"`--trainable last:{count}` asks for {count} blocks, but `{name}` has {len(blocks)}; take 1 to {len(blocks)}."
        )
    before = modules_before(model, blocks[len(blocks) - count], probe)
    frozen = {id(parameter) for module in before for parameter in module.parameters()} | tables
    return {name for name, parameter in model.named_parameters() if id(parameter) not in frozen}

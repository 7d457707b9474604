"""Holds the weights of linear layers in 8 or 4 bits, for fine-tunes by forward passes or of adapters alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherlight.functional import QuantizedTensor

GROUP_OF_4_BITS = 32
MERGE_RANK = 256
"""Directions up to which steps are kept beside a weight: with 8 bits the most at which MiniLM takes 1/3.5 of float32."""


@dataclass(frozen=True, kw_only=True)
class QuantizedBase:
    """What `quantize_base` did.

    Attributes:
        replaced: names of the layers whose weights are held in few bits now.
        kept: layers with a matrix that stay float, and why.
        float_bytes: of the replaced weights, before.
        num_bytes: of them, after.
    """

    replaced: tuple[str, ...]
    kept: Mapping[str, str]
    float_bytes: int
    num_bytes: int


def quantize_base(
    model: nn.Module,
    *,
    bits: int = 8,
    group: int | None = None,
    merge_rank: int = MERGE_RANK,
    layers: Sequence[str] | None = None,
    skip: Collection[str] = (),
) -> QuantizedBase:
    """Holds the weights of linear layers as whole numbers of 8 or 4 bits, in place, one layer after the other.

    The layers stay what they are (`nn.Linear`, or the Conv1D of transformers): their `weight` becomes a `QuantizedTensor`,
    which forward-only optimizers train like any other and on which adapters can be put. Optimizers that write to weights
    refuse it. Biases, embeddings, norms, convolutions and weights that several layers share stay float.

    Args:
        model: any module.
        bits: 8 or 4.
        group: columns that share a scale; None is the whole row with 8 bits, and 32 columns with 4.
        merge_rank: directions up to which a forward-only optimizer keeps its steps beside a weight before it rounds them
            onto the grid; 0 rounds every step. Each takes (rows + columns) / 8 + 8 bytes a layer and as much work in a
            forward pass as a token. Each rounding adds noise of up to half a unit, so few are better: over many steps 4
            bits lose more to it than they gain, and adapters are the way to train on them.
        layers: names of the layers to hold so; None takes all that can be.
        skip: names of layers that stay float, such as a head to be fitted.

    Returns:
        What was replaced, and what stays float for which reason.

    Raises:
        ValueError: a named layer is not there or cannot be held so, or none can, or the model is quantized already.

    Cost: memory of one layer beside the model, in floats. 4 to 3.5 times fewer bytes a weight with 8 bits, 7 with 4.
    """
    group = GROUP_OF_4_BITS if group is None and bits == 4 else group
    reasons = _reasons(model, bits, set(skip))
    if layers is not None:
        _require(layers, reasons, bits)
    chosen = [name for name, reason in reasons.items() if (reason is None if layers is None else name in layers)]
    if not chosen:
        seen = "; ".join(f"`{name}`: {reason}" for name, reason in list(reasons.items())[:4])
        raise ValueError(
            f"{type(model).__name__} has no linear layer that can be held in {bits} bits ({seen or 'it has no matrix'}). "
            "Leave the base float."
        )
    before = after = 0
    for name in chosen:
        layer = model.get_submodule(name)
        old = layer.weight
        assert isinstance(old, nn.Parameter), "only layers with a weight are chosen"
        held = QuantizedTensor.rounded(old, bits=bits, group=group, merge_rank=merge_rank)
        before, after = before + old.nbytes, after + held.num_bytes
        layer.weight = nn.Parameter(held, requires_grad=old.requires_grad)
    kept = {
        name: reason if reason is not None else "it was not asked for"
        for name, reason in reasons.items()
        if name not in chosen
    }
    return QuantizedBase(replaced=tuple(chosen), kept=kept, float_bytes=before, num_bytes=after)


@torch.no_grad()
def dequantize(model: nn.Module) -> tuple[str, ...]:
    """Makes every quantized weight of a model the floats it stands for, in place, with the steps kept beside it.

    The outputs change by no more than the rounding of floats. Returns the names of the layers.
    """
    names = []
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, QuantizedTensor):
                plain = nn.Parameter(parameter.plain(), requires_grad=parameter.requires_grad)
                setattr(module, own, plain)
                names.append(name)
    return tuple(names)


def _reasons(model: nn.Module, bits: int, skip: set[str]) -> dict[str, str | None]:
    """Every layer with a matrix of its own, and why it cannot be held in few bits; None if it can."""
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        _refuse_quantized(name or "model", module, own, bits)
        matrices = [parameter for _, parameter in own if isinstance(parameter, nn.Parameter) and parameter.ndim > 1]
        if matrices:
            found[name] = _reason(name, module, matrices, uses, skip)
    return found


def _reason(
    name: str, module: nn.Module, matrices: Sequence[Tensor], uses: Mapping[int, list[str]], skip: set[str]
) -> str | None:
    kind = type(module)
    is_conv1d = (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
    if kind is not nn.Linear and not is_conv1d:
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        return f"it is {article} {kind.__name__}, for which there is no product with whole numbers"
    others = [one for one in uses[id(matrices[0])] if one != f"{name}.weight".removeprefix(".")]
    if others:
        return f"its weight is tied to `{others[0]}`"
    if name in skip:
        return "it is to stay float"
    return None if torch.isfinite(matrices[0]).all() else "it holds NaN or infinite weights"


def _refuse_quantized(name: str, module: nn.Module, own: Sequence[tuple[str, Tensor]], bits: int) -> None:
    """Raises ValueError for a layer whose weight is held in few bits already, by us or by another library."""
    for what, tensor in own:
        is_weight = what.endswith("weight") and tensor.ndim > 1 and not tensor.dtype.is_floating_point
        if is_weight or isinstance(tensor, QuantizedTensor):
            held = repr(tensor) if isinstance(tensor, QuantizedTensor) else str(tensor.dtype)
            raise ValueError(
                f"layer `{name}` ({type(module).__name__}) holds its `{what}` quantized already ({held}), which cannot be "
                f"held in {bits} bits again. Load the float model."
            )


def _require(layers: Sequence[str], reasons: Mapping[str, str | None], bits: int) -> None:
    for name in layers:
        if name not in reasons:
            some = ", ".join(list(reasons)[:3])
            raise ValueError(f"there is no layer `{name}` with a matrix in the model (it has {some}, ...).")
        if reasons[name] is not None:
            raise ValueError(
                f"layer `{name}` cannot be held in {bits} bits: {reasons[name]}. Leave it out of `layers`; it stays float."
            )

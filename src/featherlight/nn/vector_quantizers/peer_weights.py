"""Saved weights of vector-quantize-pytorch, and the tensors here that they belong to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from featherlight.nn.vector_quantizers.learning import EmaLearner
from featherlight.nn.vector_quantizers.projected import ProjectedQuantizer
from featherlight.nn.vector_quantizers.vector_quantizer import VectorQuantizer

_UNUSED = {"_codebook.initted", "_codebook.cluster_size", "_codebook.embed_avg", "zero"}


def load_vector_quantize(quantizer: VectorQuantizer | ProjectedQuantizer, state: Mapping[str, Tensor]) -> None:
    """Takes over the weights of a VectorQuantize of vector-quantize-pytorch, with its statistics.

    Args:
        quantizer: made by `VectorQuantizer.from_options` with the options of the other.
        state: its `state_dict()`. Files of it are best saved and read with safetensors.

    Raises:
        ValueError: names or shapes do not belong to such a quantizer.
    """
    inner = quantizer.quantizer if isinstance(quantizer, ProjectedQuantizer) else quantizer
    if not isinstance(inner, VectorQuantizer):
        raise ValueError(
            f"Weights of a VectorQuantize are taken over by a VectorQuantizer; got a {type(inner).__name__}. Make one with "
            "`VectorQuantizer.from_options`."
        )
    targets = _codebook_targets(inner)
    if isinstance(quantizer, ProjectedQuantizer):
        for name, maps in (("project_in", quantizer.project_in), ("project_out", quantizer.project_out)):
            targets |= {f"{name}.{kind}": tensor for kind, tensor in maps.named_parameters()}
    _check(targets, state)
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(state[name].reshape(tensor.shape))
    inner.codebook.mark_started(bool(state.get("_codebook.initted", torch.tensor(True))))


def _codebook_targets(quantizer: VectorQuantizer) -> dict[str, Tensor]:
    learner = quantizer.learner
    targets = {"_codebook.embed": quantizer.codebook.weight}
    if isinstance(learner, EmaLearner):
        targets |= {"_codebook.cluster_size": learner.counts, "_codebook.embed_avg": learner.sums}
    return targets


def _check(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(targets.keys() - state.keys()), sorted(state.keys() - targets.keys() - _UNUSED)
    if missing or unknown:
        found = (("missing", missing), ("not expected", unknown))
        raise ValueError(
            "The weights are not those of a VectorQuantize with the options of this quantizer: "
            + "; ".join(f"{word} {', '.join(names)}" for word, names in found if names)
            + ". Make the quantizer with the same options."
        )
    for name, tensor in targets.items():
        if state[name].numel() != tensor.numel():
            raise ValueError(
                f"`{name}` has the shape {tuple(state[name].shape)}, which does not fit this quantizer's "
                f"{tuple(tensor.shape)}. Make the quantizer with the same sizes and heads."
            )

"""A classifier in a number format, ready to run."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from featherlight.functional import FORMATS
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.precision.step_tensors import StepTensors, step_tensors
from featherlight.recipes.arithmetic import PrecisionName
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.classify.experiment import build_experiment as build_classifier
from featherlight.recipes.precision.config import FormatName, PrecisionConfig
from featherlight.recipes.precision.emulation import EmulatedFormats
from featherlight.recipes.precision.kernels import Float8Kernels
from featherlight.recipes.precision.sections import format_sections
from featherlight.trainer import Experiment, Stage, Workspace
from featherlight.transforms import ModelTransform

_COMPUTED: Mapping[FormatName, PrecisionName] = {"bf16": "bf16", "fp16": "fp16"}
_EMULATED: Mapping[FormatName, tuple[str, str]] = {
    "fp8": ("scaled_e4m3", "scaled_e5m2"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
}
"""The formats of what goes forward, and of gradients."""


def build_experiment(config: PrecisionConfig, workspace: Workspace) -> Experiment:
    """Loads the images and builds the network.

    Raises:
        ValueError: bad data or choices.
    """
    classify = replace(
        config.classify, precision=_COMPUTED.get(config.format, "fp32"), seed=config.seed, device=config.device
    )
    whole = build_classifier(classify, workspace)
    (stage,) = whole.stages
    transform = _transform(config)
    rounded = f"{' and '.join(config.rounded)} of layers" if isinstance(transform, EmulatedFormats) else None
    resolved: ClassifyConfig = replace(whole.config, precision="fp32")
    return replace(
        whole,
        stages=[replace(stage, transforms=[] if transform is None else [transform])],
        title=f"{config.format} on {whole.title.partition(' on ')[2]}",
        facts={**whole.facts, "format": config.format} | ({} if rounded is None else {"emulated": rounded}),
        sections=lambda: [*whole.sections(), *format_sections(last_step(whole.model, stage))],
        replay=None,
        config=replace(config, classify=resolved),
    )


def last_step(model: nn.Module, stage: Stage) -> StepTensors:
    """The tensors of the first batch through the model as it is now; neither weights nor statistics are changed."""
    training = model.training
    model.eval()
    objective: Objective = stage.objective(0, Meter())
    try:
        with torch.enable_grad():
            return step_tensors(model, objective)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def _transform(config: PrecisionConfig) -> ModelTransform | None:
    if config.format == "fp8_torchao":
        return Float8Kernels()
    names = _EMULATED.get(config.format)
    if names is None:
        return None
    forward, backward = (FORMATS[name] for name in names)
    formats = {"weights": forward, "activations": forward, "gradients": backward}
    return EmulatedFormats(**{part: formats[part] for part in config.rounded})

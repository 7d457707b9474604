"""What the report shows of a deep belief net: errors, digits that it draws, features of the lowest layer, mistakes.

Legend of shapes: N images, V pixels, L labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherlight.data import confusion
from featherlight.recipes.dbn.experiment import Belief
from featherlight.report import Block, ConfusionTable, Images, Section, Table

_FEATURES = 60
_COLUMNS = 10


@torch.no_grad()
def sections(belief: Belief) -> Sequence[Section]:
    """All of a run."""
    training = belief.model.training
    belief.model.eval()
    try:
        return [_errors(belief), _fantasies(belief), _features(belief)]
    finally:
        belief.model.train(training)


def _errors(belief: Belief) -> Section:
    ways = {"the memory, by free energy": belief.model.net.memory_logits}
    if belief.by_classifier:
        ways["the classifier, by backpropagation"] = belief.model
    parts = {"validation": belief.valid} | ({} if belief.test is None else {"test": belief.test})
    rows = tuple(
        (way, f"{name} ({len(images):,} images)", 100 * belief.error(images, logits))
        for way, logits in ways.items()
        for name, images in parts.items()
    )
    images = belief.valid if belief.test is None else belief.test
    predicted = belief.predictions(images, list(ways.values())[-1]).cpu()
    counts = confusion(predicted, images.labels.cpu(), len(images.classes))
    blocks: tuple[Block, ...] = (
        Table(columns=("labels told by", "images", "error, %"), rows=rows),
        ConfusionTable(labels=images.classes, counts=tuple(map(tuple, counts.tolist()))),
    )
    text = "Nothing is known to the net of how pixels lie beside each other: any fixed order of them gives the same."
    return Section(title="Errors", text=text, blocks=blocks)


def _fantasies(belief: Belief) -> Section:
    classes, count = belief.train.classes, belief.config.samples
    labels = torch.arange(len(classes), device=belief.train.labels.device).repeat(count)
    generator = torch.Generator(labels.device).manual_seed(belief.config.seed)
    drawn = belief.model.net.sample(labels, generator, steps=belief.config.sample_steps)
    caption = (
        f"After {belief.config.sample_steps:,} rounds of Gibbs sampling from a random start, with the label held fixed. "
        "Means of the pixels; none was chosen."
    )
    names = tuple(classes[label] for label in labels.tolist())
    block = Images(
        images=_pictures(belief, belief.model.images(drawn)),
        columns=len(classes) if len(classes) <= 2 * _COLUMNS else _COLUMNS,
        labels=names,
        scale=_scale(belief),
        caption=caption,
    )
    return Section(title="What it draws of each label", blocks=(block,))


def _features(belief: Belief) -> Section:
    weight = belief.model.net.machine(0).weight[:_FEATURES]
    largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
    pictures = _pictures(belief, 0.5 + 0.5 * weight / largest)
    caption = "Weights of some units of the lowest layer, after it learned by itself; grey is zero."
    block = Images(images=pictures, columns=_COLUMNS, scale=_scale(belief), caption=caption)
    return Section(title="Features", blocks=(block,))


def _pictures(belief: Belief, values_NV: Tensor):
    """Bytes (N, H, W), or (N, H, W, 3) where there are three channels or more."""
    images = values_NV.view(-1, *belief.train.images.shape[1:]).mul(255).round().to(torch.uint8).cpu()
    return images[:, 0].numpy() if images.shape[1] < 3 else images[:, :3].movedim(1, 3).contiguous().numpy()


def _scale(belief: Belief) -> int:
    return 5 if belief.train.images.shape[-1] <= 16 else 2

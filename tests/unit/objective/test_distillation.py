"""Distillation: the published loss, gradients for the model alone, and what is refused."""

import pytest
import torch
from torch import nn

from featherlight.objective import BatchObjective, DistilledLoss


def outputs(model, batch):
    return model(batch["x"])


def of_labels(logits, batch):
    return nn.functional.cross_entropy(logits, batch["y"], reduction="none")


def parts():
    generator = torch.Generator().manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    model = nn.Linear(4, 3)
    for one in (*teacher.parameters(), *model.parameters()):
        one.data = torch.randn(one.shape, generator=generator)
    batch = {"x": torch.randn(6, 4, generator=generator), "y": torch.tensor([0, 1, 2, 0, 1, 2])}
    return teacher, model, batch


def test_loss_and_gradient_are_those_of_hinton_in_micro_batches():
    teacher, model, batch = parts()
    loss = DistilledLoss(teacher, outputs, of_labels, temperature=2.0, share=0.25)
    objective = BatchObjective(model, batch, loss, micro_batch=4)
    found = objective()
    gradient = model.weight.grad.clone()
    taught = torch.softmax(teacher[0](batch["x"]).detach() / 2, 1)
    logits = model(batch["x"])
    divergence = nn.functional.kl_div(torch.log_softmax(logits / 2, 1), taught, reduction="none").sum(1)
    expected = (0.75 * of_labels(logits, batch) + 0.25 * 4 * divergence).mean()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, model.weight)[0])
    assert teacher[0].weight.grad is None
    torch.testing.assert_close(objective.value(), found)
    alone = DistilledLoss(teacher, outputs, None, share=1.0)
    assert BatchObjective(model, {"x": batch["x"]}, alone).values().shape == (6,)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "`temperature` must be a finite positive"),
        ({"share": 1.5}, r"`share` must lie in \[0, 1\]"),
        ({"loss": None}, "labels have a share of 0.5 and there is no `loss`"),
    ],
)
def test_bad_input_gets_a_sentence(settings, says):
    with pytest.raises(ValueError, match=says):
        DistilledLoss(**{"teacher": nn.ReLU(), "outputs": outputs, "loss": of_labels} | settings)


def test_a_teacher_of_other_classes_is_refused():
    _, model, batch = parts()
    loss = DistilledLoss(nn.Linear(4, 5), outputs, of_labels)
    with pytest.raises(ValueError, match="logits of one shape"):
        loss(model, batch)

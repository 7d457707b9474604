"""A network with every kind of step, and small ones."""

import torch
from torch import nn
from torch.nn import functional


class Everything(nn.Module):
    """Standardized input, grouped and depthwise layers, residual sums, values side by side, pooling of all kinds, a table."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.3]).view(3, 1, 1), persistent=False)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, stride=1, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.before = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(2, 2, padding=1)
        self.narrow = nn.Conv2d(24, 6, 1)
        self.act = nn.Tanh()
        self.dropout = nn.Dropout(0.1)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, images):
        x = self.first((images - self.mean) / 0.25)
        y = functional.relu(self.grouped(x) + self.depthwise(x))
        y = torch.relu(self.before(y)) + x
        small = self.pool(functional.relu(y))
        widened = functional.pad(y[:, :, ::2, ::2], (0, 1, 0, 1, 4, 4))
        joined = torch.cat([small, widened], 1)
        z = self.act(self.narrow(joined)) * 1.5
        z = self.average(z).permute(0, 2, 3, 1).transpose(1, 3).mean((-2, -1), keepdim=True)
        return self.head(functional.relu(self.hidden(self.dropout(z.flatten(1)))))


def everything():
    """The network with lively BatchNorm statistics, some of them at their limits, and a batch for it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Everything()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, -1.5, 1.5),
                (module.bias, -0.5, 1),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low
            module.weight.data[0] = 0.0
    model.first[0].weight.data[1] = 0.0
    model.grouped.weight.data[2] *= 1e-9
    model.grouped.bias.data[2] = 5.0
    return model.eval(), torch.rand(6, 3, 8, 8, generator=generator)

"""The layers of 1998 that LeNet-5 is built from and torch has no name for.

Legend of shapes: B images, C channels, H rows, W columns, D features, K classes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScaledTanh(nn.Module):
    """`1.7159 tanh(2x / 3)`, which takes 1 to 1 and -1 to -1. Source: LeCun et al. 1998, appendix A."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return 1.7159 * torch.tanh(x * (2 / 3))


class TrainableAveraging(nn.Module):
    """The sum of each 2x2 places, times a weight of the channel, plus its bias.

    Args:
        channels: in and out.

    Attributes:
        weight: (channels,); it starts at 1/4, which makes it a mean.
        bias: (channels,).

    Source: LeCun et al. 1998, section II.B, layers S2 and S4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """At half the size, rounded down."""
        sums = nn.functional.avg_pool2d(x_BCHW, 2, divisor_override=1)
        return sums * self.weight[:, None, None] + self.bias[:, None, None]


class PartialConv(nn.Module):
    """A convolution each of whose output channels sees some of the input channels.

    Args:
        connections: of each output channel, the input channels that it sees.
        size: of the kernels.

    Attributes:
        weight: a kernel for each connection, (connections, size, size).
        bias: of each output channel.
        outputs: the output channel of each connection.
        inputs: the input channel of each.
        seen: how many input channels each output channel sees.

    Source: LeCun et al. 1998, Table I. `start_as_1998` draws the weights.
    """

    outputs: Tensor
    inputs: Tensor

    def __init__(self, connections: Sequence[Sequence[int]], size: int) -> None:
        super().__init__()
        pairs = torch.tensor([(number, seen) for number, all_seen in enumerate(connections) for seen in all_seen])
        self.register_buffer("outputs", pairs[:, 0].contiguous(), persistent=False)
        self.register_buffer("inputs", pairs[:, 1].contiguous(), persistent=False)
        self._shape = (len(connections), int(pairs[:, 1].max()) + 1, size, size)
        self.seen = tuple(map(len, connections))
        self.weight = nn.Parameter(torch.empty(len(pairs), size, size))
        self.bias = nn.Parameter(torch.zeros(len(connections)))
        self.start()

    def start(self) -> None:
        """Normal weights, so that a unit varies as much as one of the values that it sees."""
        places = self.weight[0].numel()
        scales = torch.tensor([1 / math.sqrt(count * places) for count in self.seen])
        with torch.no_grad():
            self.weight.normal_().mul_(scales[self.outputs.cpu()][:, None, None].to(self.weight))

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Without padding."""
        dense = self.weight.new_zeros(self._shape).index_put((self.outputs, self.inputs), self.weight)
        return nn.functional.conv2d(x_BCHW, dense, self.bias)


class CodeDistances(nn.Module):
    """Minus the squared distance from each of some fixed patterns.

    Args:
        codes: the patterns, (K, D).

    Attributes:
        codes: as given; a buffer.

    Source: LeCun et al. 1998, equation 7.
    """

    codes: Tensor

    def __init__(self, codes: Float[Tensor, "K D"]) -> None:
        super().__init__()
        self.register_buffer("codes", codes.detach().clone().float())

    def forward(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The logits; none is above 0."""
        return -(x_BD[:, None] - self.codes).square().sum(-1)


def start_as_1998(network: nn.Module) -> None:
    """Normal weights with the variance 1 / inputs of a unit, and biases of 0.

    Source: LeCun, Bottou, Orr and Mueller 1998, "Efficient BackProp", section 4.6. The paper on LeNet-5 (appendix A) draws them
    uniform within 2.4 / inputs of a unit, which is less for all but the first layer, and slower.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, PartialConv):
            module.start()

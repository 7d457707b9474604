"""Integer programs made by running a float network on calibration data, one operation at a time: min-max ranges, no training.

Legend of shapes: B examples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherlight.nn.models import LeNet300, ResNet
from featherlight.nn.models.mobile_net import MobileNet
from featherlight.nn.models.resnet import ResidualBlock
from featherlight.transforms.quantize.integer_ops import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Dequantize,
    Grid,
    Linear,
    Lookup,
    MaxPool,
    Op,
    Quantize,
    Reshape,
    Subsample,
    ZeroPad,
)
from featherlight.transforms.quantize.integer_program import IntegerProgram


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the network on the calibration data."""

    name: str
    floats: Tensor


class Calibration:
    """Collects the operations of a program while floats run beside."""

    def __init__(self, x: Tensor, *, mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,)) -> None:
        self.ops: list[Op] = []
        self.grids: dict[str, Grid] = {}
        shape = [-1] + [1] * (x.ndim - 2)
        normal = (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        self.start = self._keep(Quantize(input="x", output="q", mean=mean, std=std), normal)

    def _keep(self, op: Op, floats: Tensor, *, relu: bool = False, grid: Grid | None = None) -> Value:
        floats = floats.relu() if relu else floats
        low, high = min(float(floats.min()), 0.0), max(float(floats.max()), 0.0)
        scale = (high - low) / 255 or 1.0
        zero = min(255, max(0, round(-low / scale)))
        if grid is None:
            grid = Grid(scale=scale, zero_point=zero, low=zero if relu else 0)
        self.ops.append(op)
        self.grids[op.output] = grid
        return Value(name=op.output, floats=floats)

    def name(self, kind: str) -> str:
        return f"{kind}_{len(self.ops)}"

    def layer(self, x: Value, module: nn.Module, norm: nn.Module | None = None, *, relu: bool = False) -> Value:
        """A convolution or a linear layer, with a batch norm folded in."""
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight, bias = module.weight.detach(), module.bias
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            bias = norm.bias.detach() + gain * (bias - norm.running_mean)
            weight = weight * gain.view(-1, *[1] * (weight.ndim - 1))
        scales = weight.flatten(1).abs().amax(1).clamp(min=1e-8) / 127
        numbers = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        units = (bias / (scales * self.grids[x.name].single)).round().clamp(-(2.0**24), 2.0**24).to(torch.int32)
        shared = {"input": x.name, "weight": numbers, "weight_scales": scales, "bias": units}
        if isinstance(module, nn.Linear):
            op: Op = Linear(output=self.name("linear"), **shared)
            return self._keep(op, functional.linear(x.floats, weight, bias), relu=relu)
        pads = module.padding
        assert not isinstance(pads, str)
        parts = {"stride": module.stride, "padding": pads, "dilation": module.dilation, "groups": module.groups}
        op = Conv2d(output=self.name("conv"), **shared, **parts)
        floats = functional.conv2d(x.floats, weight, bias, module.stride, pads, module.dilation, module.groups)
        return self._keep(op, floats, relu=relu)

    def add(self, first: Value, second: Value, *, relu: bool = False) -> Value:
        op = Add(first=first.name, second=second.name, output=self.name("add"))
        return self._keep(op, first.floats + second.floats, relu=relu)

    def concat(self, *parts: Value, axis: int = 1) -> Value:
        op = Concat(parts=tuple(part.name for part in parts), output=self.name("concat"), axis=axis)
        return self._keep(op, torch.cat([part.floats for part in parts], axis))

    def max_pool(self, x: Value, kernel: int, stride: int, padding: int = 0, *, ceil_mode: bool = False) -> Value:
        op = MaxPool(
            input=x.name,
            output=self.name("pool"),
            kernel=(kernel,) * 2,
            stride=(stride,) * 2,
            padding=(padding,) * 2,
            ceil_mode=ceil_mode,
        )
        floats = functional.max_pool2d(x.floats, kernel, stride, padding, ceil_mode=ceil_mode)
        return self._keep(op, floats, grid=self.grids[x.name])

    def average(self, x: Value, kernel: int, stride: int, padding: int = 0) -> Value:
        op = AvgPool(
            input=x.name,
            output=self.name("mean"),
            kernel=(kernel,) * 2,
            stride=(stride,) * 2,
            padding=(padding,) * 2,
        )
        return self._keep(op, functional.avg_pool2d(x.floats, kernel, stride, padding))

    def mean(self, x: Value) -> Value:
        op = AvgPool(input=x.name, output=self.name("mean"), flat=True)
        return self._keep(op, x.floats.mean((-2, -1)))

    def flat(self, x: Value) -> Value:
        op = Reshape(input=x.name, output=self.name("flat"))
        return self._keep(op, x.floats.flatten(1), grid=self.grids[x.name])

    def tanh(self, x: Value) -> Value:
        before, after = self.grids[x.name], Grid(scale=1 / 127, zero_point=128)
        reals = before.single * (torch.arange(256) - before.zero_point)
        table = (reals.tanh() * 127).round().add(128).to(torch.uint8)
        return self._keep(Lookup(input=x.name, output=self.name("tanh"), table=table), x.floats.tanh(), grid=after)

    def padded_shortcut(self, x: Value, stride: int, more: int) -> Value:
        """Option A of residual networks."""
        grid = self.grids[x.name]
        floats = x.floats[:, :, ::stride, ::stride]
        some = self._keep(Subsample(input=x.name, output=self.name("some"), stride=(stride,) * 2), floats, grid=grid)
        sides = (more // 2, more - more // 2)
        op = ZeroPad(input=some.name, output=self.name("padded"), channels=sides)
        return self._keep(op, functional.pad(floats, (0, 0, 0, 0, *sides)), grid=grid)

    def keep_moved(self, op: Op, x: Value) -> Value:
        """An operation that moves no number of the floats."""
        return self._keep(op, x.floats, grid=self.grids[x.name])

    def program(self, last: Value, *, sums: bool = True) -> IntegerProgram:
        """The program that ends with a value; `sums` leaves the last layer's sums in 32 bits."""
        if sums:
            del self.grids[last.name]
        ops = (*self.ops, Dequantize(input=last.name, output="y"))
        return IntegerProgram(ops=ops, grids=self.grids)


def of_resnet(model: ResNet, x: Tensor, *, sums: bool = True) -> IntegerProgram:
    """A residual network with batch norms, in evaluation mode."""
    made = Calibration(x)
    stem, *blocks = model.features
    assert isinstance(stem, nn.Sequential)
    value = made.layer(made.start, stem[0], stem[1], relu=True)
    for pool in stem[3:]:
        assert isinstance(pool, nn.MaxPool2d)
        value = made.max_pool(value, 3, 2, 1)
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        parts = list(block.branch)
        branch = made.layer(value, parts[0], parts[1], relu=True)
        branch = made.layer(branch, parts[3], parts[4])
        shortcut = value
        if isinstance(block.shortcut, nn.Sequential):
            shortcut = made.layer(value, block.shortcut[0], block.shortcut[1])
        elif not isinstance(block.shortcut, nn.Identity):
            stride = value.floats.shape[-1] // branch.floats.shape[-1]
            shortcut = made.padded_shortcut(value, stride, branch.floats.shape[1] - value.floats.shape[1])
        value = made.add(shortcut, branch, relu=True)
    return made.program(made.layer(made.mean(value), model.head), sums=sums)


def of_mobile_net(model: MobileNet, x: Tensor) -> IntegerProgram:
    """A chain of convolutions, depthwise and not, with batch norms, in evaluation mode."""
    made = Calibration(x)
    leaves = [one for one in model.features.modules() if isinstance(one, nn.Conv2d | nn.BatchNorm2d)]
    value = made.start
    for module, norm in zip(leaves[::2], leaves[1::2], strict=True):
        value = made.layer(value, module, norm, relu=True)
    return made.program(made.layer(made.mean(value), model.head))


def of_lenet300(model: LeNet300, x: Tensor) -> IntegerProgram:
    """A perceptron."""
    made = Calibration(x)
    value = made.flat(made.start)
    for module in model.features:
        if isinstance(module, nn.Linear):
            value = made.layer(value, module, relu=True)
    return made.program(made.layer(value, model.head))

"""Pairs of layers of which one feeds the other alone, found in an exported graph of a model.

Legend of shapes: U units (features or channels) of a layer, P places of a channel, O outputs of the layer that reads.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_BETWEEN = (
    "relu",
    "relu_",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "hardtanh",
    "hardswish",
    "softplus",
    "dropout",
    "clone",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "batch_norm",
    "flatten",
    "view",
    "reshape",
)
"""Operations that keep channels apart, or lay out a channel's places one after the other."""


@dataclass(kw_only=True)
class Chain:
    """A layer, what happens to its outputs, and the only layer that reads them.

    Attributes:
        name: of the first layer.
        producer: the first layer.
        norms: batch norms in between.
        nodes: operations in between, in order.
        reader: the layer that reads.
        shape: of the first layer's outputs, without the batch.
    """

    name: str
    producer: Layer
    norms: tuple[nn.modules.batchnorm._BatchNorm, ...]
    nodes: tuple[fx.Node, ...]
    reader: Layer
    shape: tuple[int, ...]

    @property
    def num_units(self) -> int:
        """U."""
        return self.producer.weight.shape[0]

    @property
    def is_grouped(self) -> bool:
        """Whether one of the two is a convolution in groups, whose units are not read by all."""
        return any(not isinstance(one, nn.Linear) and one.groups > 1 for one in (self.producer, self.reader))

    def read_by_unit(self) -> Float[Tensor, "U rest"]:
        """The weights that read each unit, at all of its places."""
        weight = self.reader.weight
        return weight.reshape(len(weight), self.num_units, -1).transpose(0, 1).flatten(1)

    def silence(self, unit: int) -> None:
        """Sets to zero what a unit reads with and what it is read with."""
        self.producer.weight[unit] = 0
        if self.producer.bias is not None:
            self.producer.bias[unit] = 0
        self.reader.weight.view(len(self.reader.weight), self.num_units, -1)[:, unit] = 0

    def constants(self) -> Float[Tensor, "U P"]:
        """What the reader is handed of each unit that reads nothing."""
        weight, bias = self.producer.weight, self.producer.bias
        start = weight.new_zeros(self.num_units) if bias is None else bias
        value = start.view(1, -1, *[1] * (len(self.shape) - 1)).expand(1, self.num_units, *self.shape[1:])
        value = value.clone()  # operations in place must not reach the bias
        norms = iter(self.norms)
        for node in self.nodes:
            name = _name(node)
            if name == "batch_norm":
                norm = next(norms)
                parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
                value = nn.functional.batch_norm(value, *parts, training=False, eps=norm.eps)
            elif name in ("flatten", "view", "reshape"):
                value = value.flatten(1)
            elif name != "dropout":
                assert callable(node.target), "operations are called"
                value = node.target(value, *node.args[1:], **node.kwargs)
        return value.reshape(self.num_units, -1)

    def can_fold(self, value_P: Tensor, adds_biases: bool) -> bool:
        """Whether a constant can go into the reader's bias: a convolution with a margin sees zeros beside it."""
        if self.reader.bias is None and not adds_biases:
            return False
        if isinstance(self.reader, nn.Linear):
            return True
        padding = self.reader.padding
        has_margin = padding == "same" if isinstance(padding, str) else any(padding)
        return not has_margin and bool((value_P == value_P[0]).all())

    def fold(self, unit: int, value_P: Float[Tensor, "P"]) -> None:
        """Moves what a unit hands on, which is constant, into the reader's bias."""
        weight = self.reader.weight
        read = weight.view(len(weight), self.num_units, -1)[:, unit]
        added_O = read @ value_P if isinstance(self.reader, nn.Linear) else read.sum(1) * value_P[0]
        if self.reader.bias is None:
            self.reader.bias = nn.Parameter(torch.zeros_like(added_O), requires_grad=weight.requires_grad)
        self.reader.bias.add_(added_O)

    def keep_units(self, keep: Tensor) -> None:
        """Takes all other units out of the first layer, the norms and the reader."""
        width = self.reader.weight.shape[1] // self.num_units
        read = (keep[:, None] * width + torch.arange(width, device=keep.device)).flatten()
        count = len(keep)
        _select(self.producer, "weight", keep, 0)
        _select(self.producer, "bias", keep, 0)
        for norm in self.norms:
            for own in ("weight", "bias", "running_mean", "running_var"):
                _select(norm, own, keep, 0)
            norm.num_features = count
        _select(self.reader, "weight", read, 1)
        _resize(self.producer, count, outputs=True)
        _resize(self.reader, len(read), outputs=False)


def chains(model: nn.Module, inputs: tuple[Tensor, ...]) -> Sequence[Chain]:
    """All pairs of a model, in the order of the graph.

    Raises:
        ValueError: torch cannot export the model with these inputs.
    """
    try:
        exported = torch.export.export(model, inputs, strict=False)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced with inputs of the shapes {[tuple(one.shape) for one in inputs]} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Pass an input that its "
            "forward pass takes."
        ) from error
    names = dict(exported.graph_signature.inputs_to_parameters)
    modules = dict(model.named_modules(remove_duplicate=False))
    called: dict[str, int] = {}
    for node in exported.graph.nodes:
        if _is_layer(node):
            name = _layer_name(node, names)
            called[name] = called.get(name, 0) + 1
    found = []
    for node in exported.graph.nodes:
        name = _layer_name(node, names) if _is_layer(node) else None
        if name is not None and called[name] == 1 and isinstance(modules.get(name), Layer):
            chain = _follow(node, name, names, modules, called)
            found += [] if chain is None else [chain]
    return found


def _follow(
    start: fx.Node, name: str, names: dict[str, str], modules: dict[str, nn.Module], called: dict[str, int]
) -> Chain | None:
    """The chain that begins at a layer; None if its outputs go elsewhere too, or through what mixes units."""
    nodes: list[fx.Node] = []
    norms: list[nn.modules.batchnorm._BatchNorm] = []
    producer, shape = modules[name], tuple(start.meta["val"].shape[1:])
    assert isinstance(producer, Layer), "only these are followed"
    node, is_flat = start, len(shape) == 1
    if isinstance(producer, nn.Linear) and len(shape) > 1:
        return None
    while len(node.users) == 1:
        (node,) = node.users
        if _is_layer(node):
            reader_name = _layer_name(node, names)
            reader = modules.get(reader_name)
            fits = isinstance(reader, Layer) and called[reader_name] == 1 and isinstance(reader, nn.Linear) == is_flat
            if not fits or not isinstance(reader, Layer) or node.args[0] is not (nodes[-1] if nodes else start):
                return None
            return Chain(
                name=name, producer=producer, norms=tuple(norms), nodes=tuple(nodes), reader=reader, shape=shape
            )
        kind = _name(node)
        if kind not in _BETWEEN:
            return None
        if kind == "batch_norm":
            norm = modules.get(_layer_name(node, names))
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
                return None
            if is_flat and len(shape) > 1:
                return None
            norms.append(norm)
        if kind in ("flatten", "view", "reshape"):
            before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
            if len(after) != 2 or after[0] != before[0]:
                return None
            is_flat = True
        nodes.append(node)
    return None


def _is_layer(node: fx.Node) -> bool:
    return _name(node) in ("linear", "conv1d", "conv2d", "conv3d")


def _name(node: fx.Node) -> str:
    """The operation of a node without its overload, "relu"."""
    if node.op != "call_function" or node.target is operator.getitem:
        return ""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _layer_name(node: fx.Node, names: dict[str, str]) -> str:
    """The module whose weight an operation is handed; empty if it is no parameter."""
    weight = node.args[1] if len(node.args) > 1 else None
    own = names.get(weight.name, "") if isinstance(weight, fx.Node) else ""
    return own.removesuffix(".weight") if own.endswith("weight") else ""


def _select(module: nn.Module, own: str, rows: Tensor, axis: int) -> None:
    held = getattr(module, own)
    if held is None:
        return
    kept = held.detach().index_select(axis, rows).clone()
    is_parameter = isinstance(held, nn.Parameter)
    setattr(module, own, nn.Parameter(kept, requires_grad=held.requires_grad) if is_parameter else kept)


def _resize(layer: Layer, size: int, *, outputs: bool) -> None:
    """Brings what a layer says of its own size in line with its weight."""
    if isinstance(layer, nn.Linear):
        setattr(layer, "out_features" if outputs else "in_features", size)
    else:
        setattr(layer, "out_channels" if outputs else "in_channels", size)

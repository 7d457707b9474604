"""Puts a quantized graph into its model, in stages: modules that one value enters and one leaves."""

from collections.abc import Generator, Iterator, Sequence
from types import MethodType

from torch import Tensor, nn

from featherlight.transforms.quantize.graph import NAME, QuantizedGraph, quantized_graph
from featherlight.transforms.quantize.steps import (
    EmbeddingStep,
    FloatStep,
    LayerStep,
    NormStep,
    SameStep,
    Step,
    inputs_of,
)


def attach(model: nn.Module, graph: QuantizedGraph) -> None:
    """Makes a model run through its graph."""
    graph.stages.extend(_stages_of(model, graph))
    graph.train(model.training)
    model.add_module(NAME, graph)
    model.forward = MethodType(_forward, model)


def detach(model: nn.Module) -> None:
    """Gives a model its own forward back."""
    del model.__dict__["forward"]
    delattr(model, NAME)


class GraphStage(nn.Module):
    """Steps that one value enters and one leaves.

    It counts the layers, norms and quantizers that its steps use among its modules, so that what looks at the parameters and
    buffers of a stage finds them; but it does not own them, and nothing of it stands in a `state_dict`.

    Args:
        model: prepared.
        graph: of it.
        steps: of the stage, in order.
    """

    def __init__(self, model: nn.Module, graph: QuantizedGraph, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self._whole = (model, graph)  # in a tuple, which makes no submodules of them

    def forward(self, x: Tensor) -> Tensor:
        """From the value that enters to the one that leaves."""
        model, graph = self._whole
        return graph.run(model, x, self.steps, self.steps[-1].output)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[tuple[str, nn.Module], None, None]:
        """Itself and what its steps use."""
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self
        for number, module in enumerate(self._used() if remove_duplicate else ()):
            yield from module.named_modules(memo, f"{prefix}.{number}" if prefix else str(number))

    def _used(self) -> Iterator[nn.Module]:
        model, graph = self._whole
        for step in self.steps:
            if isinstance(step, LayerStep | FloatStep | EmbeddingStep | SameStep) and step.module is not None:
                yield model.get_submodule(step.module)
            if isinstance(step, LayerStep | NormStep) and step.norm is not None:
                yield model.get_submodule(step.norm)
            yield from (kept[step.output] for kept in (graph.weights, graph.activations) if step.output in kept)


def _stages_of(model: nn.Module, graph: QuantizedGraph) -> Sequence[GraphStage]:
    """The shortest stages that each hold something with weights; values that share a grid stay in one."""
    made: list[list[Step]] = []
    begun: list[Step] = []
    for number, step in enumerate(graph.steps):
        begun.append(step)
        later = graph.steps[number + 1 :]
        read = {name for one in later for name in inputs_of(one)} | {graph.output}
        before = {one.output for one in graph.steps[: number + 1]} | {graph.input}
        open_groups = any(
            not before.isdisjoint(group) and not before.issuperset(group) for group in graph.groups.values()
        )
        has_weights = any(isinstance(one, LayerStep | NormStep | FloatStep | EmbeddingStep) for one in begun)
        if read & before == {step.output} and not open_groups and has_weights:
            made.append(begun)
            begun = []
    if begun:  # what is left has no weights of its own
        made = [*made[:-1], [*(made[-1] if made else []), *begun]]
    return [GraphStage(model, graph, steps) for steps in made]


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    """Through the quantized graph of the model."""
    return quantized_graph(self)(self, x)

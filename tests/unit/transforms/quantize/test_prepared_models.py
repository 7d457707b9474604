"""Prepared models: what they compute, the integer program they become, and what convert leaves of them."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from featherlight.objective import BatchObjective
from featherlight.transforms import AT_ONCE, PerLayer, Prune, ShareWeights, TransformStack, prune_weights
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import segments
from featherlight.transforms.quantize import (
    ActivationGrid,
    Calibration,
    FakeQuantization,
    LearnedScale,
    MinMax,
    Timetable,
    WeightGrid,
    quantize_after_training,
    simulated_integers,
    to_integer_program,
)
from featherlight.transforms.quantize.graph import quantized_graph
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.lowering import Lowering
from featherlight.transforms.quantize.steps import LayerStep
from featherlight.transforms.statistics import frozen_statistics
from tests.oracles.slow_quantizer import corrected_fold
from tests.unit.transforms.quantize.models_of_all_kinds import everything


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


def batch(seed=0, count=5):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model, transform, steps, start=0, optimizer=None):
    model.train()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(start, start + steps):
        transform.update(model, step / 10)
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("symmetric", [False, True])
def test_simulated_integers_are_the_reference_executors_to_the_bit(symmetric):
    model, x = everything()
    plain = model(x).detach()
    transform = FakeQuantization(
        example=x,
        activations=ActivationGrid(symmetric=symmetric),
        calibration=Calibration(batches=[x], ranges=MinMax()),
    )
    transform.prepare(model)
    transform.update(model, 1.0)
    rounded = model(x).detach()
    reach = float(plain.abs().max())
    assert float((rounded - plain).abs().max()) < 0.06 * reach
    run = IntegerExecutor(to_integer_program(model))
    with simulated_integers(model):
        exact = model(x)
        exact.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert torch.equal(exact, run(x))
    assert float((exact.detach() - rounded).abs().max()) < 0.03 * reach
    assert torch.equal(model(x), rounded), "nothing stays of the simulation"


def test_each_layer_is_within_one_of_the_reference_given_the_same_inputs():
    model, x = everything()
    quantize_after_training(model, Calibration(batches=[x]))
    graph, program = quantized_graph(model), to_integer_program(model)
    run = IntegerExecutor(program)
    values = run.values(x)
    seen = 0
    with torch.no_grad():
        for step in graph.steps:
            if not isinstance(step, LayerStep) or not graph.has_grid(step.output):
                continue
            before = program.grids[Lowering(model, graph).name(step.input)]
            scale = before.single * (values[Lowering(model, graph).name(step.input)].float() - before.zero_point)
            module = model.get_submodule(step.module)
            quantizer = graph.weights[step.output]
            y = (
                module._conv_forward(scale, quantizer(module.weight), module.bias)
                if scale.ndim == 4
                else (nn.functional.linear(scale, quantizer(module.weight), module.bias))
            )
            y = y if step.norm is None else model.get_submodule(step.norm)(y)
            grid = program.grids[step.output]
            codes = ((y / grid.single).round() + grid.zero_point).clamp(grid.low, grid.high)
            assert float((codes - values[step.output].float()).abs().max()) <= 1
            seen += 1
    assert seen == 5


def test_folding_is_batch_norm_in_evaluation_and_the_corrected_fold_in_training():
    model, x = small(), batch()
    conv, norm = model[0], model[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.7, 0.2, 1.0]))
        norm.running_var.copy_(torch.tensor([0.2, 3.0, 1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.0, 3.0]))
    FakeQuantization(example=x).prepare(model)
    graph = quantized_graph(model)
    quantizer = graph.weights[graph.steps[1].output]
    expected = corrected_fold(conv, norm, x, quantizer).relu()
    model.train()
    model[1].momentum = 0.0
    seen = []
    model.quantization.activations[graph.steps[1].output].observe = seen.append
    model(x)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_folded_layers_are_batch_norm_after_the_rounded_layer_to_half_a_unit_of_the_bias():
    model, x = everything()
    quantize_after_training(model, Calibration(batches=[x]))
    graph, program = quantized_graph(model), to_integer_program(model)
    ops = {op.output: op for op in program.layers}
    for step in (one for one in graph.steps if isinstance(one, LayerStep) and one.norm is not None):
        op, conv, norm = ops[step.output], model.get_submodule(step.module), model.get_submodule(step.norm)
        inputs = torch.randn(2, conv.in_channels, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        scales = op.weight_scales.double()
        units = scales * float(program.grids[op.input].single)
        weight, bias = op.weight.double() * scales.view(-1, 1, 1, 1), op.bias.double() * units
        folded = nn.functional.conv2d(inputs, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        rounded = graph.weights[step.output](conv.weight).double()
        own = None if conv.bias is None else conv.bias.double()
        plain = nn.functional.conv2d(inputs, rounded, own, conv.stride, conv.padding, conv.dilation, conv.groups)
        expected = copy.deepcopy(norm).double()(plain)
        error = (folded - expected).abs().amax((0, 2, 3))
        assert (error <= 0.5 * units + 1e-6 * expected.abs().amax((0, 2, 3))).all()


def test_training_starts_late_freezes_and_leaves_weights_on_the_grid_in_plain_modules():
    model, x = small(), batch()
    kinds, keys = [type(one) for one in model], list(model.state_dict())
    transform = FakeQuantization(example=x, timetable=Timetable(activations_after=0.3, freeze_after=0.8))
    transform.prepare(model)
    added = set(model.state_dict()) - set(keys)
    assert all(name.startswith("quantization.") for name in added)
    train(model, transform, 3)
    assert int(quantized_graph(model).phase) == 0
    train(model, transform, 5, start=3)
    assert int(quantized_graph(model).phase) == 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, transform, 2, start=8)
    after = model.state_dict()
    frozen = [name for name in before if "running" in name or "activations" in name]
    assert len(frozen) == 8
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    model.eval()
    program = to_integer_program(model)
    run = IntegerExecutor(program)(x)
    transform.convert(model)
    assert ([type(one) for one in model], list(model.state_dict()), "forward" in vars(model)) == (kinds, keys, False)
    scales = model[0].weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    units = model[0].weight / scales
    torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(model(x), run, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("learned", [False, True])
def test_a_save_in_the_middle_goes_on_to_the_same_bits(learned):
    def made():
        model = small()
        parts = {"weights": WeightGrid(bits=4, learned=True), "ranges": LearnedScale()} if learned else {}
        transform = FakeQuantization(
            example=batch(), timetable=Timetable(activations_after=0.2, freeze_after=0.8), **parts
        )
        transform.prepare(model)
        return model, transform

    model, transform = made()
    optimizer = train(model, transform, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, transform, 4, start=5, optimizer=optimizer)
    again, its_transform = made()
    other = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(again, its_transform, 4, start=5, optimizer=other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    if learned:
        start = made()[0].state_dict()
        moved = [
            name
            for name, value in model.state_dict().items()
            if "scale" in name and not torch.equal(value, start[name])
        ]
        assert len(moved) == 4


def test_a_pass_that_is_made_again_moves_nothing_and_a_copy_is_its_own():
    model, x = small(), batch()
    FakeQuantization(example=x).prepare(model)
    transform = FakeQuantization(example=x, timetable=Timetable(activations_after=0.0))
    model.train()
    transform.update(model, 0.0)
    first = model(x)
    before = copy.deepcopy(model.state_dict())
    with frozen_statistics():
        torch.testing.assert_close(model(x), first, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    twin(2 * x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(twin.state_dict()["1.running_mean"], before["1.running_mean"])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 2, 1)])
def test_pruned_and_shared_weights_are_rounded_in_any_order_of_the_stack(order):
    model, x = small(), batch()
    keys, kinds = list(model.state_dict()), [type(one) for one in model]
    pattern = PerLayer({"0.*": 0.5, "*": 0.8})
    prune_weights(model, pattern)
    every = (Prune(pattern, schedule=AT_ONCE), ShareWeights(7), FakeQuantization(example=x))
    stack = TransformStack([every[number] for number in order])
    stack.prepare(model)
    train(model, stack, 10)
    program = to_integer_program(model.eval())
    stack.convert(model)
    assert (list(model.state_dict()), [type(one) for one in model]) == (keys, kinds)
    for layer, op, share in ((model[0], program.layers[0], 0.5), (model[4], program.layers[1], 0.8)):
        weight = layer.weight.detach()
        assert float((weight == 0).double().mean()) >= share
        units = weight.flatten(1) / (weight.flatten(1).abs().amax(1, keepdim=True) / 127)
        torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)
        torch.testing.assert_close(units.abs(), op.weight.flatten(1).abs().float(), rtol=0, atol=1e-3)
        assert max(len(row.unique()) for row in weight.flatten(1)) <= 8


def test_micro_batches_are_the_whole_batch_once_ranges_and_statistics_are_frozen():
    model, x = small(), batch(count=6)
    quantize_after_training(model, Calibration(batches=[x]))
    gradients = []
    for size in (6, 2):
        objective = BatchObjective(model.train(), {"x": x}, lambda m, b: m(b["x"]).square().sum(1), micro_batch=size)
        before = copy.deepcopy(dict(model.named_buffers()))
        objective()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [7, 4, 2])
def test_few_bits_are_simulated_and_refused_as_programs(bits):
    model, x = small(), batch()
    quantize_after_training(model, Calibration(batches=[x]), weights=WeightGrid(bits=bits, least_squares=True))
    with pytest.raises(ValueError, match=f"the weights of `0` have {bits} bits, and integer programs have 8"):
        to_integer_program(model)
    FakeQuantization(example=x).convert(model)
    assert all(len(row.unique()) <= 2**bits - 1 for row in model[4].weight)


def test_a_layer_stays_in_float_if_asked_and_embeddings_are_rounded():
    model, x = small(), batch()
    FakeQuantization(example=x, keep_float=("4",), calibration=Calibration(batches=[x])).prepare(model)
    model(x)
    with pytest.raises(ValueError, match=r"the layer `4` \(Linear\) stays in float"):
        to_integer_program(model)
    words = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2))
    tokens = torch.arange(8).view(2, 4)
    plain = words(tokens)
    quantize_after_training(words, Calibration(batches=[tokens], ranges=MinMax()))
    torch.testing.assert_close(words(tokens), plain, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="reads token numbers"):
        to_integer_program(words)


def test_torchs_activation_checkpointing_moves_nothing_twice_with_frozen_statistics():
    model, x = small(), batch()
    transform = FakeQuantization(example=x, timetable=Timetable(activations_after=0.0))
    transform.prepare(model)
    transform.update(model.train(), 0.0)
    twin = copy.deepcopy(model)
    model(x).square().sum().backward()
    again = checkpoint(twin, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics()))
    again.square().sum().backward()
    for (name, one), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert all(
        torch.equal(one.grad, other.grad) for one, other in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_activation_checkpointing_of_the_stages_is_the_plain_run_to_the_bit():
    def run(checkpointed):
        model, x = everything()
        model.dropout.p = 0.0
        transform = FakeQuantization(example=x, timetable=Timetable(activations_after=0.0, freeze_after=0.8))
        transform.prepare(model)
        count = len(quantized_graph(model).stages)
        assert count >= 4
        if checkpointed:
            names = [f"quantization.stages.{number}" for number in range(count)]
            ActivationCheckpoint(names, segments(count, 2)).prepare(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(5):
            transform.update(model, step / 5)
            optimizer.zero_grad()
            model(x.roll(step, 0)).square().sum().backward()
            optimizer.step()
        return model.state_dict()

    plain, again = run(False), run(True)
    assert plain.keys() == again.keys()
    assert not [name for name, value in plain.items() if not torch.equal(value, again[name])]

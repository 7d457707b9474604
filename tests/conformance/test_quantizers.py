"""One contract for every vector quantizer; see `Quantizer` for its words."""

import copy
import inspect
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from featherlight.nn import vector_quantizers
from featherlight.nn.vector_quantizers import Codes, Quantized
from tests.conformance.quantizer_table import DIM, TABLE, Row, loss_of, make, some_mask, vectors, without_kernels
from tests.conformance.quantizers_in_processes import ROWS, train

ROOT = Path(__file__).parents[2]
every = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
counted, compiled = (
    pytest.mark.parametrize("row", [TABLE[name] for name in names], ids=names)
    for names in ([n for n, row in TABLE.items() if row.counted], [n for n, row in TABLE.items() if row.compiled])
)


@pytest.fixture(autouse=True)
def _torch_solves() -> Iterator[None]:
    with without_kernels():
        yield


def trained(row: Row, **options: Any) -> Any:
    """A quantizer that has seen a batch."""
    layer = make(row, **options)
    axis = layer.channel_axis
    layer(vectors(8, 16, DIM, seed=3).movedim(-1, axis))
    return layer


def state_of(layer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def run(layer: Any, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Everything a step leaves: results, the gradients of the input and of all parameters, and the state."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    result = layer(x, mask=mask)
    loss_of(result).backward()
    assert x.grad is not None
    grads = [p.grad if p.grad is not None else torch.zeros(()) for p in layer.parameters()]
    weights = [] if result.codes.weights is None else [result.codes.weights]
    return [result.values, result.codes.indices, *weights, result.aux_loss, x.grad, *grads, *state_of(layer).values()]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_every_public_quantizer_is_in_the_table() -> None:
    public = [getattr(vector_quantizers, name) for name in vector_quantizers.__all__]
    layers = {one for one in public if inspect.isclass(one) and issubclass(one, torch.nn.Module)}
    assert {one for one in layers if "codes_to_values" in vars(one)} == {row.kind for row in TABLE.values()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every
def test_the_result_has_its_types_and_shapes_and_a_finite_gradient(
    row: Row, dtype: torch.dtype, training: bool
) -> None:
    layer = trained(row).train(training)
    x = vectors(2, 3, 5, DIM).to(dtype).requires_grad_()
    result = layer(x)
    values, (indices, weights), aux_loss = result
    assert type(result) is Quantized
    assert type(result.codes) is Codes
    assert values.shape == x.shape
    assert values.dtype == dtype
    assert indices.shape == (2, 3, 5, *layer.code_shape)
    assert indices.dtype == torch.int64
    assert int(indices.min()) >= -1
    if weights is not None:
        assert weights.shape == indices.shape
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), rtol=1e-5, atol=1e-5)
        assert bool((weights[indices < 0] == 0).all())
    assert aux_loss.shape == ()
    assert aux_loss.dtype == torch.float32
    assert training or (aux_loss == 0.0 and not aux_loss.requires_grad)
    loss_of(result).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad != 0).any())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@every
def test_masked_positions_cannot_influence_anything(row: Row, training: bool) -> None:
    x, mask = vectors(4, 6, DIM), some_mask(4, 6)
    left, right = (make(row).train(training) for _ in range(2))
    expected = run(left, torch.where(mask[..., None], x, 0.0), mask)
    spoiled = run(right, torch.where(mask[..., None], x, torch.nan), mask)
    assert_same(expected, spoiled)
    result = left.eval()(x, mask=mask)
    assert bool((result.values[~mask] == 0).all())
    assert bool((result.codes.indices[~mask] == -1).all())
    assert result.codes.weights is None or bool((result.codes.weights[~mask] == 0).all())
    alone = left(x[mask])
    torch.testing.assert_close(result.values[mask], alone.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.codes.indices[mask], alone.codes.indices)


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 5), (1, 2, 3, 2), (2, 0)], ids=["1-D", "images", "video", "empty"])
@every
def test_any_number_of_position_axes_and_channels_at_axis_1(row: Row, shape: tuple[int, ...]) -> None:
    last, first = (trained(row).eval() for _ in range(2))
    first.channel_axis = 1
    x = vectors(*shape, DIM)
    expected, result = last(x), first(x.movedim(-1, 1))
    assert torch.equal(result.values, expected.values.movedim(-1, 1))
    assert torch.equal(result.codes.indices, expected.codes.indices)
    assert result.aux_loss == expected.aux_loss
    assert torch.equal(first.codes_to_values(result.codes), last.codes_to_values(expected.codes).movedim(-1, 1))


@every
def test_training_on_images_is_training_on_their_vectors(row: Row) -> None:
    x, mask = vectors(2, 3, 4, DIM), some_mask(2, 3, 4)
    last, first = make(row), make(row, channel_axis=1)
    expected, result = run(last, x, mask), run(first, x.movedim(-1, 1), mask)
    layer_results = [result[0].movedim(1, -1), *result[1:]]
    for one, other in zip(expected[:1] + expected[1:2], layer_results[:2], strict=True):
        assert torch.equal(one, other)
    assert_same(list(state_of(last).values()), list(state_of(first).values()))


@every
def test_codes_to_values_inverts(row: Row) -> None:
    layer = trained(row, channel_axis=1).eval()
    x, mask = vectors(3, DIM, 5), some_mask(3, 5)
    values, codes, _ = layer(x, mask=mask)
    torch.testing.assert_close(layer.codes_to_values(codes), values, rtol=1e-5, atol=1e-6)
    assert layer.dim == DIM


@every
def test_evaluation_writes_no_state(row: Row) -> None:
    for layer in (make(row).eval(), trained(row).eval()):
        before = state_of(layer)
        layer(vectors(2, 9, DIM))
        assert_same(list(before.values()), list(state_of(layer).values()))


@every
def test_the_state_is_all_there_is(row: Row) -> None:
    layer, again = trained(row), make(row, seed=1)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    again.load_state_dict(state)
    x = vectors(2, 9, DIM)
    assert_same(run(layer, x), run(again, x))
    assert_same(run(layer.eval(), x), run(again.eval(), x))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**state, "another": x})
    for name in state:
        with pytest.raises(RuntimeError, match="Missing key"):
            again.load_state_dict({key: value for key, value in state.items() if key != name})


@every
def test_copies_go_their_own_way_and_no_global_generator_is_read(row: Row) -> None:
    layer = trained(row)
    other = copy.deepcopy(layer)
    before = state_of(layer)
    x = vectors(2, 9, DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = torch.get_rng_state()
        changed = run(other, x)
        assert torch.equal(torch.get_rng_state(), generator)
    assert_same(list(before.values()), list(state_of(layer).values()))
    assert_same(run(layer, x), changed)


@compiled
@pytest.mark.filterwarnings("ignore:.*autograd.Function:DeprecationWarning")  # of torch.compile about itself
def test_nothing_breaks_the_graph(row: Row) -> None:
    x, mask = vectors(4, 6, DIM), some_mask(4, 6)
    plain = make(row) if row.fresh else trained(row)
    traced = copy.deepcopy(plain)
    torch.compiler.reset()
    fast: Any = torch.compile(traced, fullgraph=True, backend="eager")
    for training in (True, True, False):
        plain.train(training)
        traced.train(training)
        for one, other in zip(run(plain, x, mask), run(fast, x, mask), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch about itself
def test_exported_layers_give_the_same_codes_for_any_batch(tmp_path: Path) -> None:
    layers = {name: trained(row, channel_axis=1).eval() for name, row in TABLE.items() if row.onnx}
    together = _SideBySide(list(layers.values())).eval()
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.onnx.export(together, (vectors(2, DIM, 3),), dynamo=True, dynamic_shapes=batch, verbose=False)
    assert program is not None
    program.save(tmp_path / "layers.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layers.onnx")
    x = vectors(7, DIM, 3, seed=1)
    got = [torch.from_numpy(one) for one in session.run(None, {session.get_inputs()[0].name: x.numpy()})]
    with torch.no_grad():
        for name, layer in layers.items():
            for expected in _tensors_of(layer, x):
                torch.testing.assert_close(got.pop(0), expected, rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)
    assert got == []


class _SideBySide(torch.nn.Module):
    """Results of several layers as tensors, so that all are exported at once."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for layer in self.layers for tensor in _tensors_of(layer, x))


def _tensors_of(layer: Any, x: Tensor) -> list[Tensor]:
    values, codes, _ = layer(x)
    some = [values, codes.indices, layer.codes_to_values(codes)]
    return some if codes.weights is None else [*some, codes.weights]


@every
def test_what_does_not_fit_gets_a_sentence(row: Row) -> None:
    layer = make(row, channel_axis=1)
    x = vectors(2, DIM, 3)
    spoiled = x.clone()
    spoiled[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"position \(1, 0\) is not finite: feature 2 is nan"):
        layer(spoiled)
    with pytest.raises(
        ValueError, match=rf"{DIM} features at axis 1; got 3 there.*Is it|{DIM} features at axis 1; got 3"
    ):
        layer(x.movedim(1, 2))
    with pytest.raises(ValueError, match=r"`mask` must have the shape .*: \(2, 3\); got \(3, 2\)"):
        layer(x, mask=torch.ones(3, 2).bool())
    with pytest.raises(ValueError, match="vectors of a float dtype"):
        layer(x.long())


@counted
def test_bits_are_those_of_all_different_codes(row: Row) -> None:
    layer = trained(row)
    seen = set()
    for scale in (0.3, 1.0, 3.0):
        x = vectors(4096, DIM, seed=7, scale=scale)
        for one in (layer.eval(), copy.deepcopy(layer).train()):
            codes = one(x).codes
            seen |= {tuple(code) for code in codes.indices.reshape(4096, -1).tolist() if min(code) >= 0}
    assert len(seen) == round(2**layer.bits_per_position)
    assert math.isclose(2**layer.bits_per_position, len(seen), rel_tol=1e-9)


def test_two_processes_equal_one_at_the_same_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.conformance.quantizers_in_processes", str(tmp_path)]
    started = [
        subprocess.Popen([*command, str(rank), "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        errors = [one.communicate(timeout=120)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], errors
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, row in ROWS.items():
        alone = train(row, 0, 1)
        for one in both:
            torch.testing.assert_close(
                one[name]["state"], alone["state"], rtol=1e-7, atol=1e-9, msg=f"{name}: {{}}".format
            )
        together = [torch.cat(pair) for pair in zip(*(one[name]["indices"] for one in both), strict=True)]
        assert_same(together, alone["indices"])

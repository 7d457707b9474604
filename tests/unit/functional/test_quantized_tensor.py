"""A matrix kept as whole numbers behaves as the floats it stands for, wherever a layer uses it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherlight.functional import IntegerGrid, QuantizedTensor, pack_signs, quantized_tensor, unpack_signs
from tests.oracles.quantized_update import stored, units_of

LAYOUTS = [(8, None), (8, 32), (4, None), (4, 32), (4, 6)]
every_layout = pytest.mark.parametrize(("bits", "group"), LAYOUTS)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(rows: int = 9, columns: int = 45, *, bits: int = 8, group: int | None = None) -> QuantizedTensor:
    return QuantizedTensor.rounded(draw(rows, columns), bits=bits, group=group, merge_rank=8)


@every_layout
@pytest.mark.parametrize("shape", [(9, 45), (1, 1), (3, 64), (130, 7)])
def test_every_weight_is_the_nearest_point_of_its_grid(
    bits: int, group: int | None, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_tensor, "_ELEMENTS_AT_ONCE", 100)
    weight = draw(*shape)
    held = QuantizedTensor.rounded(weight, bits=bits, group=group, merge_rank=0)
    assert held.shape == weight.shape
    assert held.dtype == weight.dtype
    plain = held.plain()
    torch.testing.assert_close(plain.double(), stored(held), rtol=1e-6, atol=0.0)
    assert ((plain - weight).abs() <= units_of(held) * (0.5 + 2**-6 * (group is not None) * held.grid.highest)).all()


@pytest.mark.parametrize(
    ("bits", "group", "expected"), [(8, None, 64 * 256 + 64 * 4), (4, 32, 64 * 128 + 64 * 8 * 2), (4, None, 64 * 132)]
)
def test_bytes_are_those_of_whole_numbers_and_scales(bits: int, group: int | None, expected: int) -> None:
    assert quantized(64, 256, bits=bits, group=group).num_bytes == expected


def test_rows_and_groups_of_zeros_stay_zero_and_can_be_moved() -> None:
    weight = draw(4, 8)
    weight[1] = 0
    held = QuantizedTensor.rounded(weight, bits=4, group=4, merge_rank=0)
    assert (held.plain()[1] == 0).all()
    assert (held.scales > 0).all()
    nothing = QuantizedTensor.rounded(torch.zeros(2, 4), bits=8, group=None, merge_rank=0)
    assert (nothing.plain() == 0).all()


@every_layout
def test_stochastic_rounding_has_the_right_mean_and_leaves_grid_points(bits: int, group: int | None) -> None:
    held = quantized(4, 12, bits=bits, group=group)
    on_grid = held.plain()
    ends = [torch.zeros(4, 12, dtype=torch.int64), torch.full((4, 12), 65535)]
    for halves in ends:
        held.store_(on_grid, 0, halves=halves)
        assert torch.equal(held.plain(), on_grid)
    between = on_grid * 0.5 + 0.21 * units_of(held).float()
    generator = torch.Generator().manual_seed(1)
    total, count = torch.zeros_like(on_grid, dtype=torch.float64), 4000
    for _ in range(count):
        held.store_(between, 0, halves=torch.randint(0, 1 << 16, between.shape, generator=generator))
        assert ((held.plain() - between).abs() < units_of(held) * (1 + 1e-5)).all()
        total += held.plain()
    error = (total / count - between) / units_of(held)
    assert error.abs().max() < 5 * 0.5 / count**0.5


def test_values_beyond_the_grid_are_clipped_to_its_ends() -> None:
    held = quantized(2, 4)
    held.store_(torch.tensor([[1e9, -1e9, 0.0, 0.0]] * 2), 0)
    assert held.codes.tolist() == [[127, -128, 0, 0]] * 2


@every_layout
@pytest.mark.parametrize("rows_at_once", [1, 1000])
def test_products_and_their_gradients_are_those_of_the_floats(
    bits: int, group: int | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_tensor, "_ELEMENTS_AT_ONCE", rows_at_once * 45)
    weight = nn.Parameter(quantized(9, 45, bits=bits, group=group))
    plain = weight.plain()
    bias = draw(9, seed=3)
    x, z = draw(2, 3, 45, seed=1).requires_grad_(), draw(4, 9, seed=2).requires_grad_()
    pairs = [
        (F.linear(x, weight, bias), F.linear(x, plain, bias)),
        (F.linear(x, weight), F.linear(x, plain)),
        (torch.addmm(draw(45), z, weight), torch.addmm(draw(45), z, plain)),
        (z @ weight, z @ plain),
    ]
    for (ours, expected), one in zip(pairs, (x, x, z, z), strict=True):
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(
            torch.autograd.grad(ours.square().sum(), one), torch.autograd.grad(expected.square().sum(), one)
        )
    F.linear(x.detach(), weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().sum((0, 1)).expand(9, 45))


def test_a_product_keeps_no_float_copy_for_the_backward_pass() -> None:
    from featherlight.meter import saved_for_backward_bytes

    layer = nn.Linear(64, 64)
    layer.weight = nn.Parameter(quantized(64, 64), requires_grad=False)
    x = draw(2, 64).requires_grad_()
    assert saved_for_backward_bytes(lambda: layer(x)) == 0


def test_any_other_function_sees_the_floats() -> None:
    weight = nn.Parameter(quantized())
    plain = weight.plain()
    assert torch.equal(weight + 1, plain + 1)
    assert torch.equal(weight.T, plain.T)
    assert torch.equal(torch.einsum("rc,rc->r", weight, plain), torch.einsum("rc,rc->r", plain, plain))
    assert torch.equal(F.embedding(torch.tensor([3, 1]), weight), plain[[3, 1]])
    images = draw(2, 5, 8, 8)
    kernel = QuantizedTensor.rounded(draw(4, 45), bits=8, group=None, merge_rank=0)
    torch.testing.assert_close(
        F.conv2d(images, kernel.view(4, 5, 3, 3)), F.conv2d(images, kernel.plain().view(4, 5, 3, 3))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    weight = QuantizedTensor.rounded(draw(9, 45, dtype=dtype), bits=8, group=None, merge_rank=0)
    assert weight.dtype == dtype
    assert torch.equal(F.linear(torch.eye(45, dtype=dtype), weight), weight.exact_rows(0, 9).to(dtype).T)


def test_autocast_multiplies_in_its_own_dtype() -> None:
    weight = quantized()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.linear(draw(3, 45), weight, draw(9))
        expected = F.linear(draw(3, 45), weight.plain(), draw(9))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-2)


def test_modules_move_copy_and_load_it() -> None:
    layer = nn.Linear(45, 9)
    layer.weight = nn.Parameter(quantized())
    assert isinstance(layer.weight, nn.Parameter)
    parameter, before = layer.weight, layer.weight.plain()
    layer.to("cpu").bfloat16()
    assert layer.weight is parameter
    assert layer.weight.dtype == torch.bfloat16
    assert layer(draw(2, 45, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.float()
    twin = copy.deepcopy(layer)
    twin.weight.store_(torch.zeros(9, 45), 0)
    assert torch.equal(layer.weight.plain(), before)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.weight.plain(), before)


def test_what_would_write_floats_into_it_is_refused() -> None:
    weight = nn.Parameter(quantized(), requires_grad=False)
    with pytest.raises(ValueError, match=r"aten\.add_.* would write to a weight that is held in 8 bits.*dequantize"):
        weight.add_(1.0)
    optimizer = torch.optim.SGD([weight.requires_grad_()], lr=0.1)
    F.linear(draw(2, 45), weight).sum().backward()
    with pytest.raises(ValueError, match=r"Only forward-only methods with recorded steps can train it"):
        optimizer.step()
    with torch.no_grad(), pytest.raises(ValueError, match=r"only a matrix of the same shape and layout can be copied"):
        weight.copy_(draw(9, 45))
    with torch.no_grad(), pytest.raises(ValueError, match=r"can be copied into QuantizedTensor\(\(9, 45\), 8 bits"):
        weight.copy_(quantized(bits=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, r"`bits` must be 8 or 4.*got 3"),
        ({"group": 3}, r"`group` must be an even number of columns.*got 3"),
        ({"merge_rank": -1}, r"`merge_rank` must be at least 0 directions.*got -1"),
        ({"weight": torch.zeros(3)}, r"only a matrix of finite floating-point numbers.*got shape \(3,\)"),
        ({"weight": torch.tensor([[float("nan")]])}, r"only a matrix of finite"),
    ],
)
def test_bad_layouts_get_a_sentence(options: dict, message: str) -> None:
    settings = {"bits": 8, "group": None, "merge_rank": 0} | options
    weight = settings.pop("weight", torch.ones(2, 2))
    with pytest.raises(ValueError, match=message):
        QuantizedTensor.rounded(weight, **settings)


@pytest.mark.parametrize("count", [1, 7, 8, 130])
def test_signs_are_packed_and_unpacked(count: int) -> None:
    signs = draw(3, count).sign()
    octets = pack_signs(signs)
    assert octets.shape == (3, -(-count // 8))
    assert torch.equal(unpack_signs(octets, count, torch.float32), signs)
    assert unpack_signs(pack_signs(signs[:0]), count, torch.float64).shape == (0, count)


def test_the_grid_says_how_wide_a_row_is() -> None:
    assert IntegerGrid(bits=4, columns=45, group=32).row_bytes == 32
    assert IntegerGrid(bits=4, columns=45).row_bytes == 23
    assert IntegerGrid(bits=8, columns=45).row_bytes == 46

"""Networks as implicit models: equal outputs, both ways, and what has no such form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from featherlight.nn.implicit import IDENTITY, RELU, TANH, ImplicitLayer, StrictlyTriangular, Unconstrained
from featherlight.nn.implicit.convert import (
    FeedForward,
    ImplicitSystem,
    Signal,
    StateBlock,
    cascade,
    parallel,
    summed,
    to_implicit,
    to_strictly_triangular,
)
from featherlight.solvers import Picard


class Residual(nn.Module):
    """A strided block with a shortcut of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.shortcut = nn.Conv2d(2, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.body(x)) + self.shortcut(x))


class Recurrent(nn.Module):
    """Two layers in both directions, a cell unrolled by hand, and means over time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 2, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.RNNCell(4, 3, nonlinearity="relu", bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        h = self.cell(outputs[:, 0])
        for t in range(1, 5):
            h = self.cell(outputs[:, t], h)
        return torch.cat((self.head(h), x.mean(1), outputs[:, -1].sum(-1, keepdim=True)), 1)


class Functional(nn.Module):
    """Operations in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 4, 4))
        self.linear = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * functional.relu(x - self.table) / 3 + 1
        y = -functional.max_pool2d(x, 2).view(x.size(0), -1)
        z = functional.avg_pool2d(torch.tanh(x), 2, stride=2).flatten(1)[:, ::2]
        w = torch.stack((y[:, :4], functional.leaky_relu(y[:, 4:], 0.2)), dim=2).permute(0, 2, 1).reshape(x.shape[0], 8)
        return functional.dropout(self.linear(torch.cat((w, z), dim=1)), 0.5, self.training)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "mlp": (
        lambda: nn.Sequential(
            weight_norm(nn.Linear(5, 8)),
            nn.ReLU(),
            nn.Sequential(nn.Linear(8, 6), nn.Identity(), nn.Tanh()),
            nn.Linear(6, 2),
        ),
        (5,),
    ),
    "two linear layers in a row, at places": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Sigmoid()),
        (5, 3),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, 2, 2, 2, groups=2), nn.ELU(), nn.Conv1d(6, 2, 2, bias=False)),
        (4, 11),
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 2), (1, 2)),
            nn.ReLU6(),
            nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"),
        ),
        (2, 7, 6),
    ),
    "reflected": (lambda: nn.Conv2d(1, 2, 4, padding="same", padding_mode="reflect"), (1, 6, 5)),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.PReLU(6), nn.ConvTranspose2d(6, 1, 2, dilation=2)
        ),
        (4, 3, 4),
    ),
    "average pooling": (
        lambda: nn.Sequential(
            nn.AvgPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d(2, 1, 1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((3, 2)),
        ),
        (2, 8, 7),
    ),
    "largest of windows": (
        lambda: nn.Sequential(
            nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(2, 1, dilation=2), nn.AdaptiveMaxPool2d(2)
        ),
        (2, 12, 11),
    ),
    "one axis": (
        lambda: nn.Sequential(nn.MaxPool1d(3, 2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3), nn.Flatten()),
        (2, 20),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(3, affine=False),
            nn.LeakyReLU(0.3),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Hardtanh(-0.5, 0.2),
            nn.BatchNorm1d(12),
        ),
        (3, 4),
    ),
    "rearranged": (
        lambda: nn.Sequential(nn.PixelShuffle(2), nn.Flatten(2), nn.Unflatten(2, (4, 8)), nn.PReLU()),
        (4, 2, 4),
    ),
    "residual": (lambda: nn.Sequential(Residual(), nn.Flatten(), nn.Linear(48, 3)), (2, 7, 6)),
    "recurrent": (Recurrent, (5, 3)),
    "functional": (Functional, (2, 4, 4)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """In float64 and eval mode, with norms that do something, and samples."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                for parameter in module.parameters():
                    nn.init.normal_(parameter)
    return model, torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_network_both_ways(name: str) -> None:
    model, x = network(name)
    system = to_implicit(model, x.shape[1:], dtype=torch.float64)
    expected, u = model(x).flatten(1), x.flatten(1)
    torch.testing.assert_close(FeedForward(system)(u).values, expected, atol=1e-12, rtol=1e-12)
    x.requires_grad_()
    gradient = torch.autograd.grad(model(x).square().sum(), x)[0].flatten(1)
    u = u.detach().requires_grad_()
    ours = torch.autograd.grad(FeedForward(system)(u).values.square().sum(), u)[0]
    torch.testing.assert_close(ours, gradient, atol=1e-12, rtol=1e-12)
    if system.blocks:
        layer = ImplicitLayer.from_matrices(
            *system.dense(), activation=system.activation, solver=Picard(check_every=1), well_posed=Unconstrained()
        )
        u = torch.cat((u.detach(), torch.ones(3, 1, dtype=torch.float64)), 1)
        torch.testing.assert_close(layer(u).values, expected, atol=1e-11, rtol=1e-11)
        shuffled = system.reordered(torch.arange(len(system.a)).flip(0), list(reversed(system.blocks)))
        again = FeedForward(to_strictly_triangular(shuffled))
        torch.testing.assert_close(again(u[:, :-1]).values, expected, atol=1e-12, rtol=1e-12)


def test_one_activation_gives_a_triangular_layer_by_substitution() -> None:
    model, x = network("residual")
    system = to_implicit(model, x.shape[1:])
    assert system.activation is RELU
    well_posed = StrictlyTriangular(block_sizes=[block.size for block in system.blocks])
    layer = ImplicitLayer.from_matrices(*system.dense(), well_posed=well_posed)
    u = torch.cat((x.flatten(1), torch.ones(3, 1, dtype=torch.float64)), 1)
    torch.testing.assert_close(layer(u).values, model(x), atol=1e-12, rtol=1e-12)


def test_a_convolution_stays_sparse() -> None:
    """Its dense matrix would have 2.7e8 entries."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
    )
    system = to_implicit(model, (1, 32, 32))
    inner = (3 * 32 - 2) ** 2
    assert system.a.shape == (2 * 8 * 32 * 32,) * 2
    assert len(system.a.values()) == 8 * 8 * inner
    assert len(system.b.values()) == 8 * inner
    assert len(system.c.values()) == 8 * 32 * 32
    assert system.a.dtype == torch.float32


def test_a_converted_network_can_be_trained_on_and_saved() -> None:
    model, x = network("mlp")
    system = to_implicit(model, x.shape[1:])
    converted = FeedForward(system)
    optimizer = torch.optim.Adam(converted.parameters(), lr=0.01)
    before = float(converted(x).values.square().sum().detach())
    for _ in range(5):
        optimizer.zero_grad()
        converted(x).values.square().sum().backward()
        optimizer.step()
    assert float(converted(x).values.square().sum().detach()) < before
    other = FeedForward(system)
    other.load_state_dict(converted.state_dict())
    assert torch.equal(other(x).values, converted(x).values)
    assert converted(x[0]).values.shape == (2,)


def test_compositions() -> None:
    (first, x), (second, _) = network("mlp"), network("mlp")
    after = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    one, other, last = (
        to_implicit(net, (size,)) for net, size in ((first, 5), (nn.Sequential(second, nn.Tanh()), 5), (after, 2))
    )
    both = torch.tanh(second(x))
    for system, expected in (
        (cascade(one, last), after(first(x))),
        (parallel(one, other), torch.cat((first(x), both), 1)),
        (summed(one, other), first(x) + both),
        (cascade(summed(one, other), last), after(first(x) + both)),
    ):
        converted = FeedForward(to_strictly_triangular(system))
        torch.testing.assert_close(converted(x).values, expected, atol=1e-12, rtol=1e-12)
    for compose, wrong in ((cascade, one), (parallel, last), (summed, last)):
        with pytest.raises(ValueError, match=r"2 outputs and the second 5|of 5 and 2 inputs"):
            compose(one, wrong)


def triangular(size: int, *, shuffled: bool) -> tuple[ImplicitSystem, Callable[[Tensor], Tensor]]:
    """A ReLU model with a diagonal below 1, and its outputs by substitution, state by state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = normal(size, size).triu(1) * (normal(size, size) > 0.8) + torch.diag(torch.linspace(-3, 0.9, size).double())
    b, c, d, state_bias, output_bias = normal(size, 3), normal(2, size), normal(2, 3), normal(size), normal(2)

    def by_substitution(u: Tensor) -> Tensor:
        x = torch.zeros(len(u), size, dtype=torch.float64)
        for i in reversed(range(size)):
            r = x @ a[i] + u @ b[i] + state_bias[i]
            x[:, i] = torch.relu(r) / (1 - a[i, i])
        torch.testing.assert_close(torch.relu(x @ a.T + u @ b.T + state_bias), x, atol=1e-10, rtol=1e-10)
        return x @ c.T + u @ d.T + output_bias

    blocks = [StateBlock(size, RELU)]
    system = ImplicitSystem(a=a, b=b, c=c, d=d, state_bias=state_bias, output_bias=output_bias, blocks=blocks)
    order = torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
    return system.reordered(order, blocks), by_substitution


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_triangular_relu_model_becomes_a_strict_one(shuffled: bool) -> None:
    system, by_substitution = triangular(40, shuffled=shuffled)
    with pytest.raises(ValueError, match=r"entry \(\d+, \d+\) is .*Use `to_strictly_triangular`"):
        FeedForward(system)
    strict = to_strictly_triangular(system)
    assert 1 < len(strict.blocks) < 40
    u = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(FeedForward(strict)(u).values, by_substitution(u), atol=1e-12, rtol=1e-12)


def single(a: list[list[float]], activation: object = RELU) -> ImplicitSystem:
    n = len(a)
    eye, zero = torch.eye(n), torch.zeros(n)
    return ImplicitSystem(
        a=torch.tensor(a),
        b=eye,
        c=eye,
        d=0 * eye,
        state_bias=zero,
        output_bias=zero,
        blocks=[StateBlock(n, activation)],
    )


class Halved(nn.Module):
    """Without a rule of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if x.sum() > 0 else x


class InPlace(nn.Module):
    """Tensors that are changed after others were made of them, or are one with them."""

    def __init__(self, *, viewed: bool) -> None:
        super().__init__()
        self.first, self.last, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.viewed = viewed

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        same, view = h, h[:, :2]
        y = self.last(self.relu(h)) + h
        h *= 2.0
        h += 0.5
        return y + h - same / 3 + (view.sum(1, keepdim=True) if self.viewed else 0.0)


def test_what_is_changed_in_place_is_changed_wherever_it_is_used() -> None:
    torch.manual_seed(0)
    model, u = InPlace(viewed=False).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(FeedForward(to_implicit(model, (4,)))(u).values, model(u))
    with pytest.raises(ValueError, match="changes a tensor in place of which `getitem` is a view"):
        to_implicit(InPlace(viewed=True).eval(), (4,))


def test_a_rule_for_a_module_of_ones_own() -> None:
    def halve(module: nn.Module, x: Signal) -> Signal:
        return x.scaled(0.5)

    system = to_implicit(nn.Sequential(nn.Linear(3, 2), Halved()), (3,), rules={Halved: halve})
    assert system.d.shape == (2, 3)
    assert not system.blocks
    assert to_strictly_triangular(single([[0.5]], IDENTITY)).b.values().item() == 2


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.GELU()), (3,), r"layer `1` \(GELU\) has no implicit form: it falls"),
        (nn.Sequential(nn.Sequential(nn.LayerNorm(3))), (3,), r"layer `0.0` \(LayerNorm\).*statistics of each sample"),
        (nn.GroupNorm(1, 3), (3, 4), r"layer \(GroupNorm\) has no implicit form: it divides by statistics"),
        (nn.BatchNorm1d(3), (3,), r"BatchNorm1d\).*put the model into eval mode"),
        (nn.Dropout(0.1), (3,), r"Dropout\).*eval mode"),
        (nn.LSTM(3, 2, batch_first=True), (4, 3), r"LSTM\).*gates"),
        (nn.RNN(3, 2), (4, 3), r"RNN\).*batch_first=True"),
        (nn.RNN(3, 2, batch_first=True), (4, 3), r"returns a tuple.*one tensor is wanted"),
        (nn.Linear(3, 2), (4,), r"Linear\).*takes 3 features and gets shape \(4,\)"),
        (nn.Conv2d(3, 2, 1), (1, 4, 4), r"Conv2d\).*takes 3 channels and 2 axes a sample and gets shape \(1, 4, 4\)"),
        (nn.MaxPool2d(2, return_indices=True), (1, 4, 4), r"MaxPool2d\).*return_indices=False"),
        (nn.ELU(2.0), (3,), r"ELU\).*only alpha = 1.*got 2.0"),
        (nn.Hardswish(), (3,), r"Hardswish\).*there is no rule for it; give one by `rules=`"),
        (nn.Flatten(0), (3,), r"Flatten\).*samples must stay apart"),
        (Halved(), (3,), r"cannot be traced.*`rules=`"),
    ],
)
def test_what_has_no_form_is_named(model: nn.Module, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        to_implicit(model, shape)


@pytest.mark.parametrize(
    ("f", "sentence"),
    [
        (lambda x: x * torch.relu(x), r"operation `mul`.*product of two signals"),
        (lambda x: torch.softmax(x, 1), r"operation `softmax` has no implicit form known here"),
        (lambda x: x.mean(0), r"operation `mean`.*samples must stay apart"),
        (lambda x: torch.cat((x, x)), r"operation `cat`.*joins samples"),
        (lambda x: x.reshape(-1), r"operation `reshape`.*\(1, 3\) to \(3,\); samples must stay apart"),
    ],
)
def test_operations_without_a_form_are_named(f: Callable[[Tensor], Tensor], sentence: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return f(x)

    with pytest.raises(ValueError, match=sentence):
        to_implicit(Model(), (3,))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: to_strictly_triangular(single([[1.25]])), r"not well posed: state 0.*factor 1.25, 0.25 above.*Lower"),
        (lambda: to_strictly_triangular(single([[0.0, 1.0], [1.0, 0.0]])), r"depend on each other in a circle"),
        (lambda: to_strictly_triangular(single([[0.5]], TANH)), r"states 0 to 0 depend on themselves"),
        (lambda: FeedForward(single([[0.0]]))(torch.zeros(2, 3)), r"axis of 1, a flattened sample; got shape \(2, 3\)"),
        (lambda: single([[0.0, 1.0]]), r"A \(S, S\).*got \(1, 2\), \(1, 1\)"),
    ],
)
def test_bad_input_gets_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()

"""Sequential training block by block: its losses, its matrices, how it grows, stops and is taken up."""

import pytest
import torch
from torch.nn.functional import pad

from featherlight.nn.implicit import RELU, TANH, ImplicitLayer, RowProjection, StrictlyTriangular
from featherlight.recipes.implicit import lift
from featherlight.recipes.implicit.blocks import BlockStatus, matrices, outcome
from featherlight.recipes.implicit.class_blocks import ClassBlocks, ClassSettings
from featherlight.recipes.implicit.growth import BlockByBlock
from featherlight.recipes.implicit.matching import match_states
from featherlight.recipes.implicit.network import GrowingModel, Units, read_model, write_model
from featherlight.recipes.implicit.squared_blocks import SquaredBlocks, SquaredSettings
from featherlight.solvers.hidden_layer import VariableProjection


def rows(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a constant one behind them, and a target of one number."""
    u = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return pad(u, (0, 1), value=1.0), (torch.sin(2 * u[:, :1]) + u[:, 1:2] * u[:, 2:]).double()


def squared(u: torch.Tensor, t: torch.Tensor, **settings: float) -> SquaredBlocks:
    search = VariableProjection(decay=settings.pop("decay", 1e-3), max_steps=10)
    lifted = lift.whole(u.shape[1], dtype=u.dtype)
    return SquaredBlocks(u @ lifted.mT, t, SquaredSettings(search=search, **settings))  # pyright: ignore[reportArgumentType]


def classes(u: torch.Tensor, t: torch.Tensor) -> ClassBlocks:
    lifted = lift.whitened(u.float(), 2)
    labels = (t[:, 0] > 0).long() + (t[:, 0] > 1).long()
    return ClassBlocks(u.float() @ lifted.mT, labels, 3, ClassSettings(epochs=3, batch=32))


@pytest.mark.parametrize("kind", [squared, classes])
def test_the_regularised_loss_never_rises_and_the_matrices_are_the_model(kind):
    u, t = rows()
    blocks, generator = kind(u, t), torch.Generator().manual_seed(1)
    losses = [blocks.loss]
    for size in (4, 2, 3):
        found = blocks.grow(size, generator)
        assert found.before == losses[-1]
        assert found.after == blocks.loss
        assert found.status == BlockStatus.FELL
        losses.append(found.after)
    assert losses == sorted(losses, reverse=True)
    lifted = lift.whole(4, dtype=u.dtype) if kind is squared else lift.whitened(u.float(), 2)
    parts = matrices(blocks.hidden, blocks.read_out, lifted)
    phi = TANH if kind is squared else RELU
    layer = ImplicitLayer.from_matrices(*parts, activation=phi, well_posed=StrictlyTriangular(block_sizes=[3, 2, 4]))
    values = layer(u.to(lifted.dtype)).values
    tolerance = 1e-10 if kind is squared else 1e-4
    torch.testing.assert_close(values, blocks.features @ blocks.read_out, rtol=tolerance, atol=tolerance)


def test_a_block_that_does_not_lower_the_loss_is_left_without_effect():
    u, t = rows()
    blocks = squared(u, t, decay=1e9)
    found = blocks.grow(3, torch.Generator().manual_seed(0))
    assert found.status == BlockStatus.UNCHANGED
    assert found.after == found.before
    assert not bool(blocks.hidden[0].any())
    by_classes = classes(u, t)
    by_classes.grow(4, torch.Generator().manual_seed(0))
    by_classes.settings = ClassSettings(lr=1e4, batch=32, read_out_steps=0)
    before = by_classes.loss
    assert by_classes.grow(2, torch.Generator().manual_seed(0)).status != BlockStatus.ROSE
    assert by_classes.loss <= before * (1 + 1e-6)
    assert outcome(size=1, before=1.0, after=1.1, steps=0, converged=True, rounding=0.0).status == BlockStatus.ROSE


def model_of(u: torch.Tensor, patience: int | None, scores: list[float]) -> tuple[GrowingModel, BlockByBlock]:
    one = torch.ones
    units = Units(torch.zeros(3), one(3), torch.zeros(1), one(1)).double()
    model = GrowingModel(lift.whole(4, dtype=u.dtype), (4, 3, 2), 1, TANH, units)
    _, t = rows()
    found = iter(scores)
    return model, BlockByBlock(model, lambda: squared(u, t), lambda: next(found), seed=3, patience=patience)


def test_growth_stops_by_the_score_and_goes_back_to_the_best(tmp_path):
    u, _ = rows()
    model, optimizer = model_of(u, 1, [0.5, 0.7])
    losses = [optimizer.step(None) for _ in range(3)]  # pyright: ignore[reportArgumentType]
    assert int(model.num_blocks) == 2
    assert int(model.best_blocks) == 1
    assert float(losses[-1]) == float(model.history[1, 1])
    finished = model.finished()
    assert finished.layer.state_dim == 4
    torch.testing.assert_close(finished(u[:, :3]), model(u[:, :3]))
    write_model(tmp_path / "model", finished, {"activation": "tanh", "well_posed": "projection"})
    torch.testing.assert_close(read_model(tmp_path)[0](u[:, :3]), finished(u[:, :3]))
    with pytest.raises(ValueError, match="there is no implicit model at"):
        read_model(tmp_path / "elsewhere")


def test_growth_is_taken_up_to_the_same_bits():
    u, _ = rows()
    whole, optimizer = model_of(u, None, [1.0, 1.0, 1.0])
    for _ in range(3):
        optimizer.step(None)  # pyright: ignore[reportArgumentType]
    parts, first = model_of(u, None, [1.0])
    first.step(None)  # pyright: ignore[reportArgumentType]
    taken, second = model_of(u, None, [1.0, 1.0])
    taken.load_state_dict(parts.state_dict())
    for _ in range(2):
        second.step(None)  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(one, taken.state_dict()[name]) for name, one in whole.state_dict().items())


@pytest.mark.parametrize("kind", [StrictlyTriangular(block_sizes=(3, 4)), RowProjection(bound=0.7)])
def test_a_sparse_model_matches_the_states(kind):
    u, _ = rows()
    torch.manual_seed(0)
    layer = ImplicitLayer(7, 4, 2, activation=TANH, well_posed=kind).double()
    zeros = []
    for penalty, near in ((1e-3, 0.3), (0.05, 1.0)):
        found = match_states(layer, u, penalty=penalty, max_steps=5000)
        assert not bool(found.states.status.any() | found.outputs.status.any())
        off = (found.layer(u).values - layer(u).values).norm() / layer(u).values.norm()
        assert off.item() < near
        zeros.append(found.zeros)
    assert zeros[1] > max(zeros[0], 0.2)
    with pytest.raises(ValueError, match=r"`penalty` must be between 0 \(all is kept\) and 1"):
        match_states(layer, u, penalty=1.0)


def test_whitened_directions():
    u, _ = rows(4000)
    mixed = pad(u[:, :3] @ torch.tensor([[5.0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=u.dtype) + 3, (0, 1), value=1.0)
    features = mixed @ lift.whitened(mixed, 3, shrink=0.0).mT
    torch.testing.assert_close(features[:, 1:].T @ features[:, 1:] / len(u), torch.eye(3, dtype=u.dtype))
    assert bool((features[:, 0] == 1).all())
    with pytest.raises(ValueError, match="`directions` must be between 1 and the 3 inputs; got 4"):
        lift.whitened(mixed, 4)

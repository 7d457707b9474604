"""Bad input to forward-only training gets a sentence, and leaves everything as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.objective import BatchObjective
from featherlight.optim import MeZO, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import targets_of
from tests.unit.optim.problems import bits_of, make_batch, make_model, make_objective, squared_error


@pytest.mark.parametrize("make", [lambda m: ZerothOrderSGD(m, 1e-3), lambda m: MeZO(m, 1e-3)])
@pytest.mark.parametrize("closure", [None, lambda: torch.zeros(())])
def test_a_missing_objective_is_named(make: Callable[[nn.Module], Any], closure: Any) -> None:
    optimizer = make(make_model())
    with pytest.raises(ValueError, match=r"step needs an Objective .* got (nothing|a function)"):
        optimizer.step(closure)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sigma": 0.0}, "`sigma` must be a finite positive number; got 0.0"),
        ({"sigma": -1.0}, "`sigma` must be"),
        ({"sigma": float("nan")}, "`sigma` must be"),
        ({"lr": -1e-3}, "`lr` must be"),
        ({"lr": float("inf")}, "`lr` must be"),
        ({"weight_decay": -0.1}, "`weight_decay` must be"),
        ({"seed": -1}, r"`seed` must fit in 64 bits .* got -1"),
        ({"seed": 2**64}, "`seed` must fit in 64 bits"),
    ],
)
@pytest.mark.parametrize("kind", [ZerothOrderSGD, MeZO])
def test_numbers_out_of_range_are_refused_when_it_is_made(kind: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(make_model(), **({"lr": 1e-3} | options))


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"`count` must be between 1 and 4096 .* got"):
        RankOneSigns(count)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\)"):
        SpreadNormalized(decay=decay)


def test_a_step_number_beyond_the_counter_is_refused() -> None:
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-3)
    optimizer.steps_done = 2**32
    with pytest.raises(ValueError, match="`step` must fit in 32 bits"):
        optimizer.step(make_objective(model))


def test_a_foreign_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) in `params` does not belong to the model"):
        ZerothOrderSGD(make_model(), 1e-3, params=[nn.Parameter(torch.zeros(2, 3))])


def test_complex_parameters_are_refused() -> None:
    model = nn.ParameterDict({"c": nn.Parameter(torch.zeros(3, dtype=torch.complex64))})
    with pytest.raises(ValueError, match=r"`c` has dtype torch.complex64, which cannot be trained"):
        targets_of(model, [{"params": list(model.parameters())}])


def test_a_group_added_later_is_refused() -> None:
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-3, params=[model[0].weight])
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.add_param_group({"params": [model[0].bias]})


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled_and_scripted_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="module `model` is compiled"):
        ZerothOrderSGD(torch.compile(make_model()), 1e-3)
    scripted = torch.jit.script(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"module `0` is compiled"):
        ZerothOrderSGD(nn.Sequential(scripted), 1e-3)


class Writes(nn.Module):
    """Counts its calls in a buffer, in place or by a new tensor."""

    def __init__(self, write: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(100))
        self.layer = nn.Linear(4, 2)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return self.layer(x)


def write_in_place(module: nn.Module) -> None:
    module.calls.add_(1)


def write_a_new_tensor(module: nn.Module) -> None:
    module.calls = module.calls + 1


def register_another(module: nn.Module) -> None:
    module.register_buffer("late", torch.zeros(1))


@pytest.mark.parametrize("write", [write_in_place, write_a_new_tensor, register_another])
@pytest.mark.parametrize("make", [lambda m: ZerothOrderSGD(m, 1e-3), lambda m: MeZO(m, 1e-3)])
def test_a_forward_pass_that_writes_buffers_is_refused(write: Any, make: Any) -> None:
    model = Writes(write)
    optimizer = make(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"the forward pass wrote to buffer `(calls|late)`"):
        optimizer.step(make_objective(model))
    assert optimizer.steps_done == 0
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old)


def centred(model: nn.Module, batch: Any) -> Tensor:
    losses = squared_error(model, batch)
    return losses - 0.5 * losses.mean()


def time_major(model: nn.Module, batch: Any) -> Tensor:
    """Folds (T, B, D) to (T B, D): the entries of an example do not stand together."""
    x_TBD = batch["x"][:, None].expand(-1, 3, -1).transpose(0, 1)
    out = model(x_TBD.reshape(-1, 4)).unflatten(0, x_TBD.shape[:2])
    return out.square().mean((0, 2))


def reversed_rows(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"].flip(0)).flip(0).square().mean(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [centred, time_major, reversed_rows])
@pytest.mark.parametrize("count", [2, None])
def test_examples_that_mix_cannot_carry_directions_of_their_own(count: int | None, loss: Any, dtype: Any) -> None:
    model = make_model(dtype=dtype)
    before = bits_of(model)
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(count))
    objective = BatchObjective(model, make_batch(dtype=dtype), loss)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"depends on the other examples .* RankOneSigns\(count=1\)"):
            optimizer.step(objective)
    assert bits_of(model) == before
    ZerothOrderSGD(model, 1e-2).step(objective)


def test_batch_norm_without_running_statistics_mixes_examples() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False))
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    with pytest.raises(ValueError, match=r"refuses a batch of 1 .* RankOneSigns\(count=1\)"):
        optimizer.step(make_objective(model))


def test_dropout_is_no_reason_to_refuse_directions_of_their_own() -> None:
    model = make_model(dropout=0.5)
    before = bits_of(model)
    ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None)).step(make_objective(model))
    assert bits_of(model) != before


def test_a_loop_over_examples_is_refused_for_several_directions_alone() -> None:
    model = make_model()

    def one_by_one(model: nn.Module, batch: Any) -> Tensor:
        out = torch.stack([model(row) for row in batch["x"]])
        return out.square().mean(1)

    objective = BatchObjective(model, make_batch(), one_by_one)
    with pytest.raises(ValueError, match="other operations for two examples than for one"):
        ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None)).step(objective)
    before = bits_of(model)
    ZerothOrderSGD(model, 1e-2).step(objective)
    assert bits_of(model) != before


def test_an_objective_that_hides_its_examples_is_refused_for_several_directions() -> None:
    class Mean:
        def __call__(self) -> Tensor:
            return self.value()

        def value(self) -> Tensor:
            return model(make_batch()["x"]).square().mean()

        def values(self) -> Tensor:
            return self.value()[None]

    model = make_model()
    before = bits_of(model)
    with pytest.raises(ValueError, match=r"tells its examples apart .* got a Mean"):
        ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(2)).step(Mean())
    assert bits_of(model) == before
    ZerothOrderSGD(model, 1e-2).step(Mean())
    assert bits_of(model) != before


def test_an_operation_that_appears_later_is_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.late = False

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight.T if self.late else self.layer(x)

    model = Late()
    optimizer = ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(None))
    optimizer.step(make_objective(model))
    model.late = True
    before = bits_of(model)
    with pytest.raises(ValueError, match="in a way it did not in the first step"):
        optimizer.step(make_objective(model))
    assert bits_of(model) == before


def test_an_embedding_that_renormalizes_itself_is_refused() -> None:
    model = nn.Embedding(5, 4, max_norm=0.1)
    before = bits_of(model)
    objective = BatchObjective(model, {"x": torch.arange(4)}, lambda m, b: m(b["x"]).square().sum(1))
    with pytest.raises(ValueError, match="`max_norm`"):
        ZerothOrderSGD(model, 1e-3).step(objective)
    assert bits_of(model) == before


def test_unused_parameters_are_named_once_and_left_alone() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
    before = bits_of(model)
    optimizer = ZerothOrderSGD(model, 1e-2, weight_decay=0.5)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return squared_error(model["used"], batch)

    objective = BatchObjective(model, make_batch(), loss)
    with pytest.warns(UserWarning, match=r"idle.weight, idle.bias take no part"):
        optimizer.step(objective)
    optimizer.step(objective)
    after = bits_of(model)
    assert {name for name in after if after[name] != before[name]} == {"used.weight", "used.bias"}


def test_a_model_without_trained_parameters_in_the_loss_is_refused() -> None:
    model = make_model()
    objective = BatchObjective(model, make_batch(), lambda m, b: b["x"].sum(1))
    with pytest.raises(ValueError, match="no trained parameter takes part in the loss"):
        ZerothOrderSGD(model, 1e-2).step(objective)


def test_slopes_beyond_float32_are_refused() -> None:
    model = make_model(dtype=torch.float64)
    objective = BatchObjective(model, make_batch(dtype=torch.float64), lambda m, b: m(b["x"]).sum(1).double() * 1e60)
    before = bits_of(model)
    with pytest.raises(ValueError, match="slope"):
        ZerothOrderSGD(model, 1e-2).step(objective)
    assert bits_of(model) == before


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = make_model()
    state = torch.optim.SGD(model.parameters(), 0.1).state_dict()
    for optimizer in (ZerothOrderSGD(model, 1e-2), MeZO(model, 1e-2)):
        with pytest.raises(ValueError, match="not the state of a"):
            optimizer.load_state_dict(state)


def test_a_first_batch_of_one_example_is_refused_and_a_later_one_is_not() -> None:
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    single = BatchObjective(model, make_batch(rows=1), squared_error)
    with pytest.raises(ValueError, match="first batch has a single example"):
        optimizer.step(single)
    optimizer.step(make_objective(model))
    optimizer.step(single)
    optimizer.step(make_objective(model))
    assert optimizer.steps_done == 3
    assert [target.name for target in optimizer.targets if target.shared] == []


def test_a_run_that_began_with_other_shared_directions_is_not_resumed() -> None:
    """The journal's header says which parameters share; a target that turns shared later would replay wrongly."""
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    optimizer.step(make_objective(model))
    resumed = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    resumed.load_state_dict(optimizer.state_dict())

    def dense(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch["x"]) + model[0].weight.sum()).square().mean(1)

    before = bits_of(model)
    with pytest.raises(ValueError, match=r"0.weight is used in a way it was not when the run began"):
        resumed.step(BatchObjective(model, make_batch(), dense))
    assert bits_of(model) == before


def test_an_error_of_the_loss_itself_comes_through_as_it_is() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        model(batch["x"])
        raise ValueError("row 3 has no label")

    with pytest.raises(ValueError, match=r"^row 3 has no label$"):
        ZerothOrderSGD(make_model(), 1e-2, directions=RankOneSigns(None)).step(
            BatchObjective(make_model(), make_batch(), broken)
        )


def test_batch_statistics_of_images_mix_examples() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2, track_running_stats=False))
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    before = bits_of(model)
    objective = BatchObjective(model, make_batch(), lambda m, b: m(b["x"]).sin().flatten(1).sum(1))
    with pytest.raises(ValueError, match="depends on the other examples"):
        optimizer.step(objective)
    assert bits_of(model) == before

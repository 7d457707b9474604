"""A layer whose output is the fixed point of any module: deep equilibrium models.

Legend of shapes: N samples, ... a state of any shape.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from featherlight.nn.implicit.broken import broken_samples, without_samples
from featherlight.nn.implicit.gradients import Found, GradientMode, ImplicitDifferentiation
from featherlight.nn.implicit.results import ImplicitResult
from featherlight.nn.implicit.root import HowToSolve, Map, root
from featherlight.solvers import Anderson, FixedPointSolver, Status


class Equilibrium(nn.Module):
    """x = f(x, *inputs), for instance a residual block with injected features.

    A layer keeps nothing between calls. The map runs in the dtype of its start, under autocast too. Under torch.compile
    the search is one graph break, as its number of steps depends on values.

    Args:
        f: a module called as `f(x, *inputs)` that returns the shape and dtype of `x`, treats each sample of the first axis
            on its own, and is the same function at each call: no dropout or BatchNorm in training mode. Gradients reach its
            parameters and the inputs, and no tensor besides.
        solver: finds the fixed point, and the gradients of ImplicitDifferentiation. Nothing makes `f` contract, so a call
            can fail; see `jacobian_penalty`.
        gradient: how backward passes through it.
        backward_solver: finds gradients; None is `solver`.

    Source: Bai, Kolter, Koltun 2019, "Deep equilibrium models".
    """

    def __init__(
        self,
        f: nn.Module,
        *,
        solver: FixedPointSolver | None = None,
        gradient: GradientMode | None = None,
        backward_solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__()
        self.f = f
        self.solver = Anderson(memory=5) if solver is None else solver
        self.gradient = ImplicitDifferentiation() if gradient is None else gradient
        self.backward_solver = self.solver if backward_solver is None else backward_solver

    def forward(self, *inputs: Tensor, start: Tensor) -> ImplicitResult:
        """The fixed point, as values and states.

        Args:
            inputs: what `f` takes besides the state.
            start: (N, ...), floating point: zeros, or the states of an earlier call on similar inputs. No gradient
                reaches it, except with Unrolled.

        Raises:
            ValueError: `f` has parts that change from call to call, or returns another shape or dtype than the state's.
            FixedPointError: some samples did not converge. `attempt` returns what there is instead.
        """
        return self._run(inputs, start, strict=True)

    def attempt(self, *inputs: Tensor, start: Tensor) -> ImplicitResult:
        """As calling the layer, but samples that do not converge have a status for it, and give no gradient.

        A sample whose start or inputs hold nan or inf is NaN, and others come out as if it were not there, in gradients of
        weights too. Inputs are its own where their first axis is as long as the start's.
        """
        broken = broken_samples((start, *inputs), len(start) if start.ndim else 0, start.device)
        kept = tuple(without_samples(each, broken) for each in inputs)
        whole = self._run(kept, without_samples(start, broken), strict=False)
        states = without_samples(whole.states, broken, float("nan"))
        return ImplicitResult(
            states,
            states,
            whole.residuals.masked_fill(broken, float("nan")),
            whole.statuses.masked_fill(broken, int(Status.BROKEN_INPUT)),
        )

    def jacobian_penalty(
        self, states: Tensor, *inputs: Tensor, generator: torch.Generator, num_probes: int = 1
    ) -> Tensor:
        """The mean square of the entries' row sums of df/dx: its squared Frobenius norm over the size of a state; ().

        Added to a loss it keeps the map contracting and so the solver short.

        Args:
            states: (N, ...), where the Jacobian is taken.
            inputs: of `f`.
            generator: of the probes; on the device of `states`.
            num_probes: normal vectors the trace is estimated with, at least 1.

        Cost: a forward and a backward pass of `f` and one backward each probe.

        Source: Bai, Koltun, Kolter 2021, "Stabilizing equilibrium models by Jacobian regularization"; Hutchinson 1990.
        """
        if num_probes < 1:
            raise ValueError(f"`num_probes` must be at least 1; got {num_probes}.")
        pull = torch.func.vjp(lambda x: self.f(x, *inputs), states)[1]
        total = states.new_zeros(())
        for _ in range(num_probes):
            probe = torch.randn(states.shape, generator=generator, dtype=states.dtype, device=states.device)
            total = total + pull(probe)[0].square().sum()
        return total / (num_probes * states.numel())

    def _run(self, inputs: tuple[Tensor, ...], start: Tensor, *, strict: bool) -> ImplicitResult:
        _check_constant(self.f)
        how = HowToSolve(solver=self.solver, backward_solver=self.backward_solver, strict=strict)
        found = self._solved(_Equation(self.f, inputs, start, how))
        return ImplicitResult(found.states, *found)

    @torch.compiler.disable(reason="the number of a solver's steps depends on values")
    def _solved(self, equation: "_Equation") -> Found:
        return self.gradient.states(equation)


@dataclass(frozen=True)
class _Equation:
    """x = f(x, *inputs) as a StateEquation."""

    f: nn.Module
    inputs: tuple[Tensor, ...]
    begin: Tensor
    how: HowToSolve

    def start(self) -> Tensor:
        return self.begin

    def exact(self) -> Found:
        return Found(*root(*self._functional(), self.how))

    def detached(self) -> Found:
        f, start, tensors = self._functional()
        return Found(*root(f, start.detach(), tuple(tensor.detach() for tensor in tensors), self.how))

    def map(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.f(x, *self.inputs)

    def _functional(self) -> tuple[Map, Tensor, tuple[Tensor, ...]]:
        """The map with its parameters and floating-point inputs as arguments."""
        names = [name for name, _ in self.f.named_parameters()]
        floating = [i for i, value in enumerate(self.inputs) if value.is_floating_point()]

        def f(x: Tensor, *tensors: Tensor) -> Tensor:
            given = list(self.inputs)
            for i, value in zip(floating, tensors[len(names) :], strict=True):
                given[i] = value
            parameters = dict(zip(names, tensors, strict=False))
            with torch.autocast(x.device.type, enabled=False):
                return torch.func.functional_call(self.f, parameters, (x, *given))

        tensors = (*(p for _, p in self.f.named_parameters()), *(self.inputs[i] for i in floating))
        return f, self.begin, tensors


def _check_constant(f: nn.Module) -> None:
    for name, module in f.named_modules():
        changing = isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)
        if changing and module.training:
            raise ValueError(
                f"module `{name or type(f).__name__}` of the map is a {type(module).__name__} in training mode, so the map is "
                "another function at each of the solver's steps and has no fixed point. Put it into eval mode, or use "
                "GroupNorm or LayerNorm, and dropout outside the map."
            )

"""Identification of simulated linear plants: least squares on what goes in and what comes out.

Legend of shapes: T tasks, S samples, N parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.protocols import Tensors
from featherlight.recipes.learned.linear import with_least_squares_best

_DISCARDED = 128


def prediction_error(points: Tensors, data: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Half the mean squared error of a linear prediction."""
    return 0.5 * (data["regressors"] @ points[0] - data["outputs"]).square().mean()


def regression_tasks(regressors: Float[Tensor, "T S N"], outputs: Float[Tensor, "T S"]) -> Tasks:
    """Tasks that predict outputs from regressors, from parameters of zero on."""
    start = outputs.new_zeros(len(outputs), regressors.shape[2])
    tasks = Tasks(starts=(start,), loss=prediction_error, data={"regressors": regressors, "outputs": outputs})
    return with_least_squares_best(tasks, regressors, outputs)


@dataclass(frozen=True, kw_only=True)
class ImpulseResponses:
    """The impulse response of stable plants, from a record of coloured noise and the answer to it.

    Plants are sums of damped oscillations. The input is white noise through a first-order filter; both signals have unit
    variance.

    Args:
        taps: N, samples of the impulse response.
        samples: S.
        oscillations: of a plant.
        radius: least and largest size of a plant's poles.
        colour: least and largest pole of the input's filter.
        noise: of the measurement, relative to the output.
    """

    taps: int = 24
    samples: int = 512
    oscillations: int = 2
    radius: tuple[float, float] = (0.3, 0.9)
    colour: tuple[float, float] = (0.7, 0.9)
    noise: float = 0.05

    def __post_init__(self) -> None:
        check_plants(self.samples, self.taps, self.radius, self.colour, self.noise)

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many plants and records."""
        sizes, angles = _poles(count, self.oscillations, self.radius, generator)
        shape = (count, self.oscillations, 1)
        heights = torch.randn(shape, generator=generator, dtype=torch.float64)
        phases = 2 * torch.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
        times = torch.arange(self.taps, dtype=torch.float64)
        response = (heights * sizes[..., None] ** times * (angles[..., None] * times + phases).cos()).sum(1)
        inputs = coloured_noise(count, self.samples + self.taps - 1, self.colour, generator)
        regressors = inputs.unfold(1, self.taps, 1).flip(2)
        outputs = (regressors @ response[..., None])[..., 0]
        return regression_tasks(regressors, _noisy(outputs, self.noise, generator))


@dataclass(frozen=True, kw_only=True)
class ArxPlants:
    """The coefficients of stable plants `A(q) y = B(q) u + e`, of which past outputs are regressors as well.

    Args:
        order: of A and of B; there are `2 * order` parameters.
        samples: S.
        radius: least and largest size of a plant's poles, which come in pairs (and one real one where `order` is odd).
        colour: least and largest pole of the input's filter.
        noise: of the measurement, relative to the output.
    """

    order: int = 4
    samples: int = 512
    radius: tuple[float, float] = (0.3, 0.9)
    colour: tuple[float, float] = (0.5, 0.5)
    noise: float = 0.05

    def __post_init__(self) -> None:
        check_plants(self.samples, 2 * self.order, self.radius, self.colour, self.noise)

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many plants and records."""
        sizes, angles = _poles(count, (self.order + 1) // 2, self.radius, generator)
        poles = torch.polar(sizes, angles)
        pairs = torch.cat([poles[:, : self.order // 2], poles[:, : self.order // 2].conj()], 1)
        real = poles[:, self.order // 2 :].abs().to(poles.dtype)
        lags = torch.randn(count, self.order, generator=generator, dtype=torch.float64)
        inputs = coloured_noise(count, self.samples + self.order + _DISCARDED, self.colour, generator)
        outputs = _filtered(inputs, lags, torch.cat([pairs, real], 1))
        outputs = _noisy(outputs / outputs.std(1, keepdim=True), self.noise, generator)
        return regression_tasks(*arx(inputs[:, _DISCARDED:], outputs[:, _DISCARDED:], self.order))


def arx(
    inputs: Float[Tensor, "T S+order"], outputs: Float[Tensor, "T S+order"], order: int
) -> tuple[Float[Tensor, "T S N"], Float[Tensor, "T S"]]:
    """Regressors of an ARX model (the last `order` outputs, then inputs, the latest first) and what they are to predict."""
    past = [signal[:, :-1].unfold(1, order, 1).flip(2) for signal in (outputs, inputs)]
    return torch.cat(past, 2), outputs[:, order:]


def coloured_noise(
    count: int, samples: int, colour: tuple[float, float], generator: torch.Generator
) -> Float[Tensor, "T S"]:
    """White noise through `1 / (1 - c q^-1)` with c drawn evenly, of unit variance."""
    white = torch.randn(count, samples + _DISCARDED, generator=generator, dtype=torch.float64)
    pole = colour[0] + (colour[1] - colour[0]) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    found = _filtered(white, torch.ones(count, 1, dtype=torch.float64), pole.to(torch.complex128))[:, _DISCARDED:]
    return found / found.std(1, keepdim=True)


def check_plants(
    samples: int, parameters: int, radius: tuple[float, float], colour: tuple[float, float], noise: float
) -> None:
    """Raises ValueError for plants that are not stable, and records that are too short."""
    if not 1 <= parameters <= samples:
        raise ValueError(
            f"`samples` must be at least the number of parameters, or many of them fit; got {samples} for {parameters}."
        )
    for name, (low, high) in (("radius", radius), ("colour", colour)):
        if not 0 <= low <= high < 0.98:
            raise ValueError(
                f"`{name}` must be two numbers in order in [0, 0.98): a pole at 1 or beyond is not stable; got {[low, high]}."
            )
    if noise < 0:
        raise ValueError(f"`noise` must not be negative; got {noise}.")


def _poles(count: int, pairs: int, radius: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sizes = radius[0] + (radius[1] - radius[0]) * torch.rand(count, pairs, generator=generator, dtype=torch.float64)
    return sizes, torch.pi * torch.rand(count, pairs, generator=generator, dtype=torch.float64)


def _filtered(signal: Tensor, lags: Tensor, poles: Tensor) -> Tensor:
    """`lags(q^-1) / prod(1 - pole q^-1)` applied to a signal, by its spectrum; `lags` begins at delay 1 if it has many."""
    length = 2 * signal.shape[1] + 2048
    turns = torch.fft.rfftfreq(length, dtype=torch.float64)
    delay = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    first = 0 if lags.shape[1] == 1 else 1
    powers = delay ** torch.arange(first, first + lags.shape[1])[:, None]
    below = (1 - poles[..., None] * delay).prod(1)
    found = torch.fft.irfft(torch.fft.rfft(signal, length) * (lags.to(powers.dtype) @ powers) / below, length)
    return found[:, : signal.shape[1]]


def _noisy(outputs: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The outputs at unit variance, with measurement noise."""
    outputs = outputs / outputs.std(1, keepdim=True)
    return outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)

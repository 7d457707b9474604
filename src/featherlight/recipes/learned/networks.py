"""Smooth problems that are not quadratic: teacher-student nets, logistic regression, small nets on images.

Legend of shapes: T tasks, S samples, I inputs, W hidden units, C classes. Weights are (out, in), as torch has them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.data import load_images
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.protocols import Tensors

_NEWTON_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class TeacherStudents:
    """Regression by a net with one hidden layer of tanh units on what another such net says.

    Inputs are normal with standard deviations that fall from 1 to `1 / spread`, along axes that the whole class shares.

    Args:
        inputs: I.
        width: W of the student.
        teacher_width: of the teacher.
        samples: S.
        spread: of the inputs.
        axes_seed: of the axes of the inputs.
    """

    inputs: int = 16
    width: int = 32
    teacher_width: int = 4
    samples: int = 256
    spread: float = 10.0
    axes_seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(inputs=self.inputs, width=self.width, teacher_width=self.teacher_width, samples=self.samples)

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many teachers, inputs and students."""
        x_TSI = _inputs(count, self.samples, self.inputs, self.spread, self.axes_seed, generator)
        y_TS = _hidden_net(_starts(count, self.inputs, self.teacher_width, 1, generator, scale=2.0), x_TSI)[..., 0]
        y_TS = (y_TS - y_TS.mean(1, keepdim=True)) / y_TS.std(1, keepdim=True).clamp(min=1e-6)
        starts = _starts(count, self.inputs, self.width, 1, generator)
        return Tasks(starts=starts, loss=squared_error, data={"x": x_TSI, "y": y_TS})


@dataclass(frozen=True, kw_only=True)
class LogisticRegressions:
    """Logistic regression with a ridge; the lowest losses are known from Newton's method.

    Args:
        inputs: I.
        samples: S.
        spread: of the inputs, as for TeacherStudents.
        ridge: factor of the squared weights.
        axes_seed: of the axes of the inputs.
    """

    inputs: int = 24
    samples: int = 256
    spread: float = 10.0
    ridge: float = 1e-3
    axes_seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(inputs=self.inputs, samples=self.samples)
        if not self.ridge > 0:
            raise ValueError(
                f"`ridge` must be positive, or classes that a plane divides have no lowest loss; got {self.ridge}."
            )

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many planes, and samples on either side of each."""
        x_TSI = _inputs(count, self.samples, self.inputs, self.spread, self.axes_seed, generator, torch.float64)
        plane = torch.randn(count, self.inputs, 1, generator=generator, dtype=torch.float64)
        chance = torch.sigmoid(3 * x_TSI @ plane)[..., 0]
        y_TS = (torch.rand(chance.shape, generator=generator, dtype=torch.float64) < chance).double()
        ridge = torch.full((), self.ridge, dtype=torch.float64)
        start = torch.zeros(count, self.inputs, dtype=torch.float64)
        tasks = Tasks(starts=(start,), loss=logistic_loss, data={"x": x_TSI, "y": y_TS}, shared={"ridge": ridge})
        return replace(tasks, best=tasks.losses((_newton(x_TSI, y_TS, self.ridge),)))


@dataclass(frozen=True, kw_only=True)
class ImageNets:
    """Nets with one hidden layer of tanh units on images of a set, each with weights and images of its own.

    Args:
        data: "digits" (8x8, installed with scikit-learn), "mnist", or anything else that `load_images` takes.
        width: W.
        samples: S, images of a task.
        pool: side of the squares of pixels that are averaged.
        part: shares of the training images between which those of tasks lie.
    """

    data: str = "digits"
    width: int = 32
    samples: int = 256
    pool: int = 1
    part: tuple[float, float] = (0.0, 0.7)

    def __post_init__(self) -> None:
        check_sizes(width=self.width, samples=self.samples, pool=self.pool)

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many draws of images and weights.

        Raises:
            ValueError: the images cannot be read, or there are fewer than `samples`.
        """
        x_NI, y_N, num_classes = _images(self.data, self.pool, self.part)
        if len(x_NI) < self.samples:
            raise ValueError(
                f"the part {list(self.part)} of {self.data} has {len(x_NI)} images and a task takes {self.samples}. Take a "
                "larger part or fewer images."
            )
        rows_TS = torch.stack([torch.randperm(len(x_NI), generator=generator)[: self.samples] for _ in range(count)])
        starts = _starts(count, x_NI.shape[1], self.width, num_classes, generator)
        shared = {"images": x_NI, "labels": y_N}
        return Tasks(starts=starts, loss=cross_entropy, data={"rows": rows_TS}, shared=shared)


@functools.lru_cache(maxsize=4)
def _images(data: str, pool: int, part: tuple[float, float]) -> tuple[Float[Tensor, "N I"], Int[Tensor, "N"], int]:
    """Pixels, labels and the number of classes of a part of a set; kept, as every draw of tasks asks for them."""
    images = load_images(data).train
    first, stop = (round(share * len(images)) for share in part)
    rows = torch.arange(len(images))[first:stop]
    pixels = nn.functional.avg_pool2d(images.floats(rows), pool).flatten(1)
    return pixels, images.labels[rows], len(images.classes)


def squared_error(points: Tensors, data: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Half the mean squared error of a net with one output."""
    return 0.5 * (_hidden_net(points, data["x"])[:, 0] - data["y"]).square().mean()


def logistic_loss(points: Tensors, data: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of two classes, and the ridge."""
    logits = data["x"] @ points[0]
    fit = nn.functional.binary_cross_entropy_with_logits(logits, data["y"])
    return fit + 0.5 * data["ridge"] * points[0].square().sum()


def cross_entropy(points: Tensors, data: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of a net on the images of a task."""
    return nn.functional.cross_entropy(_hidden_net(points, data["images"][data["rows"]]), data["labels"][data["rows"]])


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for one below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")


def _hidden_net(points: Tensors, x: Tensor) -> Tensor:
    first, bias, second, last = points
    hidden = torch.tanh(x @ first.mT + bias[..., None, :])
    return hidden @ second.mT + last[..., None, :]


def _starts(
    count: int, inputs: int, width: int, outputs: int, generator: torch.Generator, *, scale: float = 1.0
) -> Tensors:
    """Normal weights of variance `scale^2` over the number of inputs, and biases of 0."""
    first = torch.randn(count, width, inputs, generator=generator) * (scale * inputs**-0.5)
    second = torch.randn(count, outputs, width, generator=generator) * (scale * width**-0.5)
    return first, torch.zeros(count, width), second, torch.zeros(count, outputs)


def _inputs(
    count: int,
    samples: int,
    inputs: int,
    spread: float,
    seed: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "T S I"]:
    axes = torch.linalg.qr(
        torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    sizes = spread ** -torch.linspace(0, 1, inputs, dtype=torch.float64)
    normal = torch.randn(count, samples, inputs, generator=generator, dtype=torch.float64)
    return (normal * sizes @ axes).to(dtype)


def _newton(x_TSI: Tensor, y_TS: Tensor, ridge: float) -> Float[Tensor, "T I"]:
    """Minimisers by damped Newton steps."""
    w_TI = x_TSI.new_zeros(len(x_TSI), x_TSI.shape[2])
    eye = ridge * torch.eye(x_TSI.shape[2], dtype=x_TSI.dtype)
    for _ in range(_NEWTON_STEPS):
        chance = torch.sigmoid((x_TSI @ w_TI[..., None])[..., 0])
        gradient = ((chance - y_TS)[:, None] @ x_TSI)[:, 0] / y_TS.shape[1] + ridge * w_TI
        curve = x_TSI.mT @ ((chance * (1 - chance))[..., None] * x_TSI) / y_TS.shape[1] + eye
        step = torch.linalg.solve(curve, gradient)
        decrement = (step * gradient).sum(1, keepdim=True).clamp(min=0).sqrt()
        w_TI = w_TI - step / (1 + decrement)
    return w_TI

"""The classes of problems that recipes learn on, by the names that configs use, and how each is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from featherlight.optim.learned import ProblemClass
from featherlight.recipes.learned.linear import LeastSquares
from featherlight.recipes.learned.networks import ImageNets, LogisticRegressions, TeacherStudents
from featherlight.recipes.learned.plants import ArxPlants, ImpulseResponses
from featherlight.recipes.learned.records import MeasuredRecords


@dataclass(frozen=True, kw_only=True)
class Problems:
    """A class to learn on, and what the rule is tried on.

    Attributes:
        train: tasks to learn on.
        held_out: tasks of the same class that are not learned on.
        outside: other classes by name, with tensors of the same shapes, or of others where the rule fits any.
        target: gap relative to the start that counts as solved.
        about: a sentence.
    """

    train: ProblemClass
    held_out: ProblemClass
    outside: Mapping[str, ProblemClass]
    target: float
    about: str


def _least_squares() -> Problems:
    own = LeastSquares()
    return Problems(
        train=own,
        held_out=own,
        outside={
            "another matrix": replace(own, matrix_seed=1),
            "another matrix of condition 10": replace(own, matrix_seed=2, condition=10.0),
        },
        target=1e-12,
        about="least squares with one matrix of condition 1e4 and varying right-hand sides",
    )


def _impulse_responses() -> Problems:
    own = ImpulseResponses()
    return Problems(
        train=own,
        held_out=own,
        outside={
            "whiter inputs": replace(own, colour=(0.2, 0.5)),
            "redder inputs": replace(own, colour=(0.94, 0.97)),
            "records of a quarter of the length": replace(own, samples=own.samples // 4),
        },
        target=1e-4,
        about="impulse responses of random stable plants from records of coloured noise",
    )


def _arx() -> Problems:
    own = ArxPlants()
    return Problems(
        train=own,
        held_out=own,
        outside={"redder inputs": replace(own, colour=(0.9, 0.95)), "noisier": replace(own, noise=0.3)},
        target=1e-4,
        about="ARX models of random stable plants",
    )


def _records() -> Problems:
    own = MeasuredRecords()
    rest = (0.6, 1.0)
    one_each = {name: replace(own, names=(name,), part=rest) for name in own.names}
    return Problems(
        train=own,
        held_out=replace(own, part=rest),
        outside={
            **{f"{name} alone (held out)": one for name, one in one_each.items()},
            "ball-and-beam": replace(own, names=("ball-and-beam",), part=(0.0, 1.0)),
        },
        target=1e-4,
        about="ARX models of windows of four measured records; held out are later windows",
    )


def _teacher_student() -> Problems:
    own = TeacherStudents()
    return Problems(
        train=own,
        held_out=own,
        outside={
            "half the width": replace(own, width=own.width // 2),
            "twice the width": replace(own, width=2 * own.width),
            "other axes of inputs": replace(own, axes_seed=1),
        },
        target=1e-2,
        about="nets that learn from a random teacher net",
    )


def _logistic() -> Problems:
    own = LogisticRegressions()
    return Problems(
        train=own,
        held_out=own,
        outside={
            "other axes of inputs": replace(own, axes_seed=1),
            "inputs of spread 30": replace(own, spread=30.0),
            "a hundredth of the ridge": replace(own, ridge=own.ridge / 100),
        },
        target=1e-4,
        about="logistic regressions with a ridge",
    )


def _images(own: ImageNets) -> Problems:
    return Problems(
        train=own,
        held_out=replace(own, part=(0.7, 1.0)),
        outside={
            "half the width": replace(own, width=own.width // 2, part=(0.7, 1.0)),
            "twice the width": replace(own, width=2 * own.width, part=(0.7, 1.0)),
            "half the images": replace(own, samples=own.samples // 2, part=(0.7, 1.0)),
        },
        target=0.1,
        about=f"nets with one hidden layer on {own.data}, with weights and images of their own",
    )


PROBLEMS: Mapping[str, Callable[[], Problems]] = {
    "least-squares": _least_squares,
    "impulse-responses": _impulse_responses,
    "arx": _arx,
    "records": _records,
    "teacher-student": _teacher_student,
    "logistic": _logistic,
    "digits": lambda: _images(ImageNets()),
    "mnist": lambda: _images(ImageNets(data="mnist", pool=2)),
}
"""All of them."""

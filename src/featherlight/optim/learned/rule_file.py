"""A learned rule as a small safetensors file: its tensors, and in the metadata what it is built of and the class it is for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from featherlight.files import replace_file
from featherlight.optim.learned.adaptive import AdaptiveSteps
from featherlight.optim.learned.greedy_rule import GreedyRule
from featherlight.optim.learned.memory import Momentum, MovingAverage, NoMemory, PastTerms
from featherlight.optim.learned.metrics import (
    DiagonalSteps,
    FullSteps,
    KroneckerSteps,
    MirrorSteps,
    ScalarSteps,
    class_mismatch,
)
from featherlight.optim.learned.protocols import DescribedRule
from featherlight.optim.learned.rule import ConvexRule
from featherlight.optim.learned.secant_rule import SecantRule
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn

Build = Callable[[dict[str, Any]], nn.Module]
"""Makes a part or a rule of its description, with any numbers: those of the file are put in afterwards."""

_PARTS: dict[str, Build] = {
    "AdaptiveSteps": lambda options: AdaptiveSteps(**options),
    "ConvexRule": lambda options: ConvexRule(**options),
    "DiagonalSteps": DiagonalSteps.from_description,
    "FullSteps": FullSteps.from_description,
    "GreedyRule": GreedyRule.from_description,
    "KroneckerSteps": KroneckerSteps.from_description,
    "L1Penalty": lambda options: L1Penalty(**options),
    "MirrorSteps": lambda options: MirrorSteps(**options),
    "Momentum": lambda options: Momentum(**options),
    "MovingAverage": lambda options: MovingAverage(**options),
    "NoMemory": lambda options: NoMemory(**options),
    "PastTerms": lambda options: PastTerms(**options),
    "PointIn": PointIn.from_description,
    "ScalarSteps": lambda options: ScalarSteps(**options),
    "SecantRule": lambda options: SecantRule(**options),
    "StepIn": StepIn.from_description,
}
_KEY = "featherlight_rule"
_VERSION = 1


def save_rule(path: Path | str, rule: DescribedRule, points: Sequence[Tensor], *, about: str = "") -> None:
    """Writes a rule as one safetensors file.

    Args:
        path: of the file.
        rule: a ConvexRule, or another rule with a `description()`.
        points: tensors of the shapes of the class that it was learned on; the values are not looked at.
        about: a sentence on the class, for whoever opens the file.

    Raises:
        ValueError: the rule is not one of such tensors.
    """
    rule.init(tuple(p.detach() for p in points))
    described = {
        "version": _VERSION,
        "rule": _describe(rule),
        "class": {"shapes": [list(p.shape) for p in points], "about": about},
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in rule.state_dict().items()}
    replace_file(Path(path), lambda beside: save_file(tensors, beside, metadata={_KEY: json.dumps(described)}))


def load_rule(
    path: Path | str, points: Sequence[Tensor] | None = None, *, others: Mapping[str, Build] | None = None
) -> DescribedRule:
    """The rule of a file, in the dtypes it was saved in, on the CPU.

    Args:
        path: of the file.
        points: tensors that it is to be used on; None does not check.
        others: how rules of one's own are built, by the names of their classes.

    Raises:
        ValueError: there is no rule in the file, or it is for tensors of other shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if described["version"] != _VERSION:
            raise ValueError(f"it has version {described['version']}, this library reads {_VERSION}")
        rule: Any = _build(described["rule"], _PARTS | dict(others or {}))
        rule.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} holds no update rule that can be read ({reason}). Write one with `save_rule`, or correct the path."
        ) from error
    if points is not None:
        _check_points(rule, described["class"], tuple(p.detach() for p in points), path)
    return rule


def _check_points(
    rule: DescribedRule, learned_on: dict[str, Any], points: tuple[Tensor, ...], path: Path | str
) -> None:
    try:
        rule.init(points)
    except ValueError as error:
        about = f" ({learned_on['about']})" if learned_on["about"] else ""
        shapes = [tuple(shape) for shape in learned_on["shapes"]]
        raise class_mismatch(f"the file {path}", f"shapes {shapes}{about}", points) from error


def _describe(part: Any) -> dict[str, Any]:
    options = {name: _described(value) for name, value in part.description().items()}
    return {"kind": type(part).__name__, "options": options}


def _described(value: Any) -> Any:
    return {"part": _describe(value)} if isinstance(value, nn.Module) else value


def _build(described: dict[str, Any], builders: Mapping[str, Build]) -> nn.Module:
    kind = described["kind"]
    if kind not in builders:
        raise ValueError(f"it is made of `{kind}`, which is unknown; pass `others={{'{kind}': ...}}`")
    return builders[kind]({name: _built(value, builders) for name, value in described["options"].items()})


def _built(value: Any, builders: Mapping[str, Build]) -> Any:
    return _build(value["part"], builders) if isinstance(value, dict) and set(value) == {"part"} else value

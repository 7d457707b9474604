"""What a run of an implicit model shows: the blocks' losses, the pattern of A, what is proven, and how sparse it can be made."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featherlight.nn.implicit import (
    OutputInterval,
    Sensitivity,
    StrictlyTriangular,
    output_interval,
    perron_frobenius,
    sensitivity,
)
from featherlight.recipes.implicit.blocks import BlockStatus
from featherlight.recipes.implicit.matching import match_states
from featherlight.recipes.implicit.network import GrowingModel, ImplicitModel
from featherlight.report import Images, LineChart, Section, Table
from featherlight.solvers import Anderson, Picard
from featherlight.solvers.row_lasso import RowStatus

if TYPE_CHECKING:
    from featherlight.recipes.implicit.experiment import ImplicitRun

_MATCHED_ROWS = 4000
_SOLVED_ROWS = 256
_RADII = (0.001, 0.003, 0.01, 0.03)
_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def sections(run: "ImplicitRun") -> Sequence[Section]:
    """All sections, of the model as it is."""
    model = run.finished()
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        return []
    found = [*_growth(run), _pattern(model), *_solver(run, model), _proven(run, model)]
    if run.config.sparse:
        found.append(_sparse(run, model))
    return found


def _growth(run: "ImplicitRun") -> Iterator[Section]:
    """The regularised training loss, block by block."""
    model = run.model
    if not isinstance(model, GrowingModel) or not int(model.num_blocks):
        return
    rows = tuple(
        (number + 1, run.config.blocks[number], before, after, int(steps), BlockStatus(int(status)).name.lower())
        for number, (before, after, steps, status) in enumerate(model.history[: int(model.num_blocks)].tolist())
    )
    first = rows[0]
    line = ([first[0] - 1, *(row[0] for row in rows)], [first[2], *(row[3] for row in rows)])
    rose = [row[0] for row in rows if row[5] == BlockStatus.ROSE.name.lower()]
    verdict = (
        "It never rose."
        if not rose
        else f"It rose at {rose}: the data are too badly scaled for the solves; raise ridge."
    )
    text = f"The regularised training loss, a row's mean, block by block. {verdict} {int(model.best_blocks)} blocks are kept."
    chart = LineChart(x_label="blocks", y_label="loss", lines={"regularised training loss": line}, log_y=True)
    table = Table(columns=("block", "states", "loss before", "loss after", "steps", "the loss"), rows=rows)
    yield Section(title="Blocks", text=text, blocks=(chart, table))


def _pattern(model: ImplicitModel) -> Section:
    """|A| as shades of grey."""
    size = model.layer.A.detach().abs().cpu()
    largest = float(size.max())
    shades = (255 * (1 - (size / max(largest, 1e-300)).sqrt())).round().clamp(0, 255).numpy().astype(np.uint8)
    part = float((size > 0).double().mean())
    text = f"The states feed each other through {part:.1%} of the entries of A, which has {len(size)} rows."
    caption = "White is 0, black the entry of largest size; shades go by the square root."
    return Section(
        title="Pattern of A",
        text=text,
        blocks=(Images(images=shades[None], columns=1, caption=caption, scale=max(1, 400 // len(size))),),
    )


def _solver(run: "ImplicitRun", model: ImplicitModel) -> Iterator[Section]:
    """Steps to each residual; a strictly triangular model has nothing to solve."""
    layer = model.layer
    if isinstance(layer.well_posed, StrictlyTriangular):
        return
    with torch.no_grad():
        b = model.units.inward(run.data.valid.inputs[:_SOLVED_ROWS]) @ layer.B.mT
        a_t, phi = layer.A.mT, layer.activation
        lines = {}
        for name, kind in (("Picard", Picard), ("Anderson", Anderson)):
            steps = []
            for tolerance in _TOLERANCES:
                found = kind(tolerance=tolerance, max_steps=500)(lambda x: phi(b + x @ a_t), phi(b))
                steps.append(float(found.steps.double().mean()) if bool(found.converged.all()) else float("nan"))
            lines[name] = (steps, list(_TOLERANCES))
    chart = LineChart(x_label="mean steps of a row", y_label="relative residual", lines=lines, log_y=True)
    text = (
        f"How the search for the states converges on {len(b)} validation rows; a gap says that a row did not get there."
    )
    yield Section(title="Convergence of the solver", text=text, blocks=(chart,))


def _proven(run: "ImplicitRun", model: ImplicitModel) -> Section:
    """Perron-Frobenius, sensitivity, and what input boxes do to validation rows."""
    layer = model.layer
    matrices = (layer.A.detach(), layer.B.detach(), layer.C.detach(), layer.D.detach())
    value = perron_frobenius(matrices[0])
    rows: list[tuple[str, float]] = [
        ("Perron-Frobenius value of |A|, at most", value.upper),
        ("infinity norm of A", value.norm),
    ]
    blocks: list[Table] = []
    if value.well_posed:
        proven = sensitivity(*matrices)
        rows.append(("largest change of an output for inputs that change by 1, at most", proven.norm))
        rows.append(("the same from the product of norms", proven.norm_product))
        blocks = [_boxes(run, model, proven)]
    table = Table(columns=("figure", "value"), rows=tuple(rows))
    text = "Proven for the model with its rounding, in the units that it computes in" + (
        "." if value.well_posed else "; nothing more is proven, as the first figure is not below 1."
    )
    return Section(title="Certificates", text=text, blocks=(table, *blocks))


def _boxes(run: "ImplicitRun", model: ImplicitModel, proven: Sensitivity) -> Table:
    """What can be said of validation rows whose inputs are known up to a radius."""
    u = model.units.inward(run.data.valid.inputs[:_SOLVED_ROWS])
    targets = run.data.valid.targets[:_SOLVED_ROWS]
    with torch.no_grad():
        states = model.layer(u).states
    constant = torch.ones(u.shape[1], dtype=torch.float64, device=u.device)
    constant[-1] = 0
    rows = []
    for radius in _RADII:
        box = output_interval(proven, model.layer.activation, u, states, radius * constant)
        rows.append((radius, _said(run, box, targets)))
    what = (
        "rows whose class is proven to be right, %"
        if run.data.classes
        else "mean width of the interval, in spreads of the target"
    )
    return Table(columns=("inputs known up to", what), rows=tuple(rows))


def _said(run: "ImplicitRun", box: OutputInterval, targets: Tensor) -> float:
    if not run.data.classes:
        return float((box.high - box.low).mean())
    own = box.low.gather(1, targets[:, None])
    others = box.high.scatter(1, targets[:, None], -float("inf")).amax(1, keepdim=True)
    return 100 * float((own > others).double().mean())


def _sparse(run: "ImplicitRun", model: ImplicitModel) -> Section:
    """Score against zeros of models that match the states of this one."""
    every = -(-len(run.data.train) // _MATCHED_ROWS)
    u = model.units.inward(run.data.train.inputs[::every])
    held, what = (run.data.valid, "validation") if run.data.test is None else (run.data.test, "test")
    rows = [("none", 0.0, _metric(run, model, held.inputs, held.targets), 0)]
    for penalty in sorted(run.config.sparse):
        matched = match_states(model.layer, u, penalty=penalty)
        score = _metric(run, ImplicitModel(matched.layer, model.units), held.inputs, held.targets)
        statuses = torch.cat((matched.states.status, matched.outputs.status))
        rows.append((f"{penalty:g}", 100 * matched.zeros, score, int((statuses != RowStatus.CONVERGED).sum())))
    name = "accuracy" if run.data.classes else "rmse"
    line = ([row[1] for row in rows], [row[2] for row in rows])
    table = Table(columns=("penalty", "zeros, %", f"{what} {name}", "rows not solved to tolerance"), rows=tuple(rows))
    chart = LineChart(x_label="zeros, %", y_label=name, lines={"matched states": line})
    text = (
        f"Sparse models that match the states of this one on {len(u):,} training rows, and what they are worth on the {what} "
        "rows. The penalty is in parts of the smallest that leaves nothing."
    )
    return Section(title="Sparsity", text=text, blocks=(chart, table))


def _metric(run: "ImplicitRun", model: ImplicitModel, inputs: Tensor, targets: Tensor) -> float:
    return next(iter(run.values(run.outputs(model, inputs), targets).values()))

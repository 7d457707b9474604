"""Pictures and the HTML page of a run of any kind; what a kind adds to it are sections, handed over as data."""

from featherlight.report.page import render_report, write_report
from featherlight.report.reading import read_run, read_runs
from featherlight.report.runs import EvalPoint, EventPoint, RunRecord, RunSummary, StepPoint
from featherlight.report.section_files import read_sections, write_sections
from featherlight.report.sections import (
    BarChart,
    Block,
    ConfusionTable,
    Heatmap,
    Images,
    LineChart,
    Section,
    Table,
)
from featherlight.report.words import headline

__all__ = [
    "BarChart",
    "Block",
    "ConfusionTable",
    "EvalPoint",
    "EventPoint",
    "Heatmap",
    "Images",
    "LineChart",
    "RunRecord",
    "RunSummary",
    "Section",
    "StepPoint",
    "Table",
    "headline",
    "read_run",
    "read_runs",
    "read_sections",
    "render_report",
    "write_report",
    "write_sections",
]

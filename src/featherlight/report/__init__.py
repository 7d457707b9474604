"""Pictures and the HTML page of a run."""

from featherlight.report.page import render_report, write_report
from featherlight.report.runs import RunRecord, RunSummary, read_run
from featherlight.report.words import headline

__all__ = ["RunRecord", "RunSummary", "headline", "read_run", "render_report", "write_report"]

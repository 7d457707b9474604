"""The loop, what it keeps on disk, and how a run starts again: journal, saves, metrics."""

from featherlight.trainer.journal import JournalContents, JournalWriter, read_journal, weights_digest
from featherlight.trainer.loop import Budget, Callback, Clock, StepInfo, fit
from featherlight.trainer.metrics import MetricsLog
from featherlight.trainer.progress import BarProgress, LineProgress, Tracker, silent, tracker
from featherlight.trainer.save import load_save, write_save

__all__ = [
    "BarProgress",
    "Budget",
    "Callback",
    "Clock",
    "JournalContents",
    "JournalWriter",
    "LineProgress",
    "MetricsLog",
    "StepInfo",
    "Tracker",
    "fit",
    "load_save",
    "read_journal",
    "silent",
    "tracker",
    "weights_digest",
    "write_save",
]

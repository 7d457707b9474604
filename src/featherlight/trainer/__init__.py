"""The loop, what it keeps on disk, and how a run starts again: journal, saves, metrics."""

from featherlight.trainer.distributed import World, joined
from featherlight.trainer.experiment import SCHEDULES, Evaluation, Experiment, Replay, Schedule, Stage, Workspace
from featherlight.trainer.journal import JournalContents, JournalWriter, read_journal, weights_digest
from featherlight.trainer.loop import Budget, Callback, Clock, StepInfo, fit
from featherlight.trainer.metrics import Listener, MetricsLog
from featherlight.trainer.progress import Display, Tracker, silent, tracker
from featherlight.trainer.run import Finished, Judge, Run
from featherlight.trainer.run_directory import RunDirectory, replace_directory, take_lock
from featherlight.trainer.save import load_save, read_progress, write_save
from featherlight.trainer.scores import Scores
from featherlight.trainer.summary import Identity
from featherlight.trainer.take_up import check_base, load_fitted

__all__ = [
    "SCHEDULES",
    "Budget",
    "Callback",
    "Clock",
    "Display",
    "Evaluation",
    "Experiment",
    "Finished",
    "Identity",
    "JournalContents",
    "JournalWriter",
    "Judge",
    "Listener",
    "MetricsLog",
    "Replay",
    "Run",
    "RunDirectory",
    "Schedule",
    "Scores",
    "Stage",
    "StepInfo",
    "Tracker",
    "Workspace",
    "World",
    "check_base",
    "fit",
    "joined",
    "load_fitted",
    "load_save",
    "read_journal",
    "read_progress",
    "replace_directory",
    "silent",
    "take_lock",
    "tracker",
    "weights_digest",
    "write_save",
]

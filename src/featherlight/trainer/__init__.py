"""The loop, what it keeps on disk, and how a run starts again: journal, saves, metrics."""

from featherlight.trainer.difference import Difference, difference
from featherlight.trainer.digests import file_digest, weights_digest
from featherlight.trainer.distributed import World, joined
from featherlight.trainer.experiment import SCHEDULES, Evaluation, Experiment, Replay, Schedule, Stage, Workspace
from featherlight.trainer.journal import JournalContents, JournalWriter, StateRecord, read_journal, records_with_checks
from featherlight.trainer.loop import Budget, Callback, Clock, StepInfo, fit
from featherlight.trainer.manifest import MANIFEST, check_manifest, has_manifest, replace_directory, write_manifest
from featherlight.trainer.metrics import Listener, MetricsLog
from featherlight.trainer.progress import Display, Tracker, silent, tracker
from featherlight.trainer.replay import replay_journal
from featherlight.trainer.run import Finished, Judge, Run
from featherlight.trainer.run_directory import RunDirectory, take_lock
from featherlight.trainer.save import load_save, read_progress, write_save
from featherlight.trainer.scores import Scores
from featherlight.trainer.share import Shared, read_journal_or_share, share
from featherlight.trainer.summary import Identity
from featherlight.trainer.take_up import check_base
from featherlight.trainer.team import Meeting
from featherlight.trainer.verify import Finding, verify

__all__ = [
    "MANIFEST",
    "SCHEDULES",
    "Budget",
    "Callback",
    "Clock",
    "Difference",
    "Display",
    "Evaluation",
    "Experiment",
    "Finding",
    "Finished",
    "Identity",
    "JournalContents",
    "JournalWriter",
    "Judge",
    "Listener",
    "Meeting",
    "MetricsLog",
    "Replay",
    "Run",
    "RunDirectory",
    "Schedule",
    "Scores",
    "Shared",
    "Stage",
    "StateRecord",
    "StepInfo",
    "Tracker",
    "Workspace",
    "World",
    "check_base",
    "check_manifest",
    "difference",
    "file_digest",
    "fit",
    "has_manifest",
    "joined",
    "load_save",
    "read_journal",
    "read_journal_or_share",
    "read_progress",
    "records_with_checks",
    "replace_directory",
    "replay_journal",
    "share",
    "silent",
    "take_lock",
    "tracker",
    "verify",
    "weights_digest",
    "write_manifest",
    "write_save",
]

"""The journal of a forward-only run: with the base weights it is the trained model. docs/journal.md has the format."""

from featherlight.trainer.journal.reading import JournalContents, parse_journal, read_journal, records_with_checks
from featherlight.trainer.journal.record_format import StateRecord, decode, encode_record, encode_state
from featherlight.trainer.journal.writing import JournalWriter

__all__ = [
    "JournalContents",
    "JournalWriter",
    "StateRecord",
    "decode",
    "encode_record",
    "encode_state",
    "parse_journal",
    "read_journal",
    "records_with_checks",
]

"""`make faults`: all campaigns in their long form, one line a fault. What is done is kept, and a second call goes on."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, target, write_results
from tests.faults import campaigns, power, system_calls, team_campaigns
from tests.faults.campaigns import METHODS, Outcome

Campaign = Callable[[Path], Outcome]


def all_campaigns(share: float) -> dict[str, Campaign]:
    """By a name under which the result is kept; `share` of the full number of tries."""

    def times(count: int) -> int:
        return max(1, int(count * share))

    stride = max(1, int(1 / share))
    found: dict[str, Campaign] = {}
    for method in METHODS:
        found |= {
            f"kills {method}": lambda folder, method=method: campaigns.kills(folder, method, times(5000)),
            f"short writes {method}": lambda folder, method=method: campaigns.short_writes(folder, method, 61 * stride),
        }
    found |= {
        "altered saves adamw": lambda folder: campaigns.altered_saves(folder, "adamw", times(200)),
        "signals": campaigns.signals,
        "changed runs": campaigns.changed_runs,
        "flips": lambda folder: campaigns.flips(folder, times(100_000)),
        "mutations": lambda folder: campaigns.mutations(folder, times(1_000_000)),
    }
    found |= {
        "team schedules": lambda folder: team_campaigns.schedules(times(10_000)),
        "team member kills": lambda folder: team_campaigns.kills_in_teams(folder, times(500), of_host=False),
        "team host kills": lambda folder: team_campaigns.kills_in_teams(folder, times(100), of_host=True),
        "team stopped": team_campaigns.stopped_member,
        "group kills": lambda folder: team_campaigns.torchrun_restarts(folder, times(5)),
    }
    if team_campaigns.is_network_possible():
        found["team partition"] = team_campaigns.partition
    if system_calls.is_possible():
        for method in METHODS:
            found[f"calls {method}"] = lambda folder, method=method: system_calls.kill_at_every_call(
                folder, method, stride
            )
            for error in system_calls.ERRORS:
                found[f"{error} {method}"] = lambda folder, method=method, error=error: (
                    system_calls.refuse_from_every_call(folder, method, error, stride)
                )
        found["network"] = system_calls.network
    if power.is_possible():
        found["power cuts"] = lambda folder: power.power_cuts(folder, times(500))
    return found


def rival_campaigns(share: float) -> dict[str, Campaign]:
    """What Hugging Face's Trainer is put through beside ours, on a run that saves as often."""

    def times(count: int) -> int:
        return max(1, int(count * share))

    found: dict[str, Campaign] = {
        "rival kills": lambda folder: campaigns.kills(folder, "trainer", times(200)),
        "rival altered saves": lambda folder: campaigns.altered_saves(folder, "trainer", times(50)),
        "rival short writes": lambda folder: campaigns.short_writes(folder, "trainer", 61 * max(1, int(1 / share))),
    }
    if system_calls.is_possible():
        found["rival calls"] = lambda folder: system_calls.kill_at_every_call(folder, "trainer", max(1, int(1 / share)))
    return found


def main() -> None:
    """Runs what is not done yet and prints the table; ends with code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of tries")
    parser.add_argument("--only", default="", help="campaigns whose names contain this")
    parser.add_argument("--budget-minutes", type=float, help="begin no campaign after so many")
    parser.add_argument("--rival", action="store_true", help="Hugging Face's Trainer in our place, for comparison")
    arguments = parser.parse_args()
    share = arguments.share
    finished = FinishedRuns(RESULTS / "faults.rows.jsonl", arguments.budget_minutes)
    every = rival_campaigns(share) if arguments.rival else all_campaigns(share)
    with suppress(OutOfTimeError):
        for name, campaign in every.items():
            if arguments.only in name:
                finished.get({"name": name, "share": share}, partial(_tried, campaign), _line)
    rows = [row for name in every if (row := finished.find({"name": name, "share": share})) is not None]
    _show(rows)
    if arguments.rival:
        return
    if share == 1.0 and len(rows) == len(every):
        write_results("faults", rows, [target(row["fault"], len(row["failures"]), "<=", 0, "failures") for row in rows])
    sys.exit(any(row["failures"] for row in rows))


def _tried(campaign: Campaign) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        return asdict(campaign(Path(folder)))


def _line(row: Row) -> str:
    return f"{row['name']}: {row['tries']:,} tries, {len(row['failures'])} failures"


def _show(rows: list[Row]) -> None:
    console = Console()
    table = Table("fault", "tries", "result", "note")
    for row in rows:
        failed = len(row["failures"])
        table.add_row(row["fault"], f"{row['tries']:,}", f"[red]{failed} FAIL[/]" if failed else "PASS", row["note"])
    console.print(table)
    for row in rows:
        for sentence in row["failures"][:5]:
            console.print(f"{row['fault']}: {sentence}", highlight=False, markup=False)


if __name__ == "__main__":
    main()

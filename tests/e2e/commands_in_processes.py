"""One command after another in one of two processes that train together: a pair is started once for many tests.

Started as `python -m tests.e2e.commands_in_processes FILE`, with RANK and the other names of torchrun in the environment.
"""

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.command_line import ROOT, Ended, call


def run_pair(
    commands: Mapping[str, Sequence[str]], folder: Path, environment: Mapping[str, str]
) -> dict[str, tuple[Ended, Ended]]:
    """All commands in turn by two processes; what each of them made of each, by name.

    A process that is killed has the code -9 in the command it was killed in, which must be the last.
    """
    given = {name: {"arguments": list(one), "port": _free_port()} for name, one in commands.items()}
    (folder / "commands.json").write_text(json.dumps(given))
    program = [sys.executable, "-m", "tests.e2e.commands_in_processes", str(folder)]
    started = [
        subprocess.Popen(
            program,
            cwd=ROOT,
            env={**environment, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = ["".join(one.communicate(timeout=300)) for one in started]
    finally:
        for one in started:
            one.kill()
    assert said == ["", ""], said
    first, second = (
        {name: _read(folder, rank, name, process.returncode) for name in commands}
        for rank, process in enumerate(started)
    )
    return {name: (first[name], second[name]) for name in commands}


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _read(folder: Path, rank: int, name: str, code: int) -> Ended:
    path = folder / f"{rank}-{name}.json"
    return Ended(*json.loads(path.read_text())) if path.exists() else Ended(code, "", "")


def _main(folder: Path) -> None:
    for name, one in json.loads((folder / "commands.json").read_text()).items():
        gc.collect()  # of an earlier run that failed, lest its memory is freed while that of this one is measured
        os.environ["MASTER_PORT"] = one["port"]
        (folder / f"{os.environ['RANK']}-{name}.json").write_text(json.dumps(call(one["arguments"])))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

"""`--help` and `--version` must not wait for torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["finetune", "--help"], ["recipes"], ["run", "--help"]]
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['featherlight', *{arguments!r}]\n"
        "from featherlight import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

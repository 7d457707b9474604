"""`--help` and `--version` must not wait for torch."""

import subprocess
import sys

QUICK = (["--help"], ["--version"], ["finetune", "--help"], ["recipes"], ["run", "--help"])
PROGRAM = """
import sys
from featherlight import cli
for arguments in ARGUMENTS:
    sys.argv = ['featherlight', *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, arguments
    heavy = {'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def test_help_does_not_import_torch() -> None:
    """All in one process, since whatever one of them imports stays."""
    program = PROGRAM.replace("ARGUMENTS", repr(QUICK))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

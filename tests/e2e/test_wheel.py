"""The wheel holds all that the package needs, and works away from the checkout (`make test-wheel`: in a new environment)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(*command: str, cwd: Path, packages: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if packages is None else {"PYTHONPATH": str(packages)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheels, packages, away = (tmp_path / name for name in ("wheels", "packages", "away"))
    away.mkdir()
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT), cwd=tmp_path)
    [wheel] = wheels.glob("featherlight-*.whl")
    call(*pip, "install", "--no-deps", "--target", str(packages), str(wheel), cwd=tmp_path)
    where = call(sys.executable, "-c", "import featherlight; print(featherlight.__file__)", cwd=away, packages=packages)
    assert Path(where.strip()).is_relative_to(packages)
    assert (packages / "featherlight" / "py.typed").is_file()
    command = (sys.executable, "-c", "from featherlight.cli import main; main()")
    said = call(*command, "run", "classify/digits", "--set", "epochs=1", "--out", "run", cwd=away, packages=packages)
    assert "report:" in said
    assert "<style" in (away / "run" / "report.html").read_text()

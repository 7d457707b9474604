from __future__ import annotations

import subprocess
import sys

import pytest

import featherlight.data as data


def test_every_exported_name_is_there_and_is_no_module():
    for name in data.__all__:
        assert type(getattr(data, name)).__name__ != "module", name


def test_reading_tables_does_not_load_torch():
    code = "import featherlight.data.tables, featherlight.data.stdlib_docs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        data.nothing  # noqa: B018

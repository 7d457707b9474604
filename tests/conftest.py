"""For all tests: where the real data are, threads as they were before, and interrupts that arrive.

Property tests draw the same examples every time, are never timed, and fail at the first example they find.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("featherlight", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("featherlight")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background begins with it ignored


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sets; skips the test where it is absent."""
    folder = os.environ.get("FEATHERLIGHT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("the real sets are absent: FEATHERLIGHT_DATA names no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_draws_in_any_order() -> None:
    """Layers draw their first weights from torch's own generator; a test gets the same ones whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _keep_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
